r"""Engines of a `KernelSystem`: softmax attention over its past.

The sums of one block of keys are kept as (maximum, Σ e^{score − max}, Σ e^{score − max} v) and
blocks are combined, which never overflows and needs no L × L array (Milakov & Gimelshein 2018,
arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.engines.recurrence import project, split_time

BLOCK = 128


class _Sums(NamedTuple):
    """Partial sums over keys for every query: (H, Lq), (H, Lq), (H, Lq, p)."""

    maximum: Array
    weight: Array
    value: Array


def run(
    system: KernelSystem, u: Array, h0: KVCache | None, *, method: str
) -> tuple[Array, KVCache]:
    """Outputs (L, H·p) and the cache after the last step.

    Args:
        system: Kernel system of length L.
        u: Tokens (L, d).
        h0: Cache of the past, or None.
        method: "materialized", "chunked" (blocks of queries and keys, O(L) memory) or "sequential"
            (a step at a time through the cache).
    """
    _check_capacity(u.shape[0], h0)
    if method == "sequential":
        return _sequential(system, u, h0)
    dtype = state_dtype(system.q.dtype, u.dtype)
    k, v = system.k.astype(dtype), values(system, u).astype(dtype)
    offset, cache = _append(k, v, h0)
    first, start = _visible_from(system.reset, u.shape[0], offset, cache.first)
    cache = cache._replace(first=first)
    k, v = cache.k.astype(dtype), cache.v.astype(dtype)
    size = BLOCK if method == "chunked" else max(u.shape[0], k.shape[0])
    sums = _by_blocks(system.q.astype(dtype), offset, start, k, v, size)
    y = (sums.value / sums.weight[..., None]).transpose(1, 0, 2)
    if cache.length is not None:
        # While tracing the length is unknown: an overflow shows as NaN instead of a wrong answer.
        y = jnp.where(cache.length <= k.shape[0], y, jnp.nan)
    return y.reshape(u.shape[0], -1).astype(u.dtype), cache


def _check_capacity(steps: int, cache: KVCache | None) -> None:
    """Raise if an allocated cache has too few spare slots, where their number is known."""
    if cache is None or cache.length is None or isinstance(cache.length, Tracer):
        return
    capacity, used = cache.k.shape[0], int(cache.length)
    if used + steps > capacity:
        raise ValueError(
            f"KVCache: expected room for {steps} more steps, got a cache with {used} of {capacity} "
            "slots in use. Allocate a larger capacity."
        )


def attention_map(system: KernelSystem) -> Array:
    """The normalised attention matrix (H, L, L), exact zeros above the diagonal."""
    dtype = state_dtype(system.q.dtype)
    t, zero = jnp.arange(system.length, dtype=jnp.int32), jnp.zeros((), jnp.int32)
    _, start = _visible_from(system.reset, system.length, zero, zero)
    visible = (t[:, None] >= t[None]) & (t[None] >= start[:, None])
    scores = _scores(system.q.astype(dtype), system.k.astype(dtype))
    return jax.nn.softmax(jnp.where(visible[None], scores, -jnp.inf), axis=-1)


def log_normalizer(system: KernelSystem) -> Array:
    """Logarithm of η_t, (L, H), without forming L × L arrays."""
    dtype = state_dtype(system.q.dtype)
    k, zero = system.k.astype(dtype), jnp.zeros((), jnp.int32)
    v = jnp.zeros((system.length, system.num_heads, 0), dtype)
    _, start = _visible_from(system.reset, system.length, zero, zero)
    sums = _by_blocks(system.q.astype(dtype), zero, start, k, v, BLOCK)
    return (sums.maximum + jnp.log(sums.weight)).T


def values(system: KernelSystem, u: Array) -> Array:
    """The values W u_t, (L, H, p)."""
    if system.W is not None:
        u = project(u, system.W, "default" if u.dtype == jnp.bfloat16 else "highest")
    return u.reshape(u.shape[0], system.num_heads, -1)


def _append(k: Array, v: Array, h0: KVCache | None) -> tuple[Array, KVCache]:
    """Add keys and values to the past; the slot of the first new one, and the new cache."""
    if h0 is None:
        zero = jnp.zeros((), jnp.int32)
        return zero, KVCache(k, v, zero)
    k, v = k.astype(h0.k.dtype), v.astype(h0.v.dtype)
    if h0.length is None:
        offset = jnp.asarray(h0.k.shape[0], jnp.int32)
        return offset, KVCache(jnp.concatenate([h0.k, k]), jnp.concatenate([h0.v, v]), h0.first)
    put = jax.lax.dynamic_update_slice_in_dim
    length = h0.length + jnp.asarray(k.shape[0], jnp.int32)
    k, v = put(h0.k, k, h0.length, 0), put(h0.v, v, h0.length, 0)
    return h0.length, KVCache(k, v, h0.first, length)


def _visible_from(
    reset: Array | None, length: int, offset: Array, first: Array
) -> tuple[Array, Array]:
    """The first slot visible after the last step, and to each step (L,)."""
    if reset is None:
        return first, jnp.broadcast_to(first, (length,))
    slot = offset + jnp.arange(length, dtype=jnp.int32)
    start = jax.lax.cummax(jnp.where(reset, slot, first))
    return start[-1], start


def _scores(q: Array, k: Array) -> Array:
    """qᵀk for every head, (H, Lq, S); the groups of k are not repeated in memory."""
    steps, heads, m = q.shape
    q = q.reshape(steps, k.shape[1], -1, m)
    scores = jnp.einsum("tgrm,sgm->grts", q, k, precision="highest")
    return scores.reshape(heads, steps, k.shape[0])


def _by_blocks(q: Array, offset: Array, start: Array, k: Array, v: Array, size: int) -> _Sums:
    """Sums over all visible keys for every query, in blocks of queries and keys."""
    (length, heads, _), slots, p = q.shape, k.shape[0], v.shape[-1]
    size = min(size, max(length, slots))
    slot = offset + jnp.arange(length, dtype=jnp.int32)

    def key_block(
        sums: _Sums, block: tuple[Array, Array, Array], q: Array, slot: Array, start: Array
    ) -> _Sums:
        k, v, key_slot = block
        visible = (key_slot[None] <= slot[:, None]) & (key_slot[None] >= start[:, None])
        scores = jnp.where(visible[None], _scores(q, k), -jnp.inf)
        maximum = jnp.maximum(sums.maximum, scores.max(axis=-1))
        # The maximum only guards against overflow: it cancels, and so has no gradient. It is −∞
        # where nothing is visible yet.
        guard = jax.lax.stop_gradient(jnp.where(jnp.isneginf(maximum), 0, maximum))
        weights = jnp.where(visible[None], jnp.exp(scores - guard[..., None]), 0)
        rescale = jnp.exp(jax.lax.stop_gradient(sums.maximum) - guard)
        value = jnp.einsum("hts,shp->htp", weights, v, precision="highest")
        return _Sums(
            jax.lax.stop_gradient(maximum),
            rescale * sums.weight + weights.sum(axis=-1),
            rescale[..., None] * sums.value + value,
        )

    def query_block(q: Array, slot: Array, start: Array) -> _Sums:
        shape = (heads, q.shape[0])
        sums = _Sums(
            jnp.full(shape, -jnp.inf, q.dtype),
            jnp.zeros(shape, q.dtype),
            jnp.zeros((*shape, p), q.dtype),
        )
        key_slot = jnp.arange(slots, dtype=jnp.int32)
        if slots <= size:
            return key_block(sums, (k, v, key_slot), q, slot, start)
        # Padded slots lie after every query, so they are never visible.
        blocks = [
            _blocks(x, size, fill)
            for x, fill in ((k, 0), (v, 0), (key_slot, jnp.iinfo(jnp.int32).max))
        ]
        body = jax.checkpoint(lambda sums, block: (key_block(sums, block, q, slot, start), None))
        return jax.lax.scan(body, sums, tuple(blocks))[0]

    if length <= size:
        return query_block(q, slot, start)
    blocks = [_blocks(x, size, 0) for x in (q, slot, start)]
    sums = jax.lax.map(lambda block: query_block(*block), tuple(blocks))
    steps = blocks[0].shape[0] * size
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(heads, steps, *x.shape[3:])[:, :length], sums
    )


def _blocks(x: Array, size: int, fill: int) -> Array:
    """Pad the first axis to a multiple of ``size`` and split it."""
    count = -(-x.shape[0] // size)
    x = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(count, size, *x.shape[1:])


def _sequential(system: KernelSystem, u: Array, h0: KVCache | None) -> tuple[Array, KVCache]:
    """One step at a time, in a cache of the final size that is written in place."""
    if h0 is not None and h0.length is not None:
        cache = h0
    else:
        shapes = jax.eval_shape(lambda: run(system, u, h0, method="materialized")[1])
        k, v = (jnp.zeros(x.shape, x.dtype) for x in (shapes.k, shapes.v))
        past, first = 0, jnp.zeros((), jnp.int32)
        if h0 is not None:
            past, first = h0.k.shape[0], h0.first
            k, v = k.at[:past].set(h0.k), v.at[:past].set(h0.v)
        cache = KVCache(k, v, first, jnp.asarray(past, jnp.int32))
    xs, rebuild = split_time(system, u.shape[0])

    def body(cache: KVCache, inputs: tuple[Array, list[Array]]) -> tuple[KVCache, Array]:
        token, arrays = inputs
        now = rebuild([x[None] for x in arrays], lambda x: x)
        y, cache = run(now, token[None], cache, method="materialized")
        return cache, y[0]

    cache, y = jax.lax.scan(body, cache, (u, xs))
    return y, cache if h0 is not None and h0.length is not None else cache._replace(length=None)
