r"""Chunks of steps, with a backward pass of their own.

A chunk is an affine map of the state before it; the states at the boundaries follow from one
another, and all else from them. The backward pass is the same recurrence run backwards: only the
states at the boundaries are kept, the rest of a chunk is computed again. How a chunk is run
depends on the structure (`plan`): by matrix products (`affine`), or step by step (`elementwise`,
`stepwise`). Sequences longer than a segment are run segment by segment, which bounds what is in
memory at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import map_time
from dsfjax.engines.plan import plan
from dsfjax.engines.recurrence import Recurrence
from dsfjax.engines.varying import zeros_as


def chunked(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence chunk by chunk; keeps O(L / chunk) states for the backward pass."""
    return _chunked(dataclasses.replace(problem, reset=None), problem.reset, h0)


@jax.custom_vjp
def _chunked(problem: Recurrence, reset: Array | None, h0: Array) -> tuple[Array, Array]:
    return _forward(problem, reset, h0)[0]


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
    problem: Recurrence, reset: Array | None, h0: Array
) -> tuple[tuple[Array, Array], tuple[Recurrence, Array | None, list[Array]]]:
    """Outputs and last state; and what the backward pass needs."""
    form = plan(problem, h0.shape)
    (varying, constant), assemble = _take_apart(problem)
    h, outs, boundaries = h0, [], []
    for piece in _pieces(problem.length, form.segment, form.chunk):

        def run(h: Array, xs: Any, chunk: int = piece.chunk) -> Any:
            arrays, reset = xs
            local = dataclasses.replace(assemble(arrays, constant), reset=reset)
            out, h, starts = form.forward(local, h, chunk)
            return h, (out, starts)

        xs = jax.tree.map(partial(_cut, piece), (varying, reset))
        h, (out, starts) = _over_segments(run, piece, h, xs, reverse=False)
        outs.append(out)
        boundaries.append(starts)
    return (_concatenate(outs), h), (problem, reset, boundaries)


def _backward(
    kept: tuple[Recurrence, Array | None, list[Array]], cotangents: tuple[Array, Array]
) -> tuple[Recurrence, None, Array]:
    problem, reset, boundaries = kept
    d_out, dh = cotangents
    form = plan(problem, dh.shape)
    (varying, constant), assemble = _take_apart(problem)
    d_constant = [zeros_as(x, x.shape) for x in constant]
    parts: list[list[Array]] = []
    pieces = _pieces(problem.length, form.segment, form.chunk)
    for piece, starts in zip(reversed(pieces), reversed(boundaries), strict=True):

        def run(carry: Any, xs: Any, chunk: int = piece.chunk) -> Any:
            dh, d_constant = carry
            arrays, reset, starts, d_out = xs
            local = dataclasses.replace(assemble(arrays, constant), reset=reset)
            d_local, dh = form.backward(local, starts, d_out, dh, chunk)
            d_varying, added = _split(d_local, problem)
            return (dh, [x + y for x, y in zip(d_constant, added, strict=True)]), d_varying

        varying_, reset_, d_out_ = jax.tree.map(partial(_cut, piece), (varying, reset, d_out))
        (dh, d_constant), part = _over_segments(
            run, piece, (dh, d_constant), (varying_, reset_, starts, d_out_), reverse=True
        )
        parts.append(part)
    d_varying = [_concatenate(xs[::-1]) for xs in zip(*parts, strict=True)]
    return assemble(d_varying, d_constant), None, dh


_chunked.defvjp(_forward, _backward)


def _concatenate(xs: Any) -> Array:
    return xs[0] if len(xs) == 1 else jnp.concatenate(xs)


def _split(x: Recurrence, like: Recurrence) -> tuple[list[Array], list[Array]]:
    """The arrays of x: those that vary in time in ``like``, and the constant ones."""
    length = like.length
    flags = jax.tree.leaves(map_time(lambda leaf: leaf.shape[0] == length, like))
    leaves = list(zip(jax.tree.leaves(x), flags, strict=True))
    return [a for a, f in leaves if f is True], [a for a, f in leaves if f is not True]


def _take_apart(
    problem: Recurrence,
) -> tuple[tuple[list[Array], list[Array]], Callable[[list[Array], list[Array]], Recurrence]]:
    """Varying and constant arrays, and the function that puts such lists together again."""
    length = problem.length
    flags = jax.tree.leaves(map_time(lambda leaf: leaf.shape[0] == length, problem))
    structure = jax.tree.structure(problem)

    def assemble(varying: list[Array], constant: list[Array]) -> Recurrence:
        rest = iter(varying), iter(constant)
        return structure.unflatten([next(rest[0] if f is True else rest[1]) for f in flags])

    return _split(problem, problem), assemble
