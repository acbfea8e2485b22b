r"""Chunks of steps, with a backward pass of their own.

A chunk is an affine map of the state before it; the states at the boundaries follow from one
another, and all else from them. The backward pass is the same recurrence run backwards: only the
states at the boundaries are kept, the rest of a chunk is computed again. How a chunk is run
depends on the structure (`plan`): by matrix products (`affine`), or step by step (`elementwise`,
`stepwise`). Sequences longer than a segment are run segment by segment, which bounds what is in
memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import Partition, map_time
from dsfjax.engines.plan import CHECKPOINTED, Plan, plan
from dsfjax.engines.recurrence import Recurrence
from dsfjax.engines.varying import zeros_as


def chunked(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence chunk by chunk; keeps O(L / chunk) states for the backward pass."""
    if plan(problem, h0.shape).name == "elementwise" and problem.rank > 1:
        # That form writes and reads one vector per step.
        empty = problem.x[..., :0]
        plain = Recurrence(
            problem.A, None, empty, None, problem.forcing(), problem.reset, True, problem.precision
        )
        states, h_last = chunked(plain, h0)
        return problem.read(states), h_last
    return _in_chunks(plan(problem, h0.shape), problem, h0)


def checkpointed(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence step by step; every structure; keeps one state per chunk."""
    return _in_chunks(CHECKPOINTED, problem, h0)


def _in_chunks(form: Plan, problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    partition, arrays, others = Partition.of(problem)
    return _chunked(form, partition, arrays, others, h0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    form: Plan, partition: Partition, arrays: list[Array], others: list[Array], h0: Array
) -> tuple[Array, Array]:
    return _forward(form, partition, arrays, others, h0)[0]


class _Piece(NamedTuple):
    """``count`` segments of ``steps`` steps each, in chunks of ``chunk``, from step ``start``."""

    start: int
    count: int
    steps: int
    chunk: int


def _pieces(length: int, segment: int, chunk: int) -> list[_Piece]:
    """Whole segments, then the whole chunks that are left, then the steps that are left."""
    whole, last = length - length % segment, length % chunk
    some = length - whole - last
    pieces = [
        _Piece(0, whole // segment, segment, chunk),
        _Piece(whole, 1, some, chunk),
        _Piece(whole + some, 1, last, last),
    ]
    return [piece for piece in pieces if piece.count * piece.steps]


def _over_segments(
    run: Callable[[Any, Any], tuple[Any, Any]], piece: _Piece, carry: Any, xs: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """Run the segments of a piece one after the other, as `jax.lax.scan` would.

    Segments are read and written in place, by their position: under `jax.vmap` the scan would first
    copy every array to bring the axis of segments to the front.

    Args:
        run: ``(carry, xs of one segment) -> (carry, outputs)``.
        piece: The segments.
        carry: What goes from segment to segment.
        xs: Arrays whose first axis is time, or any multiple or fraction of it.
        reverse: From the last to the first.

    Returns:
        The last carry, and the outputs with the segments joined along the first axis.
    """
    if piece.count == 1:
        return run(carry, xs)
    sizes = jax.tree.map(lambda x: x.shape[0] // piece.count, xs)

    def at(i: Array | int) -> Any:
        return jax.tree.map(
            lambda x, size: jax.lax.dynamic_slice_in_dim(x, i * size, size), xs, sizes
        )

    like = jax.tree.leaves(carry)[0]
    shapes = jax.eval_shape(lambda carry: run(carry, at(jnp.zeros((), jnp.int32)))[1], carry)
    outs = jax.tree.map(
        lambda x: zeros_as(like, (piece.count * x.shape[0], *x.shape[1:]), x.dtype), shapes
    )

    def body(i: Array | int, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outs = state
        i = piece.count - 1 - i if reverse else i
        carry, out = run(carry, at(i))
        outs = jax.tree.map(
            lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, i * x.shape[0], 0),
            outs,
            out,
        )
        return carry, outs

    return jax.lax.fori_loop(0, piece.count, body, (carry, outs))


def _cut(piece: _Piece, x: Array) -> Array:
    return x[piece.start : piece.start + piece.count * piece.steps]


def _forward(
    form: Plan, partition: Partition, arrays: list[Array], others: list[Array], h0: Array
) -> tuple[tuple[Array, Array], tuple[list[Array], list[Array], list[Array]]]:
    """Outputs and last state; and what the backward pass needs."""
    problem = partition.join(arrays, others)
    varying, constant, assemble = _take_apart(problem)
    h, outs, boundaries = h0, [], []
    for piece in _pieces(problem.length, form.segment, form.chunk):

        def run(h: Array, xs: Any, chunk: int = piece.chunk) -> Any:
            out, h, starts = form.forward(assemble(xs, constant), h, chunk)
            return h, (out, starts)

        xs = [_cut(piece, x) for x in varying]
        h, (out, starts) = _over_segments(run, piece, h, xs, reverse=False)
        outs.append(out)
        boundaries.append(starts)
    return (_concatenate(outs), h), (arrays, others, boundaries)


def _backward(
    form: Plan,
    partition: Partition,
    kept: tuple[list[Array], list[Array], list[Array]],
    cotangents: tuple[Array, Array],
) -> tuple[list[Array], None, Array]:
    arrays, others, boundaries = kept
    problem = partition.join(arrays, others)
    d_out, dh = cotangents
    varying, constant, assemble = _take_apart(problem)
    moves = [x for x, flag in zip(_varies(problem), partition.is_inexact, strict=True) if flag]
    d_constant = [zeros_as(x, x.shape) for x, m in zip(arrays, moves, strict=True) if not m]
    parts: list[list[Array]] = []
    pieces = _pieces(problem.length, form.segment, form.chunk)
    for piece, starts in zip(reversed(pieces), reversed(boundaries), strict=True):

        def run(carry: Any, xs: Any, chunk: int = piece.chunk) -> Any:
            dh, d_constant = carry
            varying, starts, d_out = xs
            found, dh = form.backward(assemble(varying, constant), starts, d_out, dh, chunk)
            d_varying = [x for x, m in zip(found, moves, strict=True) if m]
            added = [x for x, m in zip(found, moves, strict=True) if not m]
            return (dh, [x + y for x, y in zip(d_constant, added, strict=True)]), d_varying

        xs = jax.tree.map(partial(_cut, piece), (varying, d_out))
        (dh, d_constant), part = _over_segments(
            run, piece, (dh, d_constant), (xs[0], starts, xs[1]), reverse=True
        )
        parts.append(part)
    d_varying = iter([_concatenate(xs[::-1]) for xs in zip(*parts, strict=True)])
    rest = iter(d_constant)
    return [next(d_varying if m else rest) for m in moves], None, dh


_chunked.defvjp(_forward, _backward)


def _concatenate(xs: Any) -> Array:
    return xs[0] if len(xs) == 1 else jnp.concatenate(xs)


def _varies(problem: Recurrence) -> list[bool]:
    """Per leaf, whether it has a time axis of L entries (an array without one has none)."""
    length = problem.length
    marked = map_time(lambda leaf: leaf.shape[0] == length, problem)
    return [flag is True for flag in jax.tree.leaves(marked)]


def _take_apart(
    problem: Recurrence,
) -> tuple[list[Array], list[Array], Callable[[list[Array], list[Array]], Recurrence]]:
    """Varying and constant arrays, and the function that puts such lists together again."""
    flags = _varies(problem)
    leaves, structure = jax.tree.flatten(problem)
    varying = [x for x, flag in zip(leaves, flags, strict=True) if flag]
    constant = [x for x, flag in zip(leaves, flags, strict=True) if not flag]

    def assemble(varying: list[Array], constant: list[Array]) -> Recurrence:
        rest = iter(varying), iter(constant)
        return structure.unflatten([next(rest[0] if f else rest[1]) for f in flags])

    return varying, constant, assemble
