"""How a member ended, as one record, and what a comparison says of the members of a run.

`MemberResult` is what the table, the report and the experiments read. It is a row of
``results.sqlite`` (:mod:`dsfjax.training.storage.store`); the files of a run, whose format is in
:mod:`dsfjax.training.runs`, are where it is made from.

A *point* is one value of every axis but the seeds, usually just a learning rate. The best is the
one with the highest held-out accuracy, averaged over its seeds; ties go to the one whose seeds got
to 90 % sooner, then to the smaller values, the learning rate first. A diverged member counts as
accuracy 0. The standard deviation is that of a sample (n − 1), and 0 for one seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dsfjax.training.config import AXES, Member, TrainConfig
from dsfjax.training.storage import serial

FORMAT = 3
FORMATS = (2, FORMAT)
"""Those of ``result.json`` that can be read; in format 2 stopped members count in the tokens/s."""
STOPPED = ("result.json", "failure.json")
"""The files of which a run has one when it is over: it is finished, or it has failed."""
NUMBERS = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
TIMES = ("train_seconds", "compile_seconds", "tokens_per_second")
"""What all members of a run share of ``MemberResult.timing``."""


@dataclass(frozen=True, kw_only=True)
class MemberResult:
    """How one member of a program ended. Numbers that were not finite are None.

    Attributes:
        run: Name of the program: the folder of its run in that of the sweep.
        member: Index of the member in the program.
        mixer: The architecture.
        point: Its value of each axis.
        status: "solved", "diverged", "plateau", "finished", "stopped" (see
            :mod:`dsfjax.training.runs`), or "failed" where its program could not be finished.
        reason: Why it failed, else None.
        step: The last step that it took. This and the numbers below are None where it failed.
        train_loss: Mean loss over the steps before the last evaluation.
        train_accuracy: Mean accuracy over these steps.
        eval_loss: Loss on the held-out examples at the last evaluation.
        eval_accuracy: Accuracy there.
        steps_to_90: First evaluated step with at least 90 % accuracy; None if there was none.
        num_params: Number of trained parameters.
        state_size: Numbers that all layers carry at the end of a sequence.
        config: Config of the program, as JSON data.
        metrics: The member's evaluations in order, as JSON data.
        environment: What the program ran on (:mod:`dsfjax.training.storage.environment`).
        timing: Wall times of the program, and when it was finished.
    """

    run: str
    member: int
    mixer: str
    point: Member
    status: str
    reason: str | None = None
    step: int | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    steps_to_90: int | None = None
    num_params: int | None = None
    state_size: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] | None = None
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Final held-out accuracy as it is compared: 0 for a member that diverged."""
        return 0.0 if self.status == "diverged" else self.eval_accuracy or 0.0

    def steps_to(self, level: float) -> int | None:
        """The first evaluated step with an accuracy of at least ``level``, or None."""
        return first_step(self.metrics, level)

    def columns(self) -> dict[str, Any]:
        """The record as a flat row: a column per field, and for ``point`` one per axis."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        flat: dict[str, Any] = {}
        for name, value in own.items():
            flat |= value._asdict() if name == "point" else {name: value}
        return flat

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> "MemberResult":
        """The record of a flat row; the inverse of `columns`.

        Args:
            row: A value per column; columns that are absent have their defaults.
        """
        own = {one.name: row[one.name] for one in fields(cls) if one.name in row}
        return cls(point=Member(*(row.get(axis.name) for axis in AXES)), **own)


ENDING = ("status", "step", *NUMBERS, "steps_to_90")
"""What ``result.json`` says of a member apart from its index and its point."""


def first_step(lines: Sequence[Mapping[str, Any]], level: float) -> int | None:
    """The first evaluated step with an accuracy of at least ``level``.

    Args:
        lines: Evaluations of one member, in order.
        level: An accuracy.

    Returns:
        The step, or None if there is none.
    """
    reached = (line["step"] for line in lines if (line["eval_accuracy"] or 0.0) >= level)
    return next(reached, None)


def results(
    name: str,
    config: TrainConfig,
    ended: Mapping[str, Any],
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    finished_at: float | None = None,
) -> list[MemberResult]:
    """The records of all members of a run.

    Args:
        name: Name of the run.
        config: Its config.
        ended: The content of ``result.json``, or of ``failure.json`` if it failed.
        metrics: The lines of ``metrics.jsonl``.
        environment: The content of ``environment.json``.
        finished_at: When it was finished, in seconds since 1970; None leaves it out.

    Returns:
        A record per member, in order.
    """
    failed = ended.get("status") == "failed"
    common: dict[str, Any] = {
        "run": name,
        "mixer": config.model.mixer,
        "config": serial.to_dict(config),
        "environment": environment,
    }
    if failed:
        common |= {"status": "failed", "reason": ended["reason"]}
    else:
        when = {} if finished_at is None else {"finished_at": finished_at}
        common |= {name: ended[name] for name in ("num_params", "state_size")}
        common["timing"] = when | {name: ended[name] for name in TIMES}
    left_out = {"member", "tokens_per_second", *Member._fields}
    found = []
    for index, point in enumerate(config.members):
        own = {} if failed else {name: ended["members"][index][name] for name in ENDING}
        lines = [
            {name: value for name, value in line.items() if name not in left_out}
            for line in metrics
            if line["member"] == index
        ]
        found.append(MemberResult(member=index, point=point, metrics=lines, **common, **own))
    return found


def tokens_per_second(config: TrainConfig, steps: Sequence[int], seconds: float) -> float:
    """Training tokens of all members over the time they took.

    Only the steps that a member took count. A member that has stopped is no longer computed, so
    the steps that the program takes after that are not its own.

    Args:
        config: The run's config.
        steps: How many steps each member took.
        seconds: Wall time of training and evaluation, without compilation.

    Returns:
        Tokens per second.

    Examples:
        >>> from dsfjax.nn import ModelConfig
        >>> from dsfjax import tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=32, seq_len=16)
        >>> config = TrainConfig(task, ModelConfig("ssd", vocab_size=32), batch_size=8)
        >>> tokens_per_second(config, [24, 4], 2.0)  # the second member stopped after 4 steps
        1792.0
    """
    return sum(steps) * config.batch_size * config.task.seq_len / seconds


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
