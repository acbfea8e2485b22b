"""What a comparison says of a run: its best point, and how all others did.

A *point* is one value of every axis but the seeds, usually just a learning rate. The best is the
one with the highest held-out accuracy, averaged over its seeds; ties go to the one whose seeds got
to 90 % sooner, then to the smaller values, the learning rate first. A diverged member counts as
accuracy 0. The standard deviation is that of a sample (n − 1), and 0 for one seed.
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsfjax.training.program import Member
from dsfjax.training.store import read_results

POINT = tuple(axis for axis in Member._fields if axis != "seed")
"""The axes of a point."""


def row(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison says of one run.

    Args:
        name: Name of the run: its folder in the comparison's.
        result: Its ``result.json``.

    Returns:
        ``mixer`` (the name), ``accuracy_mean`` and ``accuracy_std`` over seeds at the best point,
        ``accuracies`` (a list, by seed), ``statuses`` (the same), ``steps_to_90`` (mean over seeds,
        None unless all got there), ``best`` (the point: ``learning_rate``, ``weight_decay``,
        ``init_scale``, ``dropout``), ``best_learning_rate``, ``state_size``, ``num_params``,
        ``tokens_per_second``, ``train_seconds``, ``compile_seconds``, and ``rates``: for each point
        its axes, ``accuracy_mean``, ``accuracy_std``, ``accuracies``, ``statuses`` and
        ``steps_to_90``. ``status`` is "finished". Of a run that failed there are ``mixer``,
        ``status`` and ``reason``.

    Examples:
        >>> member = {"seed": 0, "weight_decay": 0.1, "init_scale": 1.0, "dropout": None,
        ...           "steps_to_90": None, "status": "finished"}
        >>> result = {"state_size": 8, "num_params": 9, "tokens_per_second": 1.0,
        ...           "train_seconds": 1.0, "compile_seconds": 1.0,
        ...           "members": [member | {"learning_rate": 0.1, "eval_accuracy": 0.5},
        ...                       member | {"learning_rate": 0.2, "eval_accuracy": 0.7}]}
        >>> row("ssd", result)["best_learning_rate"]
        0.2
    """
    if result.get("status") == "failed":
        return {"mixer": name, "status": "failed", "reason": result["reason"]}
    by_point: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for member in result["members"]:
        by_point.setdefault(tuple(member[name] for name in POINT), []).append(member)
    rates = [_rate(point, members) for point, members in by_point.items()]
    best = min(
        rates,
        key=lambda rate: (
            -rate["accuracy_mean"],
            math.inf if rate["steps_to_90"] is None else rate["steps_to_90"],
            *(rate[name] or 0.0 for name in POINT),
        ),
    )
    copied = ("state_size", "num_params", "tokens_per_second", "train_seconds", "compile_seconds")
    return {
        "mixer": name,
        "status": "finished",
        **{key: value for key, value in best.items() if key not in POINT},
        "best": {key: best[key] for key in POINT},
        "best_learning_rate": best["learning_rate"],
        **{key: result[key] for key in copied},
        "rates": rates,
    }


def finished(folder: Path) -> list[dict[str, Any]]:
    """The rows of all finished programs of a sweep's folder, from its table.

    Args:
        folder: The folder.

    Returns:
        A row per program, by name.
    """
    programs: dict[str, list[dict[str, Any]]] = {}
    for member in read_results(folder):
        if member["status"] != "failed":
            programs.setdefault(member["run"], []).append(member)
    return [
        row(name, {**members[0], **members[0]["timing"], "status": "finished", "members": members})
        for name, members in programs.items()
    ]


def _rate(point: tuple[Any, ...], members: list[Mapping[str, Any]]) -> dict[str, Any]:
    accuracies = [
        0.0 if member["status"] == "diverged" else member["eval_accuracy"] for member in members
    ]
    steps = [member["steps_to_90"] for member in members]
    return {
        **dict(zip(POINT, point, strict=True)),
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "accuracies": accuracies,
        "statuses": [member["status"] for member in members],
        "steps_to_90": None if None in steps else statistics.fmean(steps),
    }
