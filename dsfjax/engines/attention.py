r"""Engines of a `KernelSystem`: softmax attention over its past.

The sums over one block of keys are kept as (maximum, Σ e^{score − max}, Σ e^{score − max} v), and
blocks are combined, which never overflows and needs no L × L array (Milakov & Gimelshein 2018,
arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682). The backward pass keeps y and log η and
computes the weights of each block again, :math:`P_{ts} = e^{q_t^\top k_s} / η_t` (Dao et al. 2022,
arXiv:2205.14135):

.. math::
   ∂v_s = \sum_t P_{ts} ∂y_t, \quad
   ∂S_{ts} = P_{ts} (∂y_t^\top v_s - ∂y_t^\top y_t + ∂\log η_t), \quad
   ∂q_t = \sum_s ∂S_{ts} k_s, \quad ∂k_s = \sum_t ∂S_{ts} q_t .
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.engines.guard import finite, guarded
from dsfjax.engines.recurrence import project, split_time
from dsfjax.engines.varying import vary_alike, zeros_as

BLOCK = 128


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
    if method == "sequential" and u.shape[0] != 1:
        return _sequential(system, u, h0)
    k, v = _keys_and_values(system, u)
    offset, cache = _append(k, v, h0)
    first, start = _visible_from(system.reset, u.shape[0], offset, cache.first)
    cache = cache._replace(first=first)
    q, k, v = (x.astype(k.dtype) for x in (system.q, cache.k, cache.v))
    slot = offset + jnp.arange(u.shape[0], dtype=jnp.int32)
    arguments = vary_alike((slot, start, q, k, v))
    if u.shape[0] == 1:
        y = _one_by_one(*arguments)
    else:
        size = BLOCK if method == "chunked" else max(u.shape[0], k.shape[0])
        y = guarded(partial(_in_parallel, size, h0 is None), _one_by_one, *arguments)
    if cache.length is not None:
        # While tracing the length is unknown: an overflow shows as NaN instead of a wrong answer.
        y = jnp.where(cache.length <= k.shape[0], y, jnp.nan)
    return y.reshape(u.shape[0], -1).astype(u.dtype), cache


def _keys_and_values(system: KernelSystem, u: Array) -> tuple[Array, Array]:
    """Keys (L, G, m) and values (L, H, p) in the dtype of the sums."""
    dtype = state_dtype(system.q.dtype, u.dtype)
    return system.k.astype(dtype), values(system, u).astype(dtype)


def _in_parallel(
    size: int, own_keys: bool, slot: Array, start: Array, q: Array, k: Array, v: Array
) -> Array:
    """The means of `attend`, (L, H, p), of the finite part of queries, keys and values."""
    means: Any = attend(size, own_keys, slot, start, *finite((q, k, v)))
    return means[0].transpose(1, 0, 2)


def _one_by_one(slot: Array, start: Array, q: Array, k: Array, v: Array) -> Array:
    """The means of `attend`, (L, H, p), query by query: the definition."""

    def mean(query: tuple[Array, Array, Array]) -> Array:
        slot, start, q = query
        key_slot = jnp.arange(k.shape[0], dtype=jnp.int32)
        seen = (key_slot <= slot) & (key_slot >= start)
        scores = jnp.where(seen[None], _scores(q[None], k)[:, 0], -jnp.inf)
        maximum = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        maximum = jnp.where(jnp.isneginf(maximum), 0, maximum)  # −∞ where nothing is seen
        weights = jnp.where(seen[None], jnp.exp(scores - maximum), 0)
        total = weights.sum(axis=-1)[:, None]
        # Unseen values are taken out: as a weight of 0 they would let 0 · ∞ through.
        shown = jnp.where(seen[:, None, None], v, 0)
        value = jnp.einsum("hs,shp->hp", weights, shown, precision="highest")
        return value / jnp.where(total == 0, 1, total)

    if q.shape[0] == 1:
        return mean((slot[0], start[0], q[0]))[None]
    return jax.lax.map(mean, (slot, start, q))


def check_capacity(steps: int, cache: KVCache | None) -> None:
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
    phi = jax.nn.softmax(jnp.where(visible[None], scores, -jnp.inf), axis=-1)
    return jnp.where(visible[None], phi, 0)  # also where a score is NaN


def log_normalizer(system: KernelSystem) -> Array:
    """Logarithm of η_t, (L, H), without forming L × L arrays."""
    dtype = state_dtype(system.q.dtype)
    k, zero = system.k.astype(dtype), jnp.zeros((), jnp.int32)
    v = jnp.zeros((system.length, system.num_heads, 0), dtype)
    _, start = _visible_from(system.reset, system.length, zero, zero)
    slot = jnp.arange(system.length, dtype=jnp.int32)
    means: Any = attend(BLOCK, True, slot, start, system.q.astype(dtype), k, v)
    return means[1].T


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    size: int, own_keys: bool, slot: Array, start: Array, q: Array, k: Array, v: Array
) -> tuple[Array, Array]:
    """Softmax-weighted means of values, and the log-normalisers, in blocks of queries and keys.

    Args:
        size: Queries and keys per block.
        own_keys: Whether query t sits at slot t, so that blocks above the diagonal are skipped.
        slot: Last slot that each query sees, (L,).
        start: First slot that each query sees, (L,).
        q: (L, H, m).
        k: (S, G, m) with G groups of heads.
        v: (S, H, p).

    Returns:
        Means (H, L, p) and log η (H, L); 0 and −∞ for a query that sees nothing.
    """
    return _attend_forward(size, own_keys, slot, start, q, k, v)[0]


class _Blocks(NamedTuple):
    """Arguments of `attend` in blocks, padded; the first axis counts the blocks."""

    slot: Array
    start: Array
    q: Array
    key_slot: Array
    k: Array
    v: Array

    def scores(self, i: Array | int, j: Array | int) -> tuple[Array, Array]:
        """Scores of query block i and key block j, (H, c, c), −∞ where unseen; and what is seen."""
        seen = self.key_slot[j][None] <= self.slot[i][:, None]
        seen = seen & (self.key_slot[j][None] >= self.start[i][:, None])
        scores = jnp.where(seen[None], _scores(self.q[i], self.k[j]), -jnp.inf)
        return scores, seen


def _in_blocks(
    size: int, slot: Array, start: Array, q: Array, k: Array, v: Array
) -> tuple[_Blocks, int, int]:
    """The blocks, and how many of queries and of keys there are."""
    rows, columns = min(size, q.shape[0]), min(size, k.shape[0])
    key_slot = jnp.arange(k.shape[0], dtype=jnp.int32)
    blocks = _Blocks(
        _blocks(slot, rows, -1),  # a padded query sees nothing
        _blocks(start, rows, 0),
        _blocks(q, rows, 0),
        _blocks(key_slot, columns, jnp.iinfo(jnp.int32).max),  # a padded key is seen by none
        _blocks(k, columns, 0),
        _blocks(v, columns, 0),
    )
    return blocks, blocks.q.shape[0], blocks.k.shape[0]


def _over_pairs(
    body: Callable[[Array | int, Array | int, Any], Any],
    carry: Any,
    num_queries: int,
    num_keys: int,
    *,
    own_keys: bool,
) -> Any:
    """Run ``body(i, j, carry)`` over all pairs of blocks, or those on and below the diagonal."""
    pairs = [(i, j) for i in range(num_queries) for j in range(num_keys) if j <= i or not own_keys]
    if len(pairs) == 1:
        return body(0, 0, carry)
    i, j = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))
    return jax.lax.scan(lambda carry, ij: (body(*ij, carry), None), carry, (i, j))[0]


def _attend_forward(
    size: int, own_keys: bool, slot: Array, start: Array, q: Array, k: Array, v: Array
) -> Any:
    blocks, num_queries, num_keys = _in_blocks(size, slot, start, q, k, v)
    length, heads, p = q.shape[0], q.shape[1], v.shape[-1]
    rows = blocks.q.shape[1]

    def body(
        i: Array | int, j: Array | int, carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        old_maximum, weight, value = (x[i] for x in carry)
        scores, seen = blocks.scores(i, j)
        maximum = jnp.maximum(old_maximum, scores.max(axis=-1))
        guard = jnp.where(jnp.isneginf(maximum), 0, maximum)  # −∞ where nothing is visible yet
        weights = jnp.where(seen[None], jnp.exp(scores - guard[..., None]), 0)
        rescale = jnp.exp(old_maximum - guard)
        added = jnp.einsum("hts,shp->htp", weights, blocks.v[j], precision="highest")
        new = (
            maximum,
            rescale * weight + weights.sum(axis=-1),
            rescale[..., None] * value + added,
        )
        return tuple(x.at[i].set(y) for x, y in zip(carry, new, strict=True))  # type: ignore[return-value]

    shape = (num_queries, heads, rows)
    sums = (
        zeros_as(q, shape, fill=-jnp.inf),
        zeros_as(q, shape),
        zeros_as(q, (*shape, p)),
    )
    sums = _over_pairs(body, sums, num_queries, num_keys, own_keys=own_keys)
    maximum, weight, value = (_queries_last(x, length) for x in sums)
    y = value / jnp.where(weight == 0, 1, weight)[..., None]
    log_eta = maximum + jnp.log(weight)
    return (y, log_eta), (slot, start, q, k, v, y, log_eta)


def _attend_backward(
    size: int, own_keys: bool, kept: tuple[Array, ...], cotangents: tuple[Array, Array]
) -> tuple[None, None, Array, Array, Array]:
    slot, start, q, k, v, y, log_eta = kept
    dy, d_log_eta = cotangents
    blocks, num_queries, num_keys = _in_blocks(size, slot, start, q, k, v)
    rows, groups = blocks.q.shape[1], k.shape[1]
    common = d_log_eta - jnp.sum(dy * y, axis=-1)  # the same for all keys of a query
    common, log_eta = (_query_blocks(x, rows) for x in (common, log_eta))
    dy = _query_blocks(dy, rows)

    def body(
        i: Array | int, j: Array | int, carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        dq, dk, dv = carry
        scores, seen = blocks.scores(i, j)
        weights = jnp.where(seen[None], jnp.exp(scores - log_eta[i][..., None]), 0)
        d_weights = jnp.einsum("htp,shp->hts", dy[i], blocks.v[j], precision="highest")
        d_scores = weights * (d_weights + common[i][..., None])
        by_group = d_scores.reshape(groups, -1, *d_scores.shape[1:])
        q_i = blocks.q[i].reshape(rows, groups, -1, q.shape[-1])
        d_q = jnp.einsum("grts,sgm->tgrm", by_group, blocks.k[j], precision="highest")
        d_k = jnp.einsum("grts,tgrm->sgm", by_group, q_i, precision="highest")
        d_v = jnp.einsum("hts,htp->shp", weights, dy[i], precision="highest")
        return dq.at[i].add(d_q.reshape(dq.shape[1:])), dk.at[j].add(d_k), dv.at[j].add(d_v)

    zeros = tuple(zeros_as(x, x.shape) for x in (blocks.q, blocks.k, blocks.v))
    gradients = _over_pairs(body, zeros, num_queries, num_keys, own_keys=own_keys)
    dq, dk, dv = (
        x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[: like.shape[0]]
        for x, like in zip(gradients, (q, k, v), strict=True)
    )
    return None, None, dq, dk, dv


attend.defvjp(_attend_forward, _attend_backward)


def _blocks(x: Array, size: int, fill: int) -> Array:
    """Pad the first axis to a multiple of ``size`` and split it."""
    count = -(-x.shape[0] // size)
    x = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(count, size, *x.shape[1:])


def _query_blocks(x: Array, size: int) -> Array:
    """(H, L, …) to (blocks, H, size, …)."""
    return jnp.moveaxis(_blocks(jnp.moveaxis(x, 1, 0), size, 0), 2, 1)


def _queries_last(x: Array, length: int) -> Array:
    """(blocks, H, size, …) to (H, L, …)."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :length]


def _sequential(system: KernelSystem, u: Array, h0: KVCache | None) -> tuple[Array, KVCache]:
    """One step at a time, in a cache of the final size that is written in place."""
    if h0 is not None and h0.length is not None:
        cache = h0
    else:
        shapes = jax.eval_shape(lambda: _append(*_keys_and_values(system, u), h0)[1])
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
        y, cache = run(now, token[None], cache, method="sequential")
        return cache, y[0]

    cache, y = jax.lax.scan(body, cache, (u, xs))
    return y, cache if h0 is not None and h0.length is not None else cache._replace(length=None)
