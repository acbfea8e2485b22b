"""What a comparison says of a run: its best point, and how all others did.

A *point* is one value of every axis but the seeds, usually just a learning rate. The best is the
one with the highest held-out accuracy, averaged over its seeds; ties go to the one whose seeds got
to 90 % sooner, then to the smaller values, the learning rate first. A diverged member counts as
accuracy 0. The standard deviation is that of a sample (n − 1), and 0 for one seed.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsfjax.training.config import Member
from dsfjax.training.record import TIMES, MemberResult
from dsfjax.training.store import read_results

POINT = tuple(axis for axis in Member._fields if axis != "seed")
"""The axes of a point."""


def row(members: Sequence[MemberResult]) -> dict[str, Any]:
    """What a comparison says of one run.

    Args:
        members: All its members.

    Returns:
        ``mixer`` (the name of the run), ``accuracy_mean`` and ``accuracy_std`` over seeds at the
        best point, ``accuracies`` (a list, by seed), ``statuses`` (the same), ``steps_to_90`` (mean
        over seeds, None unless all got there), ``best`` (the point: a value of every axis but the
        seeds), ``best_learning_rate``, ``state_size``, ``num_params``, ``tokens_per_second``,
        ``train_seconds``, ``compile_seconds``, and ``rates``: for each point its axes,
        ``accuracy_mean``, ``accuracy_std``, ``accuracies``, ``statuses`` and ``steps_to_90``.
        ``status`` is "finished". Of a run that failed there are ``mixer``, ``status`` and
        ``reason``.

    Examples:
        >>> from dsfjax.training.config import grid
        >>> pair = grid(learning_rates=(0.1, 0.2))
        >>> found = [MemberResult(run="ssd", member=i, mixer="ssd", point=pair[i], eval_accuracy=x,
        ...                       status="finished") for i, x in enumerate((0.5, 0.7))]
        >>> row(found)["best_learning_rate"]
        0.2
    """
    first = members[0]
    if first.status == "failed":
        return {"mixer": first.run, "status": "failed", "reason": first.reason}
    by_point: dict[tuple[Any, ...], list[MemberResult]] = {}
    for member in members:
        by_point.setdefault(tuple(getattr(member.point, name) for name in POINT), []).append(member)
    rates = [_rate(point, own) for point, own in by_point.items()]
    best = min(
        rates,
        key=lambda rate: (
            -rate["accuracy_mean"],
            math.inf if rate["steps_to_90"] is None else rate["steps_to_90"],
            *(rate[name] or 0.0 for name in POINT),
        ),
    )
    return {
        "mixer": first.run,
        "status": "finished",
        **{key: value for key, value in best.items() if key not in POINT},
        "best": {key: best[key] for key in POINT},
        "best_learning_rate": best["learning_rate"],
        "state_size": first.state_size,
        "num_params": first.num_params,
        **{name: first.timing.get(name) for name in reversed(TIMES)},
        "rates": rates,
    }


def finished(folder: Path) -> list[dict[str, Any]]:
    """The rows of all finished programs of a sweep's folder, from its table.

    Args:
        folder: The folder.

    Returns:
        A row per program, by name.
    """
    whole = [member for member in read_results(folder) if member.status != "failed"]
    return [row(list(own)) for _, own in itertools.groupby(whole, key=lambda member: member.run)]


def _rate(point: tuple[Any, ...], members: Sequence[MemberResult]) -> dict[str, Any]:
    accuracies = [member.accuracy for member in members]
    steps = [member.steps_to_90 for member in members]
    known = [step for step in steps if step is not None]
    return {
        **dict(zip(POINT, point, strict=True)),
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "accuracies": accuracies,
        "statuses": [member.status for member in members],
        "steps_to_90": statistics.fmean(known) if len(known) == len(steps) else None,
    }
