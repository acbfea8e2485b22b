"""What is asked of trained models after their runs: the test split, and their eigenvalues.

Both are kept in the folder of the run, so that an experiment that is run again finds them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsfjax.aspects.eigenvalues import EIGENVALUES
from dsfjax.report.examine import examine
from dsfjax.tasks import Generated, Metric, Task
from dsfjax.tasks.data.splits import TEST, VALIDATION
from dsfjax.training import Loaded, TrainConfig, load, score, score_lengths
from dsfjax.training.runs import program_of
from dsfjax.training.storage import files

TEST_EXAMPLES = 5_000
"""At most as many examples of a test split are scored, the first of a fixed shuffle."""
LENGTH_EXAMPLES = 128
"""At most as many sequences of each length are scored."""
SEQUENCES = 4
"""Held-out sequences whose eigenvalues are counted."""


def test_task(task: Task) -> Task | None:
    """The task with its test split held out.

    Args:
        task: The task of a run.

    Returns:
        None unless the run held out the validation split.
    """
    if getattr(task, "judged_on", None) != VALIDATION:
        return None
    return dataclasses.replace(task, judged_on=TEST)  # type: ignore[type-var]


def look(
    config: TrainConfig, folder: Path, rate: float, factors: Sequence[int] = ()
) -> dict[str, Any]:
    """Score the members of one learning rate on the test split, and read the best one's systems.

    Args:
        config: The config of a finished run.
        folder: Its folder.
        rate: The learning rate.
        factors: Lengths over the training length at which they are scored, too, from each start of
            `dsfjax.training.generalisation`.

    Returns:
        JSON data: ``test``, for each seed the task's metrics, empty where no validation split was
        held out; ``spectra``, for each layer of the best seed quantiles of |λ| of the normalised
        transitions, the share that grows (|λ| > 1) and whether all are real and positive;
        ``lengths``, for each start and factor the length, the scores of the seeds and that of the
        trivial answer.
    """
    path = folder / ("lengths.json" if factors else "after.json")
    owner = {"config": config.fingerprint, "rate": rate, "factors": list(factors)}
    if path.exists() and (known := files.read_json(path)).get("owner") == owner:
        return known
    loaded = load(folder)
    chosen = [
        member
        for member in loaded.members
        if member.point.learning_rate == rate and member.status != "diverged"
    ]
    model, judged = program_of(config).model, test_task(config.task)
    test: dict[str, Any] = {}
    for member in chosen if judged else []:
        found = score(
            model,
            judged,  # type: ignore[arg-type]
            _params(loaded, member.member),
            num_examples=TEST_EXAMPLES,
            batch_size=config.batch_size,
        )
        test[str(member.point.seed)] = {name: found[name] for name in _metrics(config.task)}
    spectra: list[dict[str, Any]] = []
    if chosen:
        best = min(chosen, key=lambda member: config.task.metric.order(member.score))
        spectra = _spectra(config, loaded, best.member)
    longer = _lengths(config, [_params(loaded, member.member) for member in chosen], factors)
    found = {"owner": owner, "test": test, "spectra": spectra, "lengths": longer}
    files.write_json(path, found)
    return found


def _spectra(config: TrainConfig, loaded: Loaded, member: int) -> list[dict[str, Any]]:
    model, params = program_of(config).model, _params(loaded, member)
    found = examine(model, params, config.task, count=SEQUENCES, looks=(EIGENVALUES,))
    return [
        {name: read(layer) for name, read in EIGENVALUES.numbers.items()}
        | {"positive": layer.is_positive}
        for layer in found[EIGENVALUES.name]
    ]


def _lengths(
    config: TrainConfig, seeds: Sequence[Any], factors: Sequence[int]
) -> list[dict[str, Any]]:
    if not (factors and isinstance(config.task, Generated)):
        return []
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for params in seeds:
        scored = score_lengths(
            program_of(config).model,
            config.task,
            params,
            factors=factors,
            num_examples=min(LENGTH_EXAMPLES, config.eval_examples),
            batch_size=config.batch_size,
        )
        for one in scored:
            trivial = config.task.lengthened(one.factor).trivial().score
            new = {"start": one.start, "factor": one.factor, "length": one.length}
            new |= {"scores": [], "trivial": trivial}
            found.setdefault((one.start, one.factor), new)["scores"].append(one.score)
    return list(found.values())


def _params(loaded: Loaded, member: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[member], loaded.params)


def _metrics(task: Task) -> tuple[str, ...]:
    return tuple(metric.name for metric in task.measured())


def seeds_of(
    scores: Mapping[str, Mapping[str, float]], metric: Metric, seeds: Sequence[int]
) -> Any:
    """A metric of every seed on the test split; the worst value where training diverged.

    Args:
        scores: ``test`` of `look`.
        metric: The metric.
        seeds: All seeds that were trained.

    Returns:
        Array (seeds,).
    """
    return np.array([scores.get(str(seed), {}).get(metric.name, metric.worst) for seed in seeds])
