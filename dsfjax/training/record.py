"""The numbers that a run writes down; the format is in :mod:`dsfjax.training.run`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsfjax import nn
from dsfjax.analysis import num_parameters, state_size
from dsfjax.training.config import TrainConfig
from dsfjax.training.layout import Layout
from dsfjax.training.loop import Block
from dsfjax.training.program import NOT_YET, Carry

FORMAT = 3
FORMATS = (2, FORMAT)
"""Those of ``result.json`` that can be read; in format 2 stopped members count in the tokens/s."""
STOPPED = ("result.json", "failure.json")
"""The files of which a run has one when it is over: it is finished, or it has failed."""
NUMBERS = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")


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
            "learning_rate": config.members[index].learning_rate,
            "seed": config.members[index].seed,
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
        reached = [line["step"] for line in own if (line["eval_accuracy"] or 0.0) >= 0.9]
        members.append(
            {
                "member": index,
                **point._asdict(),
                "status": _status(config, progress, index),
                "step": own[-1]["step"],
                **{name: own[-1][name] for name in NUMBERS},
                "steps_to_90": min(reached, default=None),
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
