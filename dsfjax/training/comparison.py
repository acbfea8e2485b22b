"""Several mixers on one task: a program each, and one table.

The *best* learning rate of a mixer is the one with the highest held-out accuracy, averaged over its
seeds; ties go to the one whose seeds got to 90 % sooner, then to the smaller. A diverged member
counts as accuracy 0. The standard deviation is that of a sample (n − 1), and 0 for one seed.
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsfjax.training.config import TrainConfig
from dsfjax.training.run import Listener, program_of, train, write_json


def compare(
    configs: Mapping[str, TrainConfig], run_dir: Path | str, *, listener: Listener | None = None
) -> list[dict[str, Any]]:
    """Train each config in a folder of its own and write ``compare.json`` beside them.

    A finished run is not run again and an unfinished one goes on, so an interrupted comparison is
    resumed by calling this again.

    Args:
        configs: Name (a folder's, usually the mixer) to config.
        run_dir: Folder of the comparison.
        listener: Is told of the progress.

    Returns:
        A row per config, in the given order, as :func:`row` makes it. ``compare.json`` has the
        same, and is written anew after each config.

    Raises:
        ValueError: If a model cannot be built; nothing has been trained then.
        RunError: If a folder in ``run_dir`` belongs to another config.
    """
    for config in configs.values():
        program_of(config)
    folder = Path(run_dir)
    rows = []
    for name, config in configs.items():
        result = train(config, folder / name, name=name, listener=listener)
        rows.append(row(name, result))
        write_json(folder / "compare.json", rows)
    return rows


def row(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison says of one run.

    Args:
        name: Name of the run: its folder in the comparison's.
        result: Its ``result.json``.

    Returns:
        ``mixer`` (the name), ``accuracy_mean`` and ``accuracy_std`` over seeds at
        ``best_learning_rate``, ``accuracies`` (a list, by seed), ``statuses`` (the same),
        ``steps_to_90`` (mean over seeds, None unless all got there), ``state_size``,
        ``num_params``, ``tokens_per_second``, ``train_seconds``, ``compile_seconds``, and
        ``rates``: a list of ``learning_rate``, ``accuracy_mean``, ``accuracy_std``,
        ``accuracies``, ``statuses`` and ``steps_to_90`` for each learning rate.

    Examples:
        >>> member = {"seed": 0, "steps_to_90": None, "status": "finished"}
        >>> result = {"state_size": 8, "num_params": 9, "tokens_per_second": 1.0,
        ...           "train_seconds": 1.0, "compile_seconds": 1.0,
        ...           "members": [member | {"learning_rate": 0.1, "eval_accuracy": 0.5},
        ...                       member | {"learning_rate": 0.2, "eval_accuracy": 0.7}]}
        >>> row("ssd", result)["best_learning_rate"]
        0.2
    """
    by_rate: dict[float, list[Mapping[str, Any]]] = {}
    for member in result["members"]:
        by_rate.setdefault(member["learning_rate"], []).append(member)
    rates = [_rate(learning_rate, members) for learning_rate, members in by_rate.items()]
    best = min(
        rates,
        key=lambda rate: (
            -rate["accuracy_mean"],
            math.inf if rate["steps_to_90"] is None else rate["steps_to_90"],
            rate["learning_rate"],
        ),
    )
    copied = ("state_size", "num_params", "tokens_per_second", "train_seconds", "compile_seconds")
    return {
        "mixer": name,
        **{key: value for key, value in best.items() if key != "learning_rate"},
        "best_learning_rate": best["learning_rate"],
        **{key: result[key] for key in copied},
        "rates": rates,
    }


def _rate(learning_rate: float, members: list[Mapping[str, Any]]) -> dict[str, Any]:
    accuracies = [
        0.0 if member["status"] == "diverged" else member["eval_accuracy"] for member in members
    ]
    steps = [member["steps_to_90"] for member in members]
    return {
        "learning_rate": learning_rate,
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "accuracies": accuracies,
        "statuses": [member["status"] for member in members],
        "steps_to_90": None if None in steps else statistics.fmean(steps),
    }
