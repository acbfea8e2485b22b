"""How a member ended, as one record; and the numbers that a run writes down.

`MemberResult` is what the table, the report and the experiments read. It is a row of
``results.sqlite`` (:mod:`dsfjax.training.store`); the files of a run, whose format is in
:mod:`dsfjax.training.run`, are where it is made from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from dsfjax import nn
from dsfjax.analysis import num_parameters, state_size
from dsfjax.training import serial
from dsfjax.training.config import AXES, Member, TrainConfig
from dsfjax.training.layout import Layout
from dsfjax.training.loop import Block
from dsfjax.training.program import NOT_YET, Carry

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
            :mod:`dsfjax.training.run`), or "failed" where its program could not be finished.
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
        environment: What the program ran on (:mod:`dsfjax.training.environment`).
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
"""What ``result.json`` says of a member beside its index and its point."""


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


def over(config: TrainConfig, progress: Carry) -> bool:
    """Whether a run has nothing left to do.

    Args:
        config: The run's config.
        progress: Its state after a block, on the host.

    Returns:
        True once all steps are taken, all members have stopped, or (``stop_when="one_rate"``) all
        seeds of a point of the other axes are solved.
    """
    solved = np.asarray(progress.solved_at != NOT_YET).reshape(-1, len(config.seeds))
    one_rate = config.stop_when == "one_rate" and solved.all(axis=1).any()
    return bool(progress.step >= config.steps or not progress.active.any() or one_rate)


def lines(config: TrainConfig, block: Block) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` for a block.

    Args:
        config: The run's config.
        block: The block.

    Returns:
        A line per member that trained in it.
    """
    active = np.flatnonzero(block.metrics.active).tolist()
    tokens = len(active) * config.eval_every * _tokens_per_step(config)
    return [
        {
            "step": block.step,
            "member": index,
            **config.members[index]._asdict(),
            **{name: _number(float(getattr(block.metrics, name)[index])) for name in NUMBERS},
            "seconds": block.seconds,
            "tokens_per_second": tokens / block.seconds,
        }
        for index in active
    ]


def result(
    config: TrainConfig,
    progress: Carry,
    lines: Sequence[dict[str, Any]],
    where: Layout,
    compile_seconds: float,
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        config: The run's config.
        progress: Its final state, on the host.
        lines: All its metrics.
        where: On how many devices and how many members at once it was computed.
        compile_seconds: Wall time of the compilation.

    Returns:
        JSON data.
    """
    model = nn.build(config.model)
    seconds = sum({line["step"]: line["seconds"] for line in lines}.values())
    steps = int(progress.step)
    members = []
    for index, point in enumerate(config.members):
        own = [line for line in lines if line["member"] == index]
        members.append(
            {
                "member": index,
                **point._asdict(),
                "status": _status(config, progress, index),
                "step": own[-1]["step"],
                **{name: own[-1][name] for name in NUMBERS},
                "steps_to_90": first_step(own, 0.9),
            }
        )
    return {
        "format": FORMAT,
        "config": config.fingerprint,
        "steps": steps,
        "num_params": num_parameters(model),
        "state_size": state_size(model, config.task.seq_len),
        "tokens_per_second": tokens_per_second(config, [m["step"] for m in members], seconds),
        "train_seconds": seconds,
        "compile_seconds": compile_seconds,
        "devices": len(where.devices),
        "members_at_once": min(where.slice_size, where.num_members),
        "checkpoint": f"checkpoints/step_{steps:08d}",
        "members": members,
    }


def _status(config: TrainConfig, progress: Carry, index: int) -> str:
    for name in ("solved", "diverged", "plateau"):
        if getattr(progress, f"{name}_at")[index] != NOT_YET:
            return name
    return "finished" if progress.step >= config.steps else "stopped"


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
    return sum(steps) * _tokens_per_step(config) / seconds


def _tokens_per_step(config: TrainConfig) -> int:
    return config.batch_size * config.task.seq_len


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
