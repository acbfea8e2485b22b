"""The one training loop: a program, a block at a time.

All members of a program are one compiled computation (:mod:`dsfjax.training.layout` says where),
and a single run is a program with one member. Learning rates, seeds, every other axis of the
members and the length of the schedule are arguments of it, so other values of them compile nothing.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from dsfjax.training.block import start, train_block
from dsfjax.training.layout import SPLIT, WHOLE, Device, Layout, layout
from dsfjax.training.program import BlockMetrics, Carry, Member, Members, Program, members

_CARRY: Any = Carry(*([SPLIT] * len(Carry._fields)))._replace(step=WHOLE)  # type: ignore


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


class MemoryShortage(ValueError):
    """A program of which not even one member fits."""


class Compiled(NamedTuple):
    """The two computations of a program, compiled for a slice of its members.

    Attributes:
        start: ``start(members) -> carry``.
        block: ``block(carry, members, total_steps) -> (carry, metrics, progress)``; it consumes
            the carry. Progress is the carry without the training states.
        seconds: Wall time of the compilation.
        bytes: Memory that the block takes on each device, by the compiler's own account.
    """

    start: Callable[[Members], Carry]
    block: Callable[[Carry, Members, Array], tuple[Carry, BlockMetrics, Carry]]
    seconds: float
    bytes: int


@functools.lru_cache(maxsize=32)
def compile_program(program: Program, where: Layout, *, dropout: bool = False) -> Compiled:
    """Compile a program, once per process for equal arguments.

    Args:
        program: What to compile.
        where: Its layout.
        dropout: Whether members have a dropout rate of their own.

    Returns:
        The compiled computations of a slice. Their memory is that of one carry: a block consumes
        its input.
    """
    began = time.perf_counter()

    def first(which: Members) -> Carry:
        return _raw(start(program, which))

    def block(carry: Carry, which: Members, total_steps: Array) -> tuple[Carry, BlockMetrics]:
        carry, metrics = train_block(program, _typed(carry), which, total_steps)
        return _raw(carry), metrics

    split = where.split(block, (_CARRY, SPLIT, WHOLE), (_CARRY, SPLIT))

    def with_progress(*inputs: PyTree) -> tuple[Carry, BlockMetrics, Carry]:
        carry, metrics = split(*inputs)
        return carry, metrics, carry._replace(states=None)

    each, whole = where.sharding(SPLIT), where.sharding(WHOLE)
    carry_sharding: Any = jax.tree.map(where.sharding, _CARRY)
    which = _with_sharding(_shapes(where.slice_size, dropout), each)
    carry = _with_sharding(template(program, where.slice_size, dropout=dropout), carry_sharding)
    total_steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    start_jit = jax.jit(where.split(first, SPLIT, _CARRY), out_shardings=carry_sharding)
    start_compiled = start_jit.lower(which).compile()
    outputs = (carry_sharding, each, carry_sharding._replace(states=None))
    block_jit = jax.jit(with_progress, donate_argnums=0, out_shardings=outputs)
    block_compiled = block_jit.lower(carry, which, total_steps).compile()
    seconds = time.perf_counter() - began
    return Compiled(start_compiled, block_compiled, seconds, _bytes(block_compiled))


def fit(
    program: Program,
    num_members: int,
    devices: Sequence[Device],
    *,
    memory: int,
    at_most: int | None = None,
    dropout: bool = False,
) -> Layout:
    """The layout with as many members at once as fit into memory.

    The compiler says how much a slice takes before anything is allocated. If it is too much, the
    slice is made smaller in proportion and compiled again, until it fits.

    Args:
        program: The program.
        num_members: How many members it has.
        devices: The devices.
        memory: Bytes that it may take on each device.
        at_most: How many members may be computed at once, whatever fits; None for no such limit.
        dropout: Whether members have a dropout rate of their own.

    Returns:
        The layout, whose program is compiled now.

    Raises:
        MemoryShortage: If not even one member per device fits.
    """
    where = layout(num_members, devices, at_most=at_most)
    while True:
        needed = compile_program(program, where, dropout=dropout).bytes
        needed += _parked(program, where, dropout)
        if needed <= memory:
            return where
        per_device = where.slice_size // len(where.devices)
        if per_device == 1:
            raise MemoryShortage(
                f"expected one member per device to fit into {memory / 2**20:.0f} MiB, but it "
                f"takes {needed / 2**20:.0f} MiB; allow more memory, or make batch_size or the "
                "model smaller"
            )
        fewer = min(per_device - 1, max(1, int(per_device * memory / needed)))
        where = layout(num_members, devices, at_most=fewer * len(where.devices))


def template(program: Program, num_members: int, *, dropout: bool = False) -> Carry:
    """The shapes and dtypes of a program's carry; nothing is compiled or allocated.

    Args:
        program: The program.
        num_members: How many members it trains.
        dropout: Whether members have a dropout rate of their own.

    Returns:
        A carry of ``jax.ShapeDtypeStruct``, PRNG keys as their raw data.
    """
    shapes = _shapes(num_members, dropout)
    return jax.eval_shape(lambda which: _raw(start(program, which)), shapes)


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
        >>> from dsfjax.nn import ModelConfig, build
        >>> from dsfjax.tasks import mqar
        >>> from dsfjax.training.optimizer import OptimizerConfig
        >>> from dsfjax.training.program import grid, members
        >>> task = mqar.MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4)
        >>> model = build(ModelConfig("linear_attention", vocab_size=64, d_model=4, num_layers=1))
        >>> program = Program(model, mqar.sample, task, OptimizerConfig(), 4, 2, 4)
        >>> [block.step for block in run(program, members(grid([1e-3, 1e-2], [0])), steps=4)]
        [2, 4]
    """
    if steps < 1 or steps % program.block_steps:
        nearest = max(1, round(steps / program.block_steps)) * program.block_steps
        raise ValueError(
            f"expected steps to be a positive multiple of the {program.block_steps} steps of a "
            f"block, got {steps}; nearest: {nearest}"
        )
    where = where or layout(len(which.seed), jax.devices())
    compiled = compile_program(program, where, dropout=which.dropout is not None)
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
    while progress.step < steps and progress.active.any():
        began = time.perf_counter()
        step = np.asarray(progress.step + program.block_steps, np.int32)
        metrics = [_no_metrics(where.slice_size)] * len(rows)
        for i, which in enumerate(inputs):
            if seen[i].active.any():
                state, *numbers = compiled.block(_on_devices(where, states[i]), which, total_steps)
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


def _shapes(num_members: int, dropout: bool) -> Members:
    point = Member(0.0, 0.0, 1.0, 0.0 if dropout else None, 0)
    return jax.eval_shape(lambda: members([point] * num_members))


def _with_sharding(tree: PyTree, sharding: PyTree) -> PyTree:
    def one(sharding: NamedSharding, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part
        )

    return jax.tree.map(one, sharding, tree)


def _raw(carry: Carry) -> Carry:
    """With PRNG keys as their data, which NumPy can hold."""
    states = carry.states
    return carry._replace(states=states._replace(key=jax.random.key_data(states.key)))


def _typed(carry: Carry) -> Carry:
    states = carry.states
    return carry._replace(states=states._replace(key=jax.random.wrap_key_data(states.key)))


def _bytes(compiled: jax.stages.Compiled) -> int:
    found: Any = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )


def _parked(program: Program, where: Layout, dropout: bool) -> int:
    """Bytes of the slices that wait on the host, where that is the device's own memory."""
    if where.num_slices == 1 or where.devices[0].platform != "cpu":
        return 0
    carry = template(program, where.num_members - where.slice_size, dropout=dropout)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    return size // len(where.devices)


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


def _no_metrics(num_members: int) -> BlockMetrics:
    nothing: Any = np.full(num_members, np.nan)
    return BlockMetrics(nothing, nothing, nothing, nothing, nothing > 0)
