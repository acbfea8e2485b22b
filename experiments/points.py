"""What a point of a result says: its task, the metric of its numbers, and these numbers.

A point is JSON. Results of recall from before tasks had metrics have accuracies, and the sizes of
their task next to everything else.
"""

from collections.abc import Mapping
from typing import Any

from dsfjax.tasks import Metric
from dsfjax.training.storage.record import measured_in

Point = Mapping[str, Any]
RECALL = ("seq_len", "num_kv_pairs")
"""The sizes of recall."""


def sizes(point: Point) -> dict[str, Any]:
    """The task of a point: its name and its fields.

    Args:
        point: The point.
    """
    return dict(point["task"]) if "task" in point else {axis: point[axis] for axis in RECALL}


def where(point: Point) -> str:
    """What the name of a point says after its series: the task, and sizes.

    Args:
        point: The point.
    """
    return point["name"].partition(", ")[2]


def metric(point: Point) -> Metric:
    """What the numbers of a point are of.

    Args:
        point: The point.
    """
    return measured_in(point)[0]


def mean(point: Point) -> float:
    """The mean over seeds at the best rate; the worst value where one diverged.

    Args:
        point: The point.
    """
    return metric(point).known(point["mean"])


def best(point: Point) -> float:
    """The best score of any rate and seed.

    Args:
        point: The point.
    """
    return metric(point).known(point[extreme(metric(point))])


def extreme(metric: Metric) -> str:
    """What the best of some scores is called.

    Args:
        metric: Their metric.
    """
    return "max" if metric.higher_is_better else "min"


def trivial(point: Point) -> float:
    """The score that takes no model.

    Args:
        point: The point.
    """
    return point["trivial"] if "trivial" in point else 1 / point["num_kv_pairs"]
