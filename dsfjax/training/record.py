"""The numbers that a run writes down; the format is in :mod:`dsfjax.training.run`."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dsfjax import nn
from dsfjax.training.config import TrainConfig
from dsfjax.training.loop import Block
from dsfjax.training.program import NOT_YET, Carry

FORMAT = 1
NUMBERS = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")


def over(config: TrainConfig, carry: Carry) -> bool:
    """Whether a run has nothing left to do.

    Args:
        config: The run's config.
        carry: Its state after a block.

    Returns:
        True once all steps are taken, all members have stopped, or (``stop_when="one_rate"``) all
        seeds of a learning rate are solved.
    """
    step, solved_at, diverged_at = jax.device_get((carry.step, carry.solved_at, carry.diverged_at))
    solved = (solved_at != NOT_YET).reshape(len(config.learning_rates), len(config.seeds))
    stopped = solved.ravel() | (diverged_at != NOT_YET)
    one_rate = config.stop_when == "one_rate" and solved.all(axis=1).any()
    return bool(step >= config.steps or stopped.all() or one_rate)


def lines(config: TrainConfig, block: Block) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` for a block.

    Args:
        config: The run's config.
        block: The block.

    Returns:
        A line per member that trained in it.
    """
    tokens = _tokens(config)
    return [
        {
            "step": block.step,
            **_member(config, index),
            **{name: _number(float(getattr(block.metrics, name)[index])) for name in NUMBERS},
            "seconds": block.seconds,
            "tokens_per_second": tokens / block.seconds,
        }
        for index in np.flatnonzero(block.metrics.active).tolist()
    ]


def result(
    config: TrainConfig, carry: Carry, lines: Sequence[dict[str, Any]], compile_seconds: float
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        config: The run's config.
        carry: Its final state.
        lines: All its metrics.
        compile_seconds: Wall time of the compilation.

    Returns:
        JSON data.
    """
    steps, solved_at, diverged_at = jax.device_get((carry.step, carry.solved_at, carry.diverged_at))
    seconds = list({line["step"]: line["seconds"] for line in lines}.values())
    members = []
    for index in range(len(solved_at)):
        own = [line for line in lines if line["member"] == index]
        if solved_at[index] != NOT_YET:
            status = "solved"
        elif diverged_at[index] != NOT_YET:
            status = "diverged"
        else:
            status = "finished" if steps >= config.steps else "stopped"
        reached = [line["step"] for line in own if (line["eval_accuracy"] or 0.0) >= 0.9]
        members.append(
            {
                **_member(config, index),
                "status": status,
                "step": own[-1]["step"],
                **{name: own[-1][name] for name in NUMBERS},
                "steps_to_90": min(reached, default=None),
            }
        )
    return {
        "format": FORMAT,
        "steps": int(steps),
        "num_params": nn.num_params(config.model),
        "state_size": nn.state_size(config.model, config.task.seq_len),
        # The median: a pause of the machine is no property of the mixer.
        "tokens_per_second": _tokens(config) / statistics.median(seconds),
        "train_seconds": sum(seconds),
        "compile_seconds": compile_seconds,
        "checkpoint": f"checkpoints/step_{int(steps):08d}",
        "members": members,
    }


def _tokens(config: TrainConfig) -> int:
    """Training tokens between two evaluations; frozen members are computed, so they count."""
    members = len(config.learning_rates) * len(config.seeds)
    return members * config.eval_every * config.batch_size * config.task.seq_len


def _member(config: TrainConfig, index: int) -> dict[str, Any]:
    rate, seed = divmod(index, len(config.seeds))
    return {
        "member": index,
        "learning_rate": config.learning_rates[rate],
        "seed": config.seeds[seed],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
