"""The two computations of a program, compiled for a slice of its members."""

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from dsfjax._util.ahead import ahead, quick_options
from dsfjax.training.block import start, train_block
from dsfjax.training.layout import SPLIT, WHOLE, Layout
from dsfjax.training.program import (
    BlockMetrics,
    Carry,
    Data,
    Member,
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


def compile_program(program: Program, where: Layout, *, dropout: bool = False) -> Compiled:
    """Compile a program, once per process for equal arguments, and wait for it.

    Args:
        program: What to compile.
        where: Its layout.
        dropout: Whether members have a dropout rate of their own.

    Returns:
        The compiled computations of a slice. Their memory is that of one carry: a block consumes
        its input.
    """
    return begin(program, where, dropout=dropout).result()


@functools.lru_cache(maxsize=32)
def begin(program: Program, where: Layout, *, dropout: bool = False) -> Future[Compiled]:
    """Begin to compile a program: it is traced and lowered now, and compiled by another thread.

    So the next program of a sweep is compiled while one trains.

    Args:
        program: What to compile.
        where: Its layout.
        dropout: Whether members have a dropout rate of their own.

    Returns:
        What `compile_program` waits for.
    """
    return ahead(_lower(program, where, dropout))


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


def _lower(program: Program, where: Layout, dropout: bool) -> _Lowered:
    began = time.perf_counter()

    def first(which: Members) -> Carry:
        return _raw(start(program, which))

    def block(
        data: Data, carry: Carry, which: Members, total_steps: Array
    ) -> tuple[Carry, BlockMetrics]:
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
        return after._replace(step=step), metrics

    split = where.split(block, (WHOLE, _CARRY, SPLIT, WHOLE), (_CARRY, SPLIT))

    def with_progress(*inputs: PyTree) -> tuple[Carry, BlockMetrics, Carry]:
        carry, metrics = split(*inputs)
        return carry, metrics, carry._replace(states=None)

    each, whole = where.sharding(SPLIT), where.sharding(WHOLE)
    carry_sharding: Any = jax.tree.map(where.sharding, _CARRY)
    which = _with_sharding(_shapes(where.slice_size, dropout), each)
    carry = _with_sharding(template(program, where.slice_size, dropout=dropout), carry_sharding)
    total_steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    start_jit = jax.jit(where.split(first, SPLIT, _CARRY), out_shardings=carry_sharding)
    outputs = (carry_sharding, each, carry_sharding._replace(states=None))
    block_jit = jax.jit(with_progress, donate_argnums=1, out_shardings=outputs)
    data = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        data_of(program.task),
    )
    start_lowered = start_jit.lower(which)
    block_lowered = block_jit.lower(data, carry, which, total_steps)
    return _Lowered(start_lowered, block_lowered, time.perf_counter() - began, where.quick)


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


def _shapes(num_members: int, dropout: bool) -> Members:
    point = Member(0.0, 0.0, 1.0, 0.0 if dropout else None, 0)
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
