"""How a member ended, as one record, and what a comparison says of the members of a run.

`MemberResult` is what the table, the report and the experiments read. It is a row of
``results.sqlite`` (:mod:`dsfjax.training.storage.store`); the files of a run, whose format is in
:mod:`dsfjax.training.runs`, are where it is made from.

The *score* of a member is its number of the metric that decides on the task, such as the accuracy.
The record and the store call it so. In the files of a run and in the rows of a comparison a number
has the name of its metric instead (``eval_accuracy``, ``mse_mean``), so that numbers of two metrics
never share a column; what was written before tasks had metrics has names of that form.

A *point* is one value of every axis but the seeds, usually just a learning rate. The best is the
one with the best held-out score, averaged over its seeds; ties go to the one whose seeds got to
90 % accuracy sooner, then to the smaller values, the learning rate first. A diverged member counts
as the worst score: 0 of an accuracy, ∞ of a loss. The standard deviation is that of a sample
(n − 1), and 0 for one seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dsfjax.tasks import ACCURACY, Metric
from dsfjax.tasks.metric import from_json, to_json
from dsfjax.training.config import AXES, Member, TrainConfig
from dsfjax.training.storage import serial

FORMAT = 3
FORMATS = (2, FORMAT)
"""Those of ``result.json`` that can be read; in format 2 stopped members count in the tokens/s."""
STOPPED = ("result.json", "failure.json")
"""The files of which a run has one when it is over: it is finished, or it has failed."""
TIMES = ("train_seconds", "compile_seconds", "tokens_per_second")
"""What all members of a run share of ``MemberResult.timing``."""
READ = ("memory_bytes", "mfu")
"""What they share, too, where the run has it (:mod:`dsfjax.training.meter`)."""


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
        train_score: Score over these steps.
        eval_loss: Loss on the held-out examples at the last evaluation.
        eval_score: Score there.
        also: Name of each further metric of the task to its value there.
        measured: The metrics of the task; the first decides and is the score's.
        steps_to_90: First evaluated step with at least 90 % accuracy; None if there was none, or if
            the score is no accuracy: on other scales no level means the same on every task.
        num_params: Number of trained parameters.
        state_size: Numbers that all layers carry at the end of a sequence.
        config: Config of the program, as JSON data.
        metrics: The member's evaluations in order, as JSON data.
        environment: What the program ran on (:mod:`dsfjax.training.storage.environment`).
        timing: Wall times of the program, its memory, and when it was finished.
    """

    run: str
    member: int
    mixer: str
    point: Member
    status: str
    reason: str | None = None
    step: int | None = None
    train_loss: float | None = None
    train_score: float | None = None
    eval_loss: float | None = None
    eval_score: float | None = None
    also: Mapping[str, float | None] = field(default_factory=dict)
    measured: tuple[Metric, ...] = (ACCURACY,)
    steps_to_90: int | None = None
    num_params: int | None = None
    state_size: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] | None = None
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The metric of the score."""
        return self.measured[0]

    @property
    def score(self) -> float:
        """Final held-out score as it is compared: the worst for a member that diverged."""
        return self.of(self.metric)

    def of(self, metric: Metric) -> float:
        """The final held-out value of a metric, as it is compared.

        Args:
            metric: One of `measured`.
        """
        value = self.eval_score if metric == self.metric else self.also.get(metric.name)
        return metric.known(None if self.status == "diverged" else value)

    def steps_to(self, level: float) -> int | None:
        """The first evaluated step with a score of ``level`` or better, or None."""
        return first_step(self.metrics, level, self.metric)

    def columns(self) -> dict[str, Any]:
        """The record as a flat row: a column per field, and for ``point`` one per axis."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        own["measured"] = to_json(self.measured)
        flat: dict[str, Any] = {}
        for name, value in own.items():
            flat |= value._asdict() if name == "point" else {name: value}
        return flat

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> "MemberResult":
        """The record of a flat row; the inverse of `columns`.

        Args:
            row: A value per column; columns that are absent or None have their defaults.
        """
        own = {x.name: row[x.name] for x in fields(cls) if row.get(x.name) is not None}
        own["measured"] = from_json(row.get("measured"))
        return cls(point=Member(*(row.get(axis.name) for axis in AXES)), **own)


def in_result(result: MemberResult) -> dict[str, Any]:
    """What ``result.json`` says of a member apart from its index and its point.

    Args:
        result: How it ended.

    Returns:
        Its status, its last step, and its numbers under the names of their metrics.
    """
    name = result.metric.name
    return {
        "status": result.status,
        "step": result.step,
        "train_loss": result.train_loss,
        f"train_{name}": result.train_score,
        "eval_loss": result.eval_loss,
        f"eval_{name}": result.eval_score,
        **{f"eval_{other}": value for other, value in result.also.items()},
        "steps_to_90": result.steps_to_90,
    }


def _from_result(said: Mapping[str, Any], measured: tuple[Metric, ...]) -> dict[str, Any]:
    """The fields of a `MemberResult` that `in_result` is made of."""
    first, *others = (metric.name for metric in measured)
    same = ("status", "step", "train_loss", "eval_loss", "steps_to_90")
    return {
        **{name: said[name] for name in same},
        "train_score": said[f"train_{first}"],
        "eval_score": said[f"eval_{first}"],
        "also": {name: said[f"eval_{name}"] for name in others},
    }


def first_step(lines: Sequence[Mapping[str, Any]], level: float, metric: Metric) -> int | None:
    """The first evaluated step with a score of ``level`` or better.

    Args:
        lines: Evaluations of one member, in order.
        level: A score.
        metric: The score's.

    Returns:
        The step, or None if there is none.
    """
    name, enough = f"eval_{metric.name}", metric.order(level)
    return next((line["step"] for line in lines if metric.order(line[name]) <= enough), None)


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
        "measured": config.task.measured(),
    }
    if failed:
        common |= {"status": "failed", "reason": ended["reason"]}
    else:
        when = {} if finished_at is None else {"finished_at": finished_at}
        common |= {name: ended[name] for name in ("num_params", "state_size")}
        common["timing"] = when | {name: ended[name] for name in TIMES}
        common["timing"] |= {name: ended[name] for name in READ if name in ended}
    left_out = {"member", "tokens_per_second", *READ, *Member._fields}
    found = []
    for index, point in enumerate(config.members):
        own = {} if failed else _from_result(ended["members"][index], config.task.measured())
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
        ``train_seconds``, ``compile_seconds``, ``memory_bytes`` and ``mfu`` where the run has them,
        and ``rates``: for each point its axes,
        ``accuracy_mean``, ``accuracy_std``, ``accuracies``, ``statuses`` and ``steps_to_90``.
        ``status`` is "finished". Of a run that failed there are ``mixer``, ``status`` and
        ``reason``. A task that has other metrics has their names in place of the accuracy's, and
        ``measured`` says what they are (`measured_in`); infinite values are None.

    Examples:
        >>> from dsfjax.training.config import grid
        >>> pair = grid(learning_rates=(0.1, 0.2))
        >>> found = [MemberResult(run="ssd", member=i, mixer="ssd", point=pair[i], eval_score=x,
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
    metric, measured = first.metric, first.measured
    best = min(
        rates,
        key=lambda rate: (
            metric.order(rate[f"{metric.name}_mean"]),
            math.inf if rate["steps_to_90"] is None else rate["steps_to_90"],
            *(rate[name] or 0.0 for name in POINT),
        ),
    )
    return {
        "mixer": first.run,
        "status": "finished",
        **({} if measured == (ACCURACY,) else {"measured": to_json(measured)}),
        **{key: value for key, value in best.items() if key not in POINT},
        "best": {key: best[key] for key in POINT},
        "best_learning_rate": best["learning_rate"],
        "state_size": first.state_size,
        "num_params": first.num_params,
        **{name: first.timing.get(name) for name in reversed(TIMES)},
        **{name: first.timing[name] for name in READ if name in first.timing},
        "rates": rates,
    }


def measured_in(row: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of the numbers of a row of a comparison; the first decides.

    Args:
        row: As `row` makes it.
    """
    return from_json(row.get("measured"))


def mean_in(row: Mapping[str, Any], metric: Metric) -> tuple[float, float]:
    """Mean and standard deviation of a metric in a row of a comparison.

    Args:
        row: As `row` makes it.
        metric: One of `measured_in`.

    Returns:
        Both; where a seed diverged and the metric's worst value is infinite, that and 0.
    """
    mean, std = (row[f"{metric.name}_{what}"] for what in ("mean", "std"))
    return metric.known(mean), std or 0.0


def _rate(point: tuple[Any, ...], members: Sequence[MemberResult]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric in members[0].measured:
        values = [member.of(metric) for member in members]
        mean, name = statistics.fmean(values), metric.name
        finite = math.isfinite(mean)
        std = statistics.stdev(values) if len(values) > 1 and finite else 0.0
        found |= {
            f"{name}_mean": _number(mean),
            f"{name}_std": std if finite else None,
            name[:-1] + "ies" if name.endswith("y") else f"{name}s": [_number(x) for x in values],
        }
    steps = [member.steps_to_90 for member in members]
    known = [step for step in steps if step is not None]
    return {
        **dict(zip(POINT, point, strict=True)),
        **found,
        "statuses": [member.status for member in members],
        "steps_to_90": statistics.fmean(known) if len(known) == len(steps) else None,
    }


def _number(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
