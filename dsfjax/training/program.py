"""What a *program* is: many members trained in one compiled computation.

A member is one point of a grid: a learning rate, a weight decay, a scale of the initial weights, a
dropout rate and a seed. What all members have in common is in :class:`Program` and is compiled in;
what differs is in :class:`Members` and is an argument.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dsfjax.nn import Model
from dsfjax.tasks import HELD_OUT, TRAIN, Task
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.step import TrainState

NOT_YET = -1
"""Step of an event that has not happened."""


@dataclass(frozen=True)
class Program:
    """All that a compiled program is specialised to; equal programs share one compilation.

    Attributes:
        model: The model.
        task: The task, which is hashable; its data are arguments.
        optimizer: The optimiser; its weight decay is not read, as each member has its own.
        batch_size: Examples per step and member.
        block_steps: Training steps between two evaluations.
        eval_examples: Held-out examples per evaluation.
        stop_at: Held-out accuracy from which a member counts as solved, or None.
        patience: Evaluations without a lower held-out loss after which a member stops, or None.
        shared_data: Whether all members see the same batches; by default each seed has its own.
        train_examples: Size of a fixed data set, seen in the same order in every epoch; None draws
            new examples at every step.
    """

    model: Model
    task: Task
    optimizer: OptimizerConfig
    batch_size: int
    block_steps: int
    eval_examples: int
    stop_at: float | None = None
    patience: int | None = None
    shared_data: bool = False
    train_examples: int | None = None


class Data(NamedTuple):
    """The arrays of a task with a data set; () for one that makes its examples.

    Attributes:
        train: Of the training split, a row per example.
        held_out: Of the held-out split.
    """

    train: PyTree
    held_out: PyTree


class Member(NamedTuple):
    """One point of the grid.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        init_scale: Factor on the initial weights: on the parameters that the model labels "decay",
            which are the matrices, not biases, norms or rates.
        dropout: Rate in place of those of the model that are not 0; None leaves them.
        seed: Seed of initialisation, data and dropout.
    """

    learning_rate: float
    weight_decay: float
    init_scale: float
    dropout: float | None
    seed: int


class Members(NamedTuple):
    """What differs between members, m of them; the fields are those of :class:`Member`."""

    learning_rate: Float[Array, " m"]
    weight_decay: Float[Array, " m"]
    init_scale: Float[Array, " m"]
    dropout: Float[Array, " m"] | None
    seed: Int[Array, " m"]


class Carry(NamedTuple):
    """All that a program carries from block to block.

    Attributes:
        states: Training states, with a leading member axis.
        step: Steps of the program, int32 scalar. A frozen member has taken fewer.
        best_loss: Lowest held-out loss so far, (m,).
        best_at: Step of that evaluation, (m,).
        solved_at: Step at which a member was seen to be solved, (m,); -1 while it is not.
        diverged_at: Step at which a member was seen to be non-finite, (m,); -1 while it is not.
        plateau_at: Step at which a member had been without progress for too long, (m,), or -1.
    """

    states: TrainState
    step: Int[Array, ""]
    best_loss: Float[Array, " m"]
    best_at: Int[Array, " m"]
    solved_at: Int[Array, " m"]
    diverged_at: Int[Array, " m"]
    plateau_at: Int[Array, " m"]

    @property
    def active(self) -> Bool[Array | np.ndarray, " m"]:
        """Whether a member is still training, (m,)."""
        going = [at == NOT_YET for at in (self.solved_at, self.diverged_at, self.plateau_at)]
        return going[0] & going[1] & going[2]


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


def grid(
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    *,
    weight_decays: Sequence[float] = (0.1,),
    init_scales: Sequence[float] = (1.0,),
    dropouts: Sequence[float | None] = (None,),
) -> tuple[Member, ...]:
    """Every combination of the values of each axis, seeds running fastest.

    Args:
        learning_rates: Peak learning rates.
        seeds: Seeds, non-negative.
        weight_decays: Weight decays.
        init_scales: Factors on the initial weights.
        dropouts: Dropout rates, or one None.

    Returns:
        The members, the last axis (seeds) running fastest.

    Examples:
        >>> [member.seed for member in grid([0.5, 0.25], [0, 1])]
        [0, 1, 0, 1]
    """
    axes = (learning_rates, weight_decays, init_scales, dropouts, seeds)
    return tuple(Member(*point) for point in itertools.product(*axes))


def data_of(task: Task) -> Data:
    """The data of a task on the host, in dtypes that the device has.

    Args:
        task: The task.

    Returns:
        NumPy arrays.
    """

    def canonical(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))

    return jax.tree.map(canonical, Data(task.arrays(TRAIN), task.arrays(HELD_OUT)))


def members(points: Sequence[Member]) -> Members:
    """Members as arrays, in the default float type.

    Args:
        points: The members, at least one; all with a dropout rate or all without.

    Returns:
        The arrays, each of ``len(points)``.

    Examples:
        >>> members(grid([0.5, 0.25], [0, 1])).seed.tolist()
        [0, 1, 0, 1]
    """
    rate, decay, scale, dropout, seed = zip(*points, strict=True)
    return Members(
        jnp.asarray(rate, float),
        jnp.asarray(decay, float),
        jnp.asarray(scale, float),
        None if dropout[0] is None else jnp.asarray(dropout, float),
        jnp.asarray(seed, jnp.int32),
    )
