"""What a *program* is: many members trained in one compiled computation.

A member is one learning rate with one seed. What all members have in common is in
:class:`Program` and is compiled in; what differs is in :class:`Members` and is an argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dsfjax.nn import Model
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.step import TrainState

NOT_YET = -1
"""Step of an event that has not happened."""


@dataclass(frozen=True)
class Program:
    """All that a compiled program is specialised to; equal programs share one compilation.

    Attributes:
        model: The model.
        sample: ``sample(key, task) -> example``, pure.
        task: Config of the task, hashable.
        optimizer: The optimiser without its learning rate.
        batch_size: Examples per step and member.
        block_steps: Training steps between two evaluations.
        eval_examples: Held-out examples per evaluation.
        stop_at: Held-out accuracy from which a member counts as solved, or None.
        shared_data: Whether all members see the same batches; by default each seed has its own.
    """

    model: Model
    sample: Callable[[Any, Any], PyTree]
    task: Any
    optimizer: OptimizerConfig
    batch_size: int
    block_steps: int
    eval_examples: int
    stop_at: float | None = None
    shared_data: bool = False


class Members(NamedTuple):
    """What differs between members, m of them.

    Attributes:
        learning_rate: Peak learning rates, (m,).
        seed: Seeds of initialisation, data and dropout, (m,).
    """

    learning_rate: Float[Array, " m"]
    seed: Int[Array, " m"]


class Carry(NamedTuple):
    """All that a program carries from block to block.

    Attributes:
        states: Training states, with a leading member axis.
        step: Steps of the program, int32 scalar. A frozen member has taken fewer.
        solved_at: Step at which a member was seen to be solved, (m,); -1 while it is not.
        diverged_at: Step at which a member was seen to be non-finite, (m,); -1 while it is not.
    """

    states: TrainState
    step: Int[Array, ""]
    solved_at: Int[Array, " m"]
    diverged_at: Int[Array, " m"]


class BlockMetrics(NamedTuple):
    """Per member: means over a block's training steps, and the evaluation after it, all (m,).

    Attributes:
        train_loss: Mean training loss.
        train_accuracy: Mean training accuracy.
        eval_loss: Loss on the held-out examples.
        eval_accuracy: Accuracy on the held-out examples.
        active: Whether the member was training in this block.
    """

    train_loss: Float[Array, " m"]
    train_accuracy: Float[Array, " m"]
    eval_loss: Float[Array, " m"]
    eval_accuracy: Float[Array, " m"]
    active: Bool[Array, " m"]


def members(learning_rates: Sequence[float], seeds: Sequence[int]) -> Members:
    """Every learning rate with every seed, seeds running fastest.

    Args:
        learning_rates: Peak learning rates.
        seeds: Seeds, non-negative.

    Returns:
        ``len(learning_rates) * len(seeds)`` members.

    Examples:
        >>> members([0.5, 0.25], [0, 1]).seed.tolist()
        [0, 1, 0, 1]
    """
    rate, seed = np.meshgrid(learning_rates, seeds, indexing="ij")
    return Members(jnp.asarray(rate.ravel(), float), jnp.asarray(seed.ravel(), jnp.int32))
