"""What a *program* is: many members trained in one compiled computation.

A member is one point of a grid: a value of each axis (:data:`dsfjax.training.config.AXES`), such as
a learning rate and a seed. What all members have in common is in :class:`Program` and is compiled
in; what differs is in `Members` and is an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dsfjax.nn import Model
from dsfjax.tasks import HELD_OUT, Task
from dsfjax.training.config import AXES, Member
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
        stop_at: Held-out score from which a member counts as solved, or None.
        patience: Evaluations without a lower held-out loss after which a member stops, or None.
        shared_data: Whether all members see the same batches; by default each seed has its own.
        train_examples: Size of a fixed data set, seen in the same order in every epoch; None draws
            new examples at every step.
        accumulate: Parts of a batch that are computed one after the other.
        own: Axes without a value in every config, such as "dropout", of which these members have
            values.
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
    accumulate: int = 1
    own: tuple[str, ...] = ()

    @property
    def part_size(self) -> int:
        """Examples that are computed together, which devices may divide."""
        return self.batch_size // self.accumulate


class Data(NamedTuple):
    """The arrays of a task with a data set; () for one that makes its examples.

    Attributes:
        train: Of the training split, a row per example; of a streamed task the rows of one block.
        held_out: Of the held-out split.
    """

    train: PyTree
    held_out: PyTree


Members = NamedTuple("Members", [(one.name, Any) for one in AXES])  # type: ignore[misc]
"""What differs between members: for each axis an array (m,), or None where it is not varied."""


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
        train: "loss" and the name of each of the task's metrics to its value in training.
        held_out: The same on the held-out examples.
        active: Whether the member was training in this block.
    """

    train: dict[str, Float[Array, " m"]]
    held_out: dict[str, Float[Array, " m"]]
    active: Bool[Array, " m"]


def numbers(task: Task) -> tuple[str, ...]:
    """The names in `BlockMetrics`.

    Args:
        task: The task.
    """
    return ("loss", *(metric.name for metric in task.measured()))


def data_of(program: Program) -> Data:
    """The data that the first block of a program reads, on the host.

    Args:
        program: The program.

    Returns:
        NumPy arrays, in dtypes that the device has.
    """
    return Data(training_data(program, 0), held_out_data(program.task))


def training_data(program: Program, step: int) -> PyTree:
    """What the block that starts at a step draws its examples from, on the host.

    Args:
        program: The program.
        step: The first step of the block. Only of a streamed task does it matter.

    Returns:
        NumPy arrays, in dtypes that the device has.
    """
    rows = program.task.block(step, program.block_steps, program.batch_size)
    return jax.tree.map(_canonical, rows)


def held_out_data(task: Task) -> PyTree:
    """The held-out data of a task on the host.

    Args:
        task: The task.

    Returns:
        NumPy arrays, in dtypes that the device has.
    """
    return jax.tree.map(_canonical, task.arrays(HELD_OUT))


def _canonical(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


_DTYPES = {float: float, int: jnp.int32}


def own(point: Member | Members) -> tuple[str, ...]:
    """The axes that a config need not vary, of which a member has a value.

    Args:
        point: A member, or all of them.

    Returns:
        Their names: what a program is compiled for.
    """
    return tuple(
        one.name
        for one in AXES
        if not (one.required or one.absent) and getattr(point, one.name) is not None
    )


def members(points: Sequence[Member]) -> Members:
    """Members as arrays, in the default float type.

    Args:
        points: The members, at least one; each axis has a value in all of them or in none.

    Returns:
        The arrays, each of ``len(points)``.

    Examples:
        >>> from dsfjax.training.config import grid
        >>> members(grid(learning_rates=[0.5, 0.25], seeds=[0, 1])).seed.tolist()
        [0, 1, 0, 1]
    """
    columns = zip(AXES, zip(*points, strict=True), strict=True)
    return Members(
        *(
            None if values[0] is None else jnp.asarray(values, _DTYPES[one.kind])
            for one, values in columns
        )
    )
