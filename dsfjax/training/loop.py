"""The one training loop: a program, a block at a time.

All members of a program are one compiled computation (:mod:`dsfjax.training.devices` says where),
and a single run is a program with one member. Learning rates, seeds, every other axis of the
members and the length of the schedule are arguments of it, so other values of them compile nothing.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from dsfjax.training.compilation import compiling
from dsfjax.training.devices import SPLIT, WHOLE, Layout, layout
from dsfjax.training.program import (
    BlockMetrics,
    Carry,
    Data,
    Members,
    Program,
    held_out_data,
    numbers,
    own,
    training_data,
)


class Block(NamedTuple):
    """A finished block, on the host.

    Attributes:
        step: Steps of the program so far.
        seconds: Wall time of the block, compilation not included.
        metrics: Numbers per member, as NumPy arrays.
        progress: The state after the block without the training states (None), as NumPy arrays.
        carry: ``carry()`` is the state after the block, as NumPy arrays, PRNG keys as their raw
            data. Only before the next block is asked for, and by every process alike.
    """

    step: int
    seconds: float
    metrics: BlockMetrics
    progress: Carry
    carry: Callable[[], Carry]


def run(
    program: Program,
    which: Members,
    steps: int,
    carry: Carry | None = None,
    *,
    where: Layout | None = None,
) -> Iterator[Block]:
    """Train until ``steps`` are taken or no member is left to train, a block at a time.

    Slices take turns block by block, waiting on the host; one with nothing left to train is passed
    over. So all members are at the same step, and a carry is that of all of them.

    Args:
        program: What to run.
        which: Its members.
        steps: Length of the run, a multiple of ``program.block_steps``; the schedule ends there.
        carry: Where to go on from, as ``Block.carry()`` gives it; None starts afresh.
        where: The layout; by default all members at once on all devices.

    Yields:
        Each block when it is done.

    Raises:
        ValueError: If ``steps`` is no positive multiple of ``program.block_steps``.

    Examples:
        >>> from dsfjax import tasks
        >>> from dsfjax.nn import ModelConfig, build
        >>> from dsfjax.training.optimizer import OptimizerConfig
        >>> from dsfjax.training.config import grid
        >>> from dsfjax.training.program import members
        >>> task = tasks.get(tasks.names()[0], vocab_size=64, seq_len=32)
        >>> model = build(ModelConfig("linear_attention", vocab_size=64, d_model=4, num_layers=1))
        >>> program = Program(model, task, OptimizerConfig(), 4, 2, 4)
        >>> which = members(grid(learning_rates=[1e-3, 1e-2]))
        >>> [block.step for block in run(program, which, steps=4)]
        [2, 4]
    """
    if steps < 1 or steps % program.block_steps:
        nearest = max(1, round(steps / program.block_steps)) * program.block_steps
        raise ValueError(
            f"expected steps to be a positive multiple of the {program.block_steps} steps of a "
            f"block, got {steps}; nearest: {nearest}"
        )
    where = where or layout(len(which.seed), jax.devices(), batch_size=program.part_size)
    compiled = compiling(dataclasses.replace(program, own=own(which)), where).result()
    rows = where.indices()
    inputs = [where.put(_take(which, index), SPLIT) for index in rows]
    total_steps = where.put(np.int32(steps), WHOLE)
    parked = where.num_slices > 1

    def leave(state: Carry) -> Carry:
        return _to_host(state) if parked else state

    if carry is None:
        states = [leave(compiled.start(which)) for which in inputs]
    else:
        states = [_take_carry(carry, index) for index in rows]
    seen = [_to_host(state._replace(states=None)) for state in states]
    progress = _join(where, seen)
    feed = _feed(program, where, int(progress.step), steps)
    while progress.step < steps and progress.active.any():
        began = time.perf_counter()
        data = next(feed)
        step = np.asarray(progress.step + program.block_steps, np.int32)
        metrics = [_no_metrics(program, where.slice_size)] * len(rows)
        for i, which in enumerate(inputs):
            if seen[i].active.any():
                state = _on_devices(where, states[i])
                state, *numbers = compiled.block(data, state, which, total_steps)
                states[i] = leave(state)
                metrics[i], seen[i] = _to_host(numbers)
            else:
                states[i], seen[i] = states[i]._replace(step=step), seen[i]._replace(step=step)
        progress = _join(where, seen)
        yield Block(
            int(step),
            time.perf_counter() - began,
            _join(where, metrics),
            progress,
            lambda: _join(where, [_to_host(state) for state in states]),
        )


def _feed(program: Program, where: Layout, step: int, steps: int) -> Iterator[Data]:
    """What each block reads, on the devices, from the block at ``step`` on.

    Of a streamed task the rows of the next block are read, by another thread that does nothing
    with JAX, while this one is computed.
    """
    held_out = where.put(held_out_data(program.task), WHOLE)
    if not program.task.streamed:
        whole = Data(where.put(training_data(program, 0), WHOLE), held_out)
        while True:
            yield whole
    with ThreadPoolExecutor(1, "dsfjax-feed") as reader:
        ahead = reader.submit(training_data, program, step)
        while step < steps:
            rows, step = ahead.result(), step + program.block_steps
            if step < steps:
                ahead = reader.submit(training_data, program, step)
            yield Data(where.put(rows, WHOLE), held_out)


def _take(tree: PyTree, index: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def _take_carry(carry: Carry, index: np.ndarray) -> Carry:
    return _take(carry._replace(step=None), index)._replace(step=np.asarray(carry.step))


def _join(where: Layout, slices: Sequence[PyTree]) -> PyTree:
    """Slices side by side, without what fills up the last; scalars are the same in all."""

    def one(*leaves: np.ndarray) -> np.ndarray:
        return np.concatenate(leaves)[: where.num_members] if leaves[0].ndim else leaves[0]

    return jax.tree.map(one, *slices)


def _on_devices(where: Layout, carry: Carry) -> Carry:
    if isinstance(carry.step, jax.Array):
        return carry
    whole = where.put(carry.step, WHOLE)
    return where.put(carry._replace(step=None), SPLIT)._replace(step=whole)


def _to_host(tree: PyTree) -> PyTree:
    """Copies as NumPy arrays, of all processes' parts."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.array(leaf)  # a view would be of memory that the next block reuses

    return jax.tree.map(one, tree)


def _no_metrics(program: Program, num_members: int) -> BlockMetrics:
    nothing: Any = np.full(num_members, np.nan)
    each: dict[str, Any] = dict.fromkeys(numbers(program.task), nothing)
    return BlockMetrics(each, each, nothing > 0)
