"""The two computations of a program, compiled for as many of its members as fit into memory.

The compiler says how much memory a slice of members takes before the first is run.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from dsfjax._util import limits
from dsfjax._util.ahead import ahead, quick_options
from dsfjax.cost.memory import Memory, memory_of
from dsfjax.training.block import start, train_block
from dsfjax.training.config import AXES, grid
from dsfjax.training.devices import SPLIT, STEPS, WHOLE, Device, Layout, layout
from dsfjax.training.program import (
    BlockMetrics,
    Carry,
    Data,
    Members,
    Program,
    data_of,
    members,
)

_CARRY: Any = Carry(*([SPLIT] * len(Carry._fields)))._replace(step=WHOLE)  # type: ignore


class Compiled(NamedTuple):
    """The two computations of a program, compiled for a slice of its members.

    Attributes:
        start: ``start(members) -> carry``.
        block: ``block(data, carry, members, total_steps) -> (carry, metrics, progress)``; it
            consumes the carry. Progress is the carry without the training states.
        seconds: Wall time of the compilation.
        bytes: Memory that the block takes on each device, by the compiler's own account.
    """

    start: Callable[[Members], Carry]
    block: Callable[[Data, Carry, Members, Array], tuple[Carry, BlockMetrics, Carry]]
    seconds: float
    bytes: int


@functools.lru_cache(maxsize=32)
def compiling(program: Program, where: Layout) -> Future[Compiled]:
    """A program that is being compiled, once per process for equal arguments.

    It is traced and lowered now, and compiled by another thread. So the next program of a sweep is
    compiled while one trains.

    Args:
        program: What to compile.
        where: Its layout.

    Returns:
        A future; its ``result()`` has the compiled computations of a slice. Their memory is that of
        one carry: a block consumes its input.
    """
    return ahead(_lower(program, where))


class _Lowered(NamedTuple):
    """Both computations, traced; ``seconds`` of work on this thread went into it."""

    start: jax.stages.Lowered
    block: jax.stages.Lowered
    seconds: float
    quick: bool

    def compile(self) -> Compiled:
        began = time.perf_counter()
        start = self.start.compile(quick_options(0))  # it runs once
        block = self.block.compile(quick_options(1) if self.quick else None)
        seconds = self.seconds + time.perf_counter() - began
        return Compiled(start, block, seconds, _bytes(block))


def _lower(program: Program, where: Layout) -> _Lowered:
    began = time.perf_counter()
    first, block, _ = _trace(program, where)
    return _Lowered(first.lower(), block.lower(), time.perf_counter() - began, where.quick)


def estimate(program: Program, where: Layout) -> Memory:
    """What a slice of a program's members will take of each device, before it is compiled.

    Args:
        program: The program.
        where: Its layout.

    Returns:
        An estimate of what `Compiled.bytes` will say, by `dsfjax.cost.memory`: parameters, state of
        the optimiser and data among the arguments, activations and gradients among the temporaries.
    """
    _, block, donated = _trace(program, where)
    return memory_of(block.jaxpr, donated)


def _trace(
    program: Program, where: Layout
) -> tuple[jax.stages.Traced, jax.stages.Traced, list[bool]]:
    """Both computations, and which arguments of the block are donated."""
    if where.shards > 1:
        program = dataclasses.replace(program, model=program.model.over(STEPS))

    def first(which: Members) -> Carry:
        return _raw(start(program, which))

    def block(
        data: Data, carry: Carry, which: Members, total_steps: Array
    ) -> tuple[Carry, BlockMetrics, Carry]:
        def together(part: tuple[Carry, Members]) -> tuple[Carry, BlockMetrics]:
            own = _typed(part[0]._replace(step=carry.step))
            after, metrics = train_block(
                program, data, own, part[1], total_steps, axis_name=where.examples
            )
            return _raw(after), metrics

        parts = carry._replace(step=None), which  # type: ignore[arg-type]
        after, metrics = jax.lax.map(together, _cut(parts, where.width))
        step = after.step[0]
        after, metrics = _uncut((after._replace(step=None), metrics))
        after = after._replace(step=step)
        return after, metrics, after._replace(states=None)

    progress = _CARRY._replace(states=None)
    split = where.split(block, (WHOLE, _CARRY, SPLIT, WHOLE), (_CARRY, SPLIT, progress))

    each, whole = where.sharding(SPLIT), where.sharding(WHOLE)
    carry_sharding: Any = jax.tree.map(where.sharding, _CARRY)
    which = _with_sharding(_shapes(program, where.slice_size), each)
    carry = _with_sharding(template(program, where.slice_size), carry_sharding)
    total_steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    start_jit = jax.jit(where.split(first, SPLIT, _CARRY), out_shardings=carry_sharding)
    outputs = (carry_sharding, each, carry_sharding._replace(states=None))
    block_jit = jax.jit(split, donate_argnums=1, out_shardings=outputs)
    data = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        data_of(program),
    )
    arguments = data, carry, which, total_steps
    donated = [part is carry for part in arguments for _ in jax.tree.leaves(part)]
    return start_jit.trace(which), block_jit.trace(*arguments), donated


def template(program: Program, num_members: int) -> Carry:
    """The shapes and dtypes of a program's carry; nothing is compiled or allocated.

    Args:
        program: The program.
        num_members: How many members it trains.

    Returns:
        A carry of ``jax.ShapeDtypeStruct``, PRNG keys as their raw data.
    """
    shapes = _shapes(program, num_members)
    return jax.eval_shape(lambda which: _raw(start(program, which)), shapes)


def _shapes(program: Program, num_members: int) -> Members:
    (point,) = grid(**{one.field: (1,) for one in AXES if one.required or one.name in program.own})
    return jax.eval_shape(lambda: members([point] * num_members))


def _with_sharding(tree: PyTree, sharding: PyTree) -> PyTree:
    def one(sharding: NamedSharding, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part
        )

    return jax.tree.map(one, sharding, tree)


def _cut(tree: PyTree, width: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), tree)


def _uncut(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


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


class MemoryShortage(ValueError):
    """A program of which not even one member fits."""


def fit(
    program: Program,
    num_members: int,
    devices: Sequence[Device],
    *,
    memory: int,
    at_most: int | None = None,
    quick: bool = False,
    shards: int = 1,
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
        quick: Compile with few optimisations.
        shards: Devices that each sequence is cut over.

    Returns:
        The layout, whose program is compiled now.

    Raises:
        MemoryShortage: If not even one member per device fits.
        ValueError: If there are too few devices for ``shards``, or a sequence cannot be cut.
    """
    laid_out = functools.partial(
        layout, num_members, devices, batch_size=program.part_size, quick=quick, shards=shards
    )
    where = laid_out(at_most=at_most)
    while True:
        needed = compiling(program, where).result().bytes
        needed += _parked(program, where)
        if needed <= memory:
            return where
        per_device = where.slice_size // where.num_groups
        if per_device == 1:
            raise MemoryShortage(
                f"expected one member per device to fit into {memory / 2**20:.0f} MiB, but it "
                f"takes {needed / 2**20:.0f} MiB; allow more memory, or make batch_size or the "
                "model smaller"
            )
        fewer = min(per_device - 1, max(1, int(per_device * memory / needed)))
        where = laid_out(at_most=fewer * where.num_groups)


def budget(devices: Sequence[Device]) -> int:
    """Bytes that a program may take on each of these devices: 80 % of what there is.

    What there is, is what the device reports; where it reports nothing, as CPUs do, the memory that
    this process may use, of which each of its devices has an equal part.

    Args:
        devices: The devices.

    Returns:
        Bytes; the same whenever it is asked for.

    Examples:
        >>> budget(jax.devices()) > 2**20
        True
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = local[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(0.8 * stats["bytes_limit"])
    return int(0.8 * limits.memory() / len(local))


def _parked(program: Program, where: Layout) -> int:
    """Bytes of the slices that wait on the host, where that is the device's own memory."""
    if where.num_slices == 1 or where.devices[0].platform != "cpu":
        return 0
    carry = template(program, where.num_members - where.slice_size)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    return size // len(where.devices)
