r"""The loop over segments, with a backward pass of its own.

A segment is a run of chunks that are worked on at once; segments follow one another, which bounds
what is in memory. What a chunk algorithm does within a segment is its own affair
(`ChunkAlgorithm`). Here

.. math:: (S_k, h_{k+1}) = \mathrm{forward}(\mathrm{problem}_k, h_k), \qquad
   (∂\mathrm{problem}_k, ∂h_k) = \mathrm{backward}(\mathrm{problem}_k, h_k, ∂S_k, ∂h_{k+1}) .

The forward pass keeps its inputs and the states before every chunk and nothing else: the adjoint
recurrence runs from the last segment to the first, and each segment computes the rest again.

All segments have one shape: the sequence is cut evenly and its end filled up with steps that change
nothing (where there are such steps; a constant system has none, and its rest is run by itself). So
the body of the loop is traced and compiled once for any L, and `jax.jit` around it lets every
further trace (of the gradient, of the next layer) find it in JAX's cache.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.varying import zeros_as
from dsfjax.core.pytree import Partition, map_time
from dsfjax.engines.chunks.algorithm import ChunkAlgorithm
from dsfjax.engines.in_place import over_blocks
from dsfjax.engines.recurrence import Recurrence, split_time
from dsfjax.engines.sequential import Sequential


class Cut(NamedTuple):
    """How a sequence is cut: ``count`` segments of ``chunks`` chunks of ``chunk`` steps."""

    count: int
    chunks: int
    chunk: int

    @property
    def steps(self) -> int:
        """Steps in all, at least those of the sequence."""
        return self.count * self.chunks * self.chunk


def cut(length: int, chunk: int, segment: int) -> Cut:
    """Cut a sequence evenly into segments and chunks of at most these sizes.

    Example:
        >>> cut(1000, 32, 256)
        Cut(count=4, chunks=8, chunk=32)
        >>> cut(300, 32, 256)
        Cut(count=2, chunks=5, chunk=30)
    """
    # As many chunks and segments as the sizes ask for, and then evenly at both levels: 300 steps
    # are 10 chunks of 30 and not 9 of 32 and a rest that is filled up.
    number = -(-length // chunk)
    count = -(-number // max(1, segment // chunk))
    chunks = -(-number // count)
    return Cut(count, chunks, -(-length // (count * chunks)))


def in_segments(
    algorithm: ChunkAlgorithm, chunk: int, segment: int, problem: Recurrence, h0: Array
) -> tuple[Array, Array]:
    """Run a recurrence segment by segment.

    Args:
        algorithm: What runs a segment.
        chunk: Steps per chunk, at most.
        segment: Steps per segment, at most; a multiple of ``chunk``.
        problem: The recurrence.
        h0: State before it, (H, n, p).

    Returns:
        ``(out, h_last)`` as `dsfjax.Engine.run`; keeps O(L / chunk) states for the backward pass.
    """
    out, h_last, _ = _in_parts(algorithm, _parts(algorithm, chunk, segment, problem), h0)
    return out, h_last


def states_in_segments(
    algorithm: ChunkAlgorithm,
    chunk: int,
    segment: int,
    problem: Recurrence,
    h0: Array,
    steps: Array,
) -> tuple[Array, Array, Array]:
    """As `in_segments`, and the states after some steps (K,), as `dsfjax.Engine.states_at`.

    The states before every chunk are there. A state within a chunk is found by running the chunk
    again up to it; that is K chunks step by step, and K times the inputs of a chunk in memory.
    """
    parts = _parts(algorithm, chunk, segment, problem)
    out, h_last, starts = _in_parts(algorithm, parts, h0, keep=True)
    # The steps before which a state is known, all of them at trace time.
    first = np.concatenate([part.start + part.where.chunk * _count(part) for part in parts])
    # A last chunk that is filled up, or is all filling, has a start of its own that is not needed.
    starts = jnp.concatenate([*starts, h_last[None]])
    positions = jnp.asarray(np.append(np.minimum(first, problem.length), problem.length), "int32")
    most = max(part.where.chunk for part in parts)
    done = steps.astype(jnp.int32) + 1  # the state after step t is that before step t + 1
    which = jnp.searchsorted(positions, done, side="right").astype(jnp.int32) - 1
    begin = jnp.take(positions, which, mode="clip")
    within = begin[:, None] + jnp.arange(most, dtype=jnp.int32)[None]
    live = within < done[:, None]
    within = jnp.minimum(within, problem.length - 1)  # any step will do where none is live
    varying, assemble = split_time(problem, problem.length)

    @jax.checkpoint
    def again(now: tuple[list[Array], Array, Array]) -> Array:
        varying, live, h = now
        part = dataclasses.replace(assemble(varying).untie(), live=live)
        return Sequential().run(part, h)[1]

    chunks = [x[within] for x in varying], live, jnp.take(starts, which, axis=0, mode="clip")
    # Some at a time: the backward pass holds every state of those.
    states = jax.lax.map(again, chunks, batch_size=min(16, steps.shape[0]))
    known = (steps >= 0) & (steps < problem.length)
    return out, h_last, jnp.where(known[:, None, None, None], states, jnp.nan)


class _Part(NamedTuple):
    """Steps from ``start``, ``length`` of them and what they are filled up with."""

    problem: Recurrence
    start: int
    length: int
    where: Cut


def _count(part: _Part) -> np.ndarray:
    return np.arange(part.where.count * part.where.chunks)


def _parts(
    algorithm: ChunkAlgorithm, chunk: int, segment: int, problem: Recurrence, start: int = 0
) -> list[_Part]:
    """The sequence in one part, or where it cannot be filled up, in whole segments and a rest."""
    length, where = problem.length, cut(problem.length, chunk, segment)
    if where.steps == length:
        return [_Part(problem, start, length, where)]
    if (padded := algorithm.pad(problem, where.steps)) is not None:
        return [_Part(padded, start, length, where)]
    # No step of this transition changes nothing. So there are whole chunks, as many in every
    # segment, and then what is left, which is cut in its turn.
    number = length // chunk
    count = -(-number // max(1, segment // chunk))
    main, parts = number // count * count * chunk, []
    for a, b in ((0, main), (main, length)):
        piece = map_time(lambda x: x if x.shape[0] == 1 else x[a:b], problem)  # noqa: B023
        parts += _parts(algorithm, chunk, segment, piece, start + a)
    return parts


def _in_parts(
    algorithm: ChunkAlgorithm, parts: list[_Part], h: Array, *, keep: bool = False
) -> tuple[Array, Array, list[Any]]:
    """Outputs, the last state and, if wanted, the states before every chunk of every part."""
    outs, kept = [], []
    for part in parts:
        found = algorithm.all_segments(part.problem, h, part.where.chunk, part.where.count)
        if found is None:
            # A custom backward pass has cotangents for whole arguments: numbers that have one and
            # those that have none (signs, resets) are arguments of their own.
            partition, arrays, others = Partition.of(part.problem)
            run: Any = _run
            found = run(algorithm, part.where, keep, partition, arrays, others, h)
        out, h, starts = found
        outs.append(out[: part.length])
        kept.append(starts)
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs), h, kept


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run(
    algorithm: ChunkAlgorithm,
    where: Cut,
    keep: bool,
    partition: Partition,
    arrays: list[Array],
    others: list[Array],
    h0: Array,
) -> tuple[Array, Array, Array | None]:
    return _forward(algorithm, where, keep, partition, arrays, others, h0)[0]


def _forward(
    algorithm: ChunkAlgorithm,
    where: Cut,
    keep: bool,
    partition: Partition,
    arrays: list[Array],
    others: list[Array],
    h0: Array,
) -> tuple[tuple[Array, Array, Array | None], tuple[list[Array], list[Array], Array]]:
    """Outputs, last state and states before every chunk; and what the backward pass needs."""
    problem = partition.join(arrays, others)
    varying, assemble = split_time(problem, problem.length)

    def run(h: Array, xs: list[Array]) -> tuple[Array, tuple[Array, Array]]:
        out, h, starts = _forward_of_segment(algorithm, where.chunk, assemble(xs), h)
        return h, (out, starts)

    h, (out, starts) = over_blocks(run, where.count, h0, varying, reverse=False)
    # The states are a result only if wanted. Otherwise the backward pass would get a cotangent for
    # them, zeros of their size.
    return (out, h, starts if keep else None), (arrays, others, starts)


def _backward(
    algorithm: ChunkAlgorithm,
    where: Cut,
    keep: bool,
    partition: Partition,
    kept: tuple[list[Array], list[Array], Array],
    cotangents: tuple[Array, Array, Array | None],
) -> tuple[list[Array], None, Array]:
    arrays, others, starts = kept
    problem = partition.join(arrays, others)
    d_out, dh, d_starts = cotangents
    varying, assemble = split_time(problem, problem.length)
    # The cotangent of what varies in time is put together from the segments; that of what is
    # constant is a sum over them, and goes from one to the next with that of the state.
    moves = [x for x, flag in zip(_varies(problem), partition.is_inexact, strict=True) if flag]
    d_constant = [zeros_as(x, x.shape) for x, m in zip(arrays, moves, strict=True) if not m]

    def run(carry: Any, xs: Any) -> Any:
        dh, d_constant = carry
        varying, starts, d_out, d_starts = xs
        found, dh = _backward_of_segment(
            algorithm, where.chunk, assemble(varying), starts, d_out, dh, d_starts
        )
        d_varying = [x for x, m in zip(found, moves, strict=True) if m]
        added = [x for x, m in zip(found, moves, strict=True) if not m]
        return (dh, [x + y for x, y in zip(d_constant, added, strict=True)]), d_varying

    (dh, d_constant), d_varying = over_blocks(
        run, where.count, (dh, d_constant), (varying, starts, d_out, d_starts), reverse=True
    )
    of_varying, of_constant = iter(d_varying), iter(d_constant)
    return [next(of_varying if m else of_constant) for m in moves], None, dh


_run.defvjp(_forward, _backward)


# Functions of the module under `jax.jit`: each is traced once for all calls with equal shapes, in
# the loop, in `eval_shape` of its outputs, and in the next layer.
@partial(jax.jit, static_argnums=(0, 1))
def _forward_of_segment(
    algorithm: ChunkAlgorithm, chunk: int, problem: Recurrence, h: Array
) -> tuple[Array, Array, Array]:
    return algorithm.forward(problem, h, chunk)


@partial(jax.jit, static_argnums=(0, 1))
def _backward_of_segment(
    algorithm: ChunkAlgorithm,
    chunk: int,
    problem: Recurrence,
    starts: Array,
    d_out: Array,
    dh: Array,
    d_starts: Array | None,
) -> tuple[list[Array], Array]:
    return algorithm.backward(problem, starts, d_out, dh, d_starts, chunk)


def _varies(problem: Recurrence) -> list[bool]:
    """Per leaf, whether it has a time axis of L entries (an array without one has none)."""
    length = problem.length
    marked = map_time(lambda leaf: leaf.shape[0] == length, problem)
    return [flag is True for flag in jax.tree.leaves(marked)]
