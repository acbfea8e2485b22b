r"""Attention whose keys are moved by a transition: x_{ts} = q_tᵀ A_t ⋯ A_{s+1} k_s.

The products of the A_t are those of a linear recurrence with the keys as its inputs, so chunks of
steps serve here as well (Yang et al. 2025, arXiv:2505.16381, for Householder products). Within a
chunk, one loop over its steps moves the keys forward to the end of the chunk and another moves the
queries back to its beginning; on the way they give the scores of the chunk. A query then visits the
chunks before its own, the latest first. Between two of them it is moved over a whole chunk, by the
product P of its A_t:

.. math:: x_{ts} = (A_{a}^\top \cdots A_t^\top q_t)^\top \, P_{i-1} \cdots P_{j+1} \,
          (A_b \cdots A_{s+1} k_s)

for t in chunk i, which begins at a, and s in chunk j < i, which ends at b. Nothing is divided by a
product, so any matrices will do. The sums over keys are made in `dsfjax.engines.softmax`. The
backward pass keeps the inputs and what the chunks give, O(L), and computes scores again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.varying import zeros_as
from dsfjax.core.transitions import Transition
from dsfjax.engines.recurrence import by_steps
from dsfjax.engines.softmax import (
    NEVER,
    Columns,
    Keys,
    Queries,
    Sums,
    columns_of,
    finish,
    in_blocks,
    one,
    query_blocks,
    steps_first,
)

CHUNK = 64


class Chunks(NamedTuple):
    """What the transition makes of queries and keys, the first axis counting chunks of c steps.

    Attributes:
        within: q_tᵀ A_t ⋯ A_{s+1} k_s of steps in one chunk, (N, J, R, c, c).
        q: Queries moved to the beginning of their chunk, (N, J, R, c, m).
        k: Keys moved to its end, (N, J, c, m).
        product: P, (N, J, m, m).
    """

    within: Array
    q: Array
    k: Array
    product: Array


def move(A: Transition, k: Array) -> Array:
    """Keys (S, J, m) moved over one step."""
    moved = A.apply(k.transpose(1, 2, 0)[None])[0]
    return moved.astype(k.dtype).transpose(2, 0, 1)


def in_chunks(A: Transition, q: Array, k: Array, size: int) -> Chunks:
    """Queries (L, H, m) and keys (L, J, m) in chunks of ``size`` steps.

    The steps that fill up the last chunk have no query and no key, and move nothing.
    """
    length, heads, m = k.shape
    size = min(size, length)
    arrays, now = by_steps(A, length)
    q = q.reshape(length, heads, -1, m)  # R query heads per head of keys
    # False for the steps that fill up the last chunk: `in_blocks` pads with zeros.
    real = jnp.arange(length, dtype=jnp.int32) >= 0
    inputs = [_filled(x, size) for x in arrays], *(in_blocks(x, size, 0) for x in (q, k, real))
    step = jnp.arange(size, dtype=jnp.int32)

    def chunk(inputs: Any) -> Chunks:
        arrays, q, k, real = inputs

        # The loop carries columns that move: the keys so far, zeros in the place of later ones, and
        # the product of the A_t so far, which begins as the identity. As one array A_t moves all.
        def forward(x: Array, inputs: Any) -> tuple[Array, Array]:
            arrays, q, k, real, t = inputs
            x = jnp.where(real, now(arrays).apply(x[None])[0].astype(x.dtype), x)
            # The key of a step joins after the move: A_t does not act on it.
            keys = jnp.where((step == t)[None, None], k[:, :, None], x[:, :, :size])
            scores = jnp.einsum("jrm,jms->jrs", q, keys, precision="highest")
            return jnp.concatenate([keys, x[:, :, size:]], axis=-1), scores

        def backward(x: Array, inputs: Any) -> tuple[Array, None]:
            arrays, q, real, t = inputs
            # The query joins before the move: it reads what A_t has moved, so A_tᵀ moves it.
            x = jnp.where((step == t)[None, None, None], q[..., None], x)
            # All queries of a head of keys as columns side by side, for one call of `apply`.
            flat = x.swapaxes(1, 2).reshape(heads, m, -1)
            moved = now(arrays).transpose().apply(flat[None])[0].astype(x.dtype)
            moved = moved.reshape(heads, m, -1, size).swapaxes(1, 2)
            return jnp.where(real, moved, x), None

        eye = jnp.broadcast_to(jnp.eye(m, dtype=k.dtype)[None], (heads, m, m))
        start = jnp.concatenate([zeros_as(k, (heads, m, size)), eye + zeros_as(k, eye.shape)], -1)
        end, within = jax.lax.scan(forward, start, (arrays, q, k, real, step))
        start = zeros_as(k, (heads, q.shape[2], m, size))
        first, _ = jax.lax.scan(backward, start, (arrays, q, real, step), reverse=True)
        keys, product = end[:, :, :size].swapaxes(1, 2), end[:, :, size:]
        return Chunks(jnp.moveaxis(within, 0, 2), first.swapaxes(2, 3), keys, product)

    # The backward pass runs the loops of a chunk again: otherwise it would keep their carries,
    # m + c columns at every step.
    return jax.lax.map(jax.checkpoint(chunk), inputs)


def to_the_end(chunks: Chunks, length: int) -> tuple[Array, Array]:
    """Keys (L, J, m) moved to the last step, and the product over all steps (J, m, m)."""

    # From the last chunk to the first: the product of all chunks after this one moves its keys.
    def back(product: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        k, of_chunk = inputs
        moved = jnp.einsum("jnm,jsm->jsn", product, k, precision="highest")
        return jnp.matmul(product, of_chunk, precision="highest"), moved

    heads, m = chunks.product.shape[1:3]
    eye = jnp.broadcast_to(jnp.eye(m, dtype=chunks.k.dtype)[None], (heads, m, m))
    eye = eye + zeros_as(chunks.k, eye.shape)
    product, k = jax.lax.scan(back, eye, (chunks.k, chunks.product), reverse=True)
    return steps_first(k[:, :, None], length), product


class Moving(NamedTuple):
    """Attention over keys that move.

    Attributes:
        A: Transition of the keys.
        queries: L queries.
        own: The keys of the L steps, as they are at their own step.
        own_slot: Their slots, (L,).
        past: Keys of earlier steps, moved to the step before the first; None for no past.
        past_slot: Their slots, (S,), or None.
    """

    A: Transition
    queries: Queries
    own: Keys
    own_slot: Array
    past: Keys | None
    past_slot: Array | None


def attend_moving(
    size: int, window: int | None, soft_cap: float | None, *moving: Any
) -> tuple[Array, Array]:
    """Softmax-weighted means of values (L, H, p), and log-normalisers (L, H), in chunks.

    Args:
        size: Steps per chunk.
        window: Steps back to the first key that a query sees, itself included, or None for any
            number; chunks further back are not visited.
        soft_cap: Of the system.
        moving: The fields of `Moving`.
    """
    A, queries, own, own_slot, past, past_slot = Moving(*moving)
    chunks = in_chunks(A, queries.q, own.k, size)
    count, size = chunks.k.shape[0], chunks.k.shape[2]
    rows = query_blocks(queries, size, own.k.shape[1])
    held = _columns(own_slot, own, size)._replace(k=chunks.k)
    # When the queries have passed the first chunk they stand at the last step of the past, to which
    # its keys have been moved. Those whose window keeps them from getting there see none of it.
    older = None
    if past is not None and past_slot is not None and past.k.shape[0]:
        older = _columns(past_slot, past, min(past.k.shape[0], 4 * size))
    # Chunks before its own that a query looks at. In front of the first there are empty ones, which
    # nobody sees and which move nothing.
    before = count - 1 if window is None else min(count - 1, math.ceil((window - 1) / size))
    lane = jax.tree.map(
        lambda x: jnp.concatenate([jnp.zeros((before, *x.shape[1:]), x.dtype), x]), held
    )
    nobody = jnp.full((before, size), NEVER, jnp.int32)
    lane = lane._replace(slot=jnp.concatenate([nobody, held.slot]))
    eye = jnp.eye(chunks.k.shape[-1], dtype=chunks.k.dtype)
    eye = jnp.broadcast_to(eye[None, None], (before, *chunks.product.shape[1:]))
    products = jnp.concatenate([eye, chunks.product])

    def look(sums: Sums, q: Array, row: Queries, there: Columns) -> Sums:
        raw = jnp.einsum("jrtm,jsm->jrts", q, there.k, precision="highest")
        return sums.add(*finish(soft_cap, raw, row, there)[:2], there.v)

    def of_chunk(inputs: Any) -> tuple[Array, Array]:
        i, row, within, q, here = inputs
        sums = Sums.zero(row.q, own.v.shape[-1])
        sums = sums.add(*finish(soft_cap, within, row, here)[:2], here.v)

        # The queries stand at the end of the chunk they look at; then they move to its beginning,
        # which is the end of the one before.
        def visit(carry: tuple[Array, Sums], inputs: Any) -> tuple[tuple[Array, Sums], None]:
            q, sums = carry
            there, product = inputs
            sums = look(sums, q, row, there)
            return (jnp.einsum("jrtm,jmn->jrtn", q, product, precision="highest"), sums), None

        if before:
            # With ``before`` empty chunks in front, those before chunk i begin at place i.
            strip = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, i, before, allow_negative_indices=False),
                (lane, products),
            )
            (q, sums), _ = jax.lax.scan(visit, (q, sums), strip, reverse=True)
        if older is not None:
            sums, _ = jax.lax.scan(
                lambda sums, there: (look(sums, q, row, there), None), sums, older
            )
        return sums.means()

    # Backwards the scores of a chunk are computed again: kept, they would be L × L numbers.
    index = jnp.arange(count, dtype=jnp.int32)
    found = jax.lax.map(jax.checkpoint(of_chunk), (index, rows, chunks.within, chunks.q, held))
    y, log_eta = (steps_first(x, queries.q.shape[0]) for x in found)
    return y, log_eta


def step_by_step(soft_cap: float | None, *moving: Any) -> tuple[Array, Array]:
    """`attend_moving` as it is defined: all keys move at every step."""
    A, queries, own, own_slot, past, past_slot = Moving(*moving)
    length = own.k.shape[0]
    held, slot, begin = own._replace(k=jnp.zeros_like(own.k)), own_slot, 0
    if past is not None and past_slot is not None:
        begin = past.k.shape[0]
        held = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), past, held)
        slot = jnp.concatenate([past_slot, own_slot])
    arrays, now = by_steps(A, length)
    index = jnp.arange(length, dtype=jnp.int32)

    # Keys of later steps are zeros in their slots until then, and moving keeps them so; their slots
    # lie after that of the query.
    def step(k: Array, inputs: Any) -> tuple[Array, tuple[Array, Array]]:
        t, arrays, key, query = inputs
        k = jax.lax.dynamic_update_index_in_dim(
            move(now(arrays), k), key, begin + t, 0, allow_negative_indices=False
        )
        return k, one(soft_cap, query, columns_of(slot, held._replace(k=k)))

    return jax.lax.scan(step, held.k, (index, arrays, own.k, queries))[1]


def _columns(slot: Array, keys: Keys, size: int) -> Columns:
    """Keys in blocks."""
    keys = jax.tree.map(lambda x: in_blocks(x, size, 0), keys)
    return jax.vmap(columns_of)(in_blocks(slot, size, NEVER), keys)


def _filled(x: Array, size: int) -> Array:
    """Blocks of steps, the last one filled up with its last step."""
    count = -(-x.shape[0] // size)
    widths = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, widths, mode="edge").reshape(count, size, *x.shape[1:])
