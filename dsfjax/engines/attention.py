r"""Engines of a `KernelSystem`: softmax attention over its past.

The sums over one block of keys are kept as (maximum, Σ e^{x − max}, Σ e^{x − max} v), and blocks
are combined, which never overflows and needs no L × L array (Milakov & Gimelshein 2018,
arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682). The backward pass keeps y and log η and
computes the weights of each block again, :math:`P_{ts} = e^{x_{ts}} / η_t` (Dao et al. 2022,
arXiv:2205.14135):

.. math::
   ∂v_s = \sum_t P_{ts} ∂y_t, \quad
   ∂x_{ts} = P_{ts} (∂y_t^\top v_s - ∂y_t^\top y_t + ∂\log η_t), \quad
   ∂q_t = \sum_s ∂x_{ts} x'_{ts} k_s, \quad ∂k_s = \sum_t ∂x_{ts} x'_{ts} q_t ,

with x' the slope of the soft cap. Only blocks in which a query sees a key are visited: from the
first key that the block of queries sees (document, window) to the last.

**Decays.** The score of query t and key s has the sum of the log decays from s + 1 to t in it. It
is a difference of cumulative sums, and to keep its precision over a long past these are kept in two
parts (`Decay`). A sink is one more term of η, which is added to what the blocks give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.engines.guard import finite, guarded
from dsfjax.engines.recurrence import project, split_time
from dsfjax.engines.varying import vary_alike, zeros_as

BLOCK = 128
"""Keys per block."""

_NEVER = jnp.iinfo(jnp.int32).max  # no slot: a padded query or key
_PART = 16  # steps whose log decays are summed up plainly


class Decay(NamedTuple):
    """Cumulative log decays of steps; the decay from s to t is their difference.

    Attributes:
        coarse: Sums over whole parts of the sequence, (L, H). Differences of nearby ones are exact.
        fine: What they lack, (L, H), as small as the decay of one part.
        zeros: How many decays were exactly 0 (log −∞) so far, (L, H). Weights do not outlive one.
    """

    coarse: Array
    fine: Array
    zeros: Array


class Queries(NamedTuple):
    """What queries bring, the first axis counting them.

    Attributes:
        slot: Last slot that each query sees, (L,).
        start: First slot that each query sees, (L,).
        q: (L, H, m).
        decay: From the first query on, or None.
    """

    slot: Array
    start: Array
    q: Array
    decay: Decay | None


class Keys(NamedTuple):
    """What the slots hold: k (S, G, m) with G groups of heads, v (S, H, p), and their decays."""

    k: Array
    v: Array
    decay: Decay | None


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
    length = u.shape[0]
    if method == "sequential" and length != 1:
        return _sequential(system, u, h0)
    k, v = _keys_and_values(system, u)
    decay = cumulative(system, length)
    offset, cache, key_decay = _append(system, k, v, decay, h0)
    first, start = _visible_from(system, length, offset, cache.first)
    slot = offset + jnp.arange(length, dtype=jnp.int32)
    q, k, v = (x.astype(k.dtype) for x in (system.q, cache.k, cache.v))
    arguments = vary_alike((Queries(slot, start, q, decay), Keys(k, v, key_decay)))
    exact = partial(_one_by_one, system.soft_cap)
    if length == 1:
        means = exact(*arguments)
    else:
        sizes = (length, k.shape[0]) if method == "materialized" else (rows(), BLOCK)
        means = guarded(partial(_in_parallel, *sizes, system.soft_cap), exact, *arguments)
    y, _ = _with_sink(system, *means)
    if cache.length is not None and not _is_bounded(system, h0):
        # While tracing the length is unknown: an overflow shows as NaN instead of a wrong answer.
        y = jnp.where(cache.length <= k.shape[0], y, jnp.nan)
    return y.reshape(length, -1).astype(u.dtype), _kept(system, cache._replace(first=first), h0)


def rows() -> int:
    """Queries per block: more where the device computes many at once."""
    return BLOCK if jax.default_backend() == "cpu" else 8 * BLOCK


def _keys_and_values(system: KernelSystem, u: Array) -> tuple[Array, Array]:
    """Keys (L, G, m) and values (L, H, p) in the dtype of the sums."""
    dtype = state_dtype(system.q.dtype, u.dtype)
    return system.k.astype(dtype), values(system, u).astype(dtype)


def values(system: KernelSystem, u: Array) -> Array:
    """The values W u_t, (L, H, p)."""
    if system.W is not None:
        u = project(u, system.W, "default" if u.dtype == jnp.bfloat16 else "highest")
    return u.reshape(u.shape[0], system.num_heads, -1)


def cumulative(system: KernelSystem, length: int) -> Decay | None:
    """The decays of the steps, summed up from the first one on."""
    if system.log_decay is None:
        return None
    log_a = system.log_decay.astype(state_dtype(system.q.dtype, system.log_decay.dtype))
    log_a = jnp.broadcast_to(log_a, (length, system.num_heads))
    is_zero = jnp.isneginf(log_a)
    zeros = jnp.cumsum(is_zero, axis=0, dtype=jnp.int32)
    parts = _blocks(jnp.where(is_zero, 0, log_a), _PART, 0)
    within = jnp.cumsum(parts, axis=1)

    def add(total: tuple[Array, Array], part: Array) -> tuple[Any, tuple[Array, Array]]:
        # The rounding error of a sum of two numbers is a number again, by these five operations
        # (Knuth's two-sum).
        high, low = total
        new = high + part
        took = new - high
        error = (high - (new - took)) + (part - took)
        return (new, low + error), total

    start = zeros_as(within, within.shape[2:])
    _, (coarse, rest) = jax.lax.scan(add, (start, start), within[:, -1])
    plain = jnp.cumsum(parts.reshape(-1, parts.shape[-1]), axis=0)  # carries the gradient
    plain = (plain - jax.lax.stop_gradient(plain))[:length]

    def spread(x: Array) -> Array:
        x = jnp.broadcast_to(jax.lax.stop_gradient(x), parts.shape)
        return x.reshape(-1, parts.shape[-1])[:length]

    return Decay(spread(coarse[:, None]) + plain, spread(rest[:, None] + within), zeros)


def _in_parallel(
    num_rows: int, num_columns: int, soft_cap: float | None, queries: Queries, keys: Keys
) -> tuple[Array, Array]:
    """`attend` on the finite part of queries, keys and values."""
    return attend(num_rows, num_columns, soft_cap, *finite((queries, keys)))


def _one_by_one(soft_cap: float | None, queries: Queries, keys: Keys) -> tuple[Array, Array]:
    """`attend` query by query: the definition."""
    key_slot = jnp.arange(keys.k.shape[0], dtype=jnp.int32)
    everything = _columns(key_slot, keys)

    def mean(query: Queries) -> tuple[Array, Array]:
        one = _head_first(jax.tree.map(lambda x: x[None], query), keys.k.shape[1])
        scores, seen, _ = _scores(soft_cap, one, everything)
        scores, seen = (x.reshape(-1, x.shape[-1]) for x in (scores, seen))
        maximum = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        maximum = jnp.where(jnp.isneginf(maximum), 0, maximum)  # −∞ where nothing is seen
        weights = jnp.where(seen, jnp.exp(scores - maximum), 0)
        total = weights.sum(axis=-1)
        # Unseen values are taken out: as a weight of 0 they would let 0 · ∞ through.
        shown = jnp.where(seen.T[:, :, None], keys.v, 0)
        value = jnp.einsum("hs,shp->hp", weights, shown, precision="highest")
        value = value / jnp.where(total == 0, 1, total)[:, None]
        return value, maximum[:, 0] + jnp.log(total)

    if queries.q.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], mean(jax.tree.map(lambda x: x[0], queries)))
    return jax.lax.map(mean, queries)


def _with_sink(system: KernelSystem, y: Array, log_eta: Array) -> tuple[Array, Array]:
    """Means and log η with the sink among what is summed."""
    if system.sink is None:
        return y, log_eta
    whole = jnp.logaddexp(log_eta, system.sink.astype(log_eta.dtype)[None])
    return y * jnp.exp(log_eta - whole)[:, :, None], whole


def attention_map(system: KernelSystem) -> Array:
    """The normalised attention matrix (H, L, L), exact zeros above the diagonal."""
    scores, seen = score_rows(system)(jnp.arange(system.length, dtype=jnp.int32))
    if system.sink is not None:
        sink = system.sink.astype(scores.dtype)[:, None, None]
        sink = jnp.broadcast_to(sink, (*scores.shape[:2], 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
    phi = jax.nn.softmax(scores, axis=-1)[..., : system.length]
    return jnp.where(seen, phi, 0)  # also where a score is NaN


def score_rows(system: KernelSystem) -> Callable[[Array], tuple[Array, Array]]:
    """The function of steps t (T,) ↦ their scores x_{ts}, (H, T, L), and which s they see.

    Scores are −∞ where s is unseen.
    """
    queries, keys = _own(system)
    groups = keys.k.shape[1]
    columns = _columns(queries.slot, keys)

    def rows_at(t: Array) -> tuple[Array, Array]:
        some = _head_first(jax.tree.map(lambda x: x[t], queries), groups)
        scores, seen, _ = _scores(system.soft_cap, some, columns)
        shape = (system.num_heads, t.shape[0], system.length)
        return scores.reshape(shape), jnp.broadcast_to(seen, scores.shape).reshape(shape)

    return rows_at


@jax.jit
def log_normalizer(system: KernelSystem) -> Array:
    """Logarithm of η_t, (L, H), without forming L × L arrays."""
    means: Any = attend(rows(), BLOCK, system.soft_cap, *_own(system))
    return _with_sink(system, *means)[1]


def _own(system: KernelSystem) -> tuple[Queries, Keys]:
    """The queries and keys of a system without a past, and without values."""
    length, dtype = system.length, state_dtype(system.q.dtype)
    q, k = system.q.astype(dtype), system.k.astype(dtype)
    decay, zero = cumulative(system, length), jnp.zeros((), jnp.int32)
    _, start = _visible_from(system, length, zero, zero)
    slot = jnp.arange(length, dtype=jnp.int32)
    v = jnp.zeros((length, system.num_heads, 0), dtype)
    return Queries(slot, start, q, decay), Keys(k, v, decay)


# The cache


def check_capacity(system: KernelSystem, steps: int, cache: KVCache) -> None:
    """Raise if an allocated cache has too few spare slots, where their number is known."""
    if cache.length is None or isinstance(cache.length, Tracer) or _is_bounded(system, cache):
        return
    capacity, used = cache.k.shape[0], int(cache.length)
    if used + steps > capacity:
        raise ValueError(
            f"KVCache: expected room for {steps} more steps, got a cache with {used} of {capacity} "
            "slots in use. Allocate a larger capacity."
        )


def _is_bounded(system: KernelSystem, cache: KVCache | None) -> bool:
    """Whether an allocated cache holds the whole window, so that old slots may make room."""
    return system.window is not None and cache is not None and cache.k.shape[0] >= system.window


def _append(
    system: KernelSystem, k: Array, v: Array, decay: Decay | None, h0: KVCache | None
) -> tuple[Array, KVCache, Decay | None]:
    """Add keys and values to the past.

    Returns:
        The slot of the first new one, the cache with all of them, and the decays of the slots.
    """
    if h0 is None:
        zero = jnp.zeros((), jnp.int32)
        return zero, KVCache(k, v, zero, log_weight=_to_the_end(decay, decay)), decay
    k, v = k.astype(h0.k.dtype), v.astype(h0.v.dtype)
    steps, capacity = k.shape[0], h0.k.shape[0]
    if h0.length is None:
        offset, length = jnp.asarray(capacity, jnp.int32), None
    else:
        offset, length = h0.length, h0.length + jnp.asarray(steps, jnp.int32)
    # Slots for the new steps: in an allocated cache they are there, unless old ones make room
    # afterwards (`_kept`).
    more = steps if length is None or _is_bounded(system, h0) else 0

    def put(old: Array, new: Array) -> Array:
        old = jnp.pad(old, [(0, more)] + [(0, 0)] * (old.ndim - 1))
        return jax.lax.dynamic_update_slice_in_dim(old, new, offset, 0)

    key_decay = None
    if decay is not None:
        assert h0.log_weight is not None
        gone = jnp.isneginf(h0.log_weight)
        coarse = -jnp.where(gone, 0, h0.log_weight).astype(decay.coarse.dtype)
        past = Decay(coarse, jnp.zeros_like(coarse), jnp.where(gone, -1, 0).astype(jnp.int32))
        key_decay = jax.tree.map(put, past, decay)
    log_weight = _to_the_end(decay, key_decay)
    return offset, KVCache(put(h0.k, k), put(h0.v, v), h0.first, length, log_weight), key_decay


def _to_the_end(decay: Decay | None, key_decay: Decay | None) -> Array | None:
    """Logarithm of the decay of every slot up to the last step, (S, H)."""
    if decay is None or key_decay is None:
        return None
    last = jax.tree.map(lambda x: x[-1:], decay)
    log_weight = (last.coarse - key_decay.coarse) + (last.fine - key_decay.fine)
    return jnp.where(last.zeros == key_decay.zeros, log_weight, -jnp.inf)


def _kept(system: KernelSystem, cache: KVCache, h0: KVCache | None) -> KVCache:
    """The cache without the slots that no later step can see."""
    if system.window is None:
        return cache
    slots = cache.k.shape[0]
    if cache.length is None:
        size, dropped = min(slots, system.window), max(slots - system.window, 0)
    elif h0 is not None and _is_bounded(system, h0):
        size = h0.k.shape[0]
        dropped = jnp.maximum(cache.length - size, 0)
    else:
        return cache

    def cut(x: Array | None) -> Array | None:
        return None if x is None else jax.lax.dynamic_slice_in_dim(x, dropped, size)

    return KVCache(
        jax.lax.dynamic_slice_in_dim(cache.k, dropped, size),
        jax.lax.dynamic_slice_in_dim(cache.v, dropped, size),
        jnp.maximum(cache.first - dropped, 0),
        None if cache.length is None else cache.length - dropped,
        cut(cache.log_weight),
    )


def _visible_from(
    system: KernelSystem, length: int, offset: Array, first: Array
) -> tuple[Array, Array]:
    """The first slot of the last document, and the first one visible to each step (L,)."""
    slot = offset + jnp.arange(length, dtype=jnp.int32)
    if system.reset is None:
        start = jnp.broadcast_to(first, (length,))
    else:
        start = jax.lax.cummax(jnp.where(system.reset, slot, first))
        first = start[-1]
    if system.window is not None:
        start = jnp.maximum(start, slot - (system.window - 1))
    return first, start


def _sequential(system: KernelSystem, u: Array, h0: KVCache | None) -> tuple[Array, KVCache]:
    """One step at a time, in a cache of the final size that is written in place."""
    if h0 is not None and h0.length is not None:
        cache = h0
    else:
        shapes = jax.eval_shape(
            lambda: _append(
                system, *_keys_and_values(system, u), cumulative(system, u.shape[0]), h0
            )[1]
        )
        past = 0 if h0 is None else h0.k.shape[0]
        capacity = past + u.shape[0]
        if system.window is not None:
            capacity = max(min(capacity, system.window), past)
        empty = jax.tree.map(
            lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype),
            (shapes.k, shapes.v, shapes.log_weight),
        )
        first = jnp.zeros((), jnp.int32)
        if h0 is not None:
            first = h0.first
            old = (h0.k, h0.v, h0.log_weight)
            empty = jax.tree.map(lambda x, y: x.at[:past].set(y), empty, old)
        k, v, log_weight = empty
        cache = KVCache(k, v, first, jnp.asarray(past, jnp.int32), log_weight)
    xs, rebuild = split_time(system, u.shape[0])

    def body(cache: KVCache, inputs: tuple[Array, list[Array]]) -> tuple[KVCache, Array]:
        token, arrays = inputs
        now = rebuild([x[None] for x in arrays], lambda x: x)
        y, cache = run(now, token[None], cache, method="sequential")
        return cache, y[0]

    cache, y = jax.lax.scan(body, cache, (u, xs))
    if h0 is not None and h0.length is not None:
        return y, cache
    return y, _kept(system, cache._replace(length=None), h0)


# Blocks


class _Columns(NamedTuple):
    """A block of keys: slot (c,), k (G, c, m), v (G, R, c, p), decay (G, R, c)."""

    slot: Array
    k: Array
    v: Array
    decay: Decay | None


def _head_first(queries: Queries, groups: int) -> Queries:
    """A block of queries with q (G, R, r, m) and decay (G, R, r), R heads in a group."""
    turn = partial(_by_group, groups=groups)
    return queries._replace(q=turn(queries.q), decay=jax.tree.map(turn, queries.decay))


def _columns(slot: Array, keys: Keys) -> _Columns:
    """A block of keys, heads first."""
    turn = partial(_by_group, groups=keys.k.shape[1])
    decay = jax.tree.map(turn, keys.decay)
    return _Columns(slot, jnp.moveaxis(keys.k, 0, 1), turn(keys.v), decay)


def _by_group(x: Array, groups: int) -> Array:
    """(r, H, …) to (G, R, r, …)."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])


def _scores(
    soft_cap: float | None, queries: Queries, keys: _Columns
) -> tuple[Array, Array, Array | None]:
    """Scores (G, R, r, c), −∞ where unseen; what is seen; the slope of the soft cap."""
    scores = jnp.einsum("grtm,gsm->grts", queries.q, keys.k, precision="highest")
    slope = None
    if soft_cap is not None:
        bent = jnp.tanh(scores / soft_cap)
        scores, slope = soft_cap * bent, 1 - jnp.square(bent)
    seen = keys.slot[None] <= queries.slot[:, None]
    seen = (seen & (keys.slot[None] >= queries.start[:, None]))[None, None]
    if queries.decay is not None and keys.decay is not None:
        coarse, fine, zeros = (
            (x[..., :, None], y[..., None, :])
            for x, y in zip(queries.decay, keys.decay, strict=True)
        )
        scores = scores + ((coarse[0] - coarse[1]) + (fine[0] - fine[1]))
        seen = seen & (zeros[0] == zeros[1])
    return jnp.where(seen, scores, -jnp.inf), seen, slope


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(
    num_rows: int, num_columns: int, soft_cap: float | None, queries: Queries, keys: Keys
) -> tuple[Array, Array]:
    """Softmax-weighted means of values, and the log-normalisers, in blocks of queries and keys.

    Args:
        num_rows: Queries per block.
        num_columns: Keys per block.
        soft_cap: Of the system.
        queries: L queries.
        keys: S keys and values.

    Returns:
        Means (L, H, p) and log η (L, H); 0 and −∞ for a query that sees nothing.
    """
    return _attend_forward(num_rows, num_columns, soft_cap, queries, keys)[0]


def _attend_forward(
    num_rows: int, num_columns: int, soft_cap: float | None, queries: Queries, keys: Keys
) -> Any:
    blocks, columns = _in_blocks(num_rows, num_columns, queries, keys)

    def means(block: Queries) -> tuple[Array, Array]:
        def body(j: Array | int, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            old_maximum, weight, value = sums
            now = _at(columns, j)
            scores, seen, _ = _scores(soft_cap, block, now)
            maximum = jnp.maximum(old_maximum, scores.max(axis=-1))
            guard = jnp.where(jnp.isneginf(maximum), 0, maximum)  # −∞ where nothing is seen yet
            weights = jnp.where(seen, jnp.exp(scores - guard[..., None]), 0)
            rescale = jnp.exp(old_maximum - guard)
            added = jnp.einsum("grts,grsp->grtp", weights, now.v, precision="highest")
            weight = rescale * weight + weights.sum(axis=-1)
            return maximum, weight, rescale[..., None] * value + added

        shape, q = block.q.shape[:-1], block.q
        sums = (
            zeros_as(q, shape, fill=-jnp.inf),
            zeros_as(q, shape),
            zeros_as(q, (*shape, keys.v.shape[-1])),
        )
        maximum, weight, value = _over_columns(body, sums, block, columns)
        y = value / jnp.where(weight == 0, 1, weight)[..., None]
        return y, maximum + jnp.log(weight)

    if blocks.slot.shape[0] == 1:
        found = jax.tree.map(lambda x: x[None], means(_at(blocks, 0)))
    else:
        found = jax.lax.map(means, blocks)
    y, log_eta = (_steps_first(x, queries.q.shape[0]) for x in found)
    return (y, log_eta), (queries, keys, y, log_eta)


def _attend_backward(
    num_rows: int,
    num_columns: int,
    soft_cap: float | None,
    kept: tuple[Queries, Keys, Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Queries, Keys]:
    queries, keys, y, log_eta = kept
    dy, d_log_eta = cotangents
    blocks, columns = _in_blocks(num_rows, num_columns, queries, keys)
    common = d_log_eta - jnp.sum(dy * y, axis=-1)  # the same for all keys of a query
    size, groups = blocks.slot.shape[1], keys.k.shape[1]
    # A padded query sees nothing: any finite log η will do.
    of_rows = tuple(_rows_first(x, size, groups) for x in (dy, common, log_eta))
    has_decay = queries.decay is not None

    def of_block(d_columns: Any, inputs: Any) -> tuple[Any, Any]:
        block, (dy, common, log_eta) = inputs

        def body(j: Array | int, carry: Any) -> Any:
            (dk, dv, d_decay), (dq, d_row) = carry
            now = _at(columns, j)
            scores, seen, slope = _scores(soft_cap, block, now)
            weights = jnp.where(seen, jnp.exp(scores - log_eta[..., None]), 0)
            d_weights = jnp.einsum("grtp,grsp->grts", dy, now.v, precision="highest")
            d_scores = weights * (d_weights + common[..., None])
            if has_decay:
                d_row = d_row + d_scores.sum(axis=-1)
                d_decay = d_decay.at[j].add(-d_scores.sum(axis=-2))
            if slope is not None:
                d_scores = d_scores * slope
            dq = dq + jnp.einsum("grts,gsm->grtm", d_scores, now.k, precision="highest")
            d_k = jnp.einsum("grts,grtm->gsm", d_scores, block.q, precision="highest")
            d_v = jnp.einsum("grts,grtp->grsp", weights, dy, precision="highest")
            return (dk.at[j].add(d_k), dv.at[j].add(d_v), d_decay), (dq, d_row)

        of_rows = (
            zeros_as(block.q, block.q.shape),
            zeros_as(block.q, block.q.shape[:-1]) if has_decay else None,
        )
        return _over_columns(body, (d_columns, of_rows), block, columns)

    zeros = (columns.k, columns.v, columns.decay.coarse if columns.decay is not None else None)
    zeros = jax.tree.map(lambda x: zeros_as(x, x.shape), zeros)
    if blocks.slot.shape[0] == 1:
        d_columns, d_rows = of_block(zeros, _at((blocks, of_rows), 0))
        d_rows = jax.tree.map(lambda x: x[None], d_rows)
    else:
        d_columns, d_rows = jax.lax.scan(of_block, zeros, (blocks, of_rows))
    dk, dv, d_column_decay = d_columns
    dq, d_row_decay = d_rows
    steps, slots = queries.q.shape[0], keys.k.shape[0]

    def decay(x: Array | None, length: int) -> Decay | None:
        return None if x is None else Decay(_steps_first(x, length), None, None)  # type: ignore

    d_queries = Queries(None, None, _steps_first(dq, steps), decay(d_row_decay, steps))  # type: ignore
    d_k = _steps_first(dk[:, :, None], slots)
    return d_queries, Keys(d_k, _steps_first(dv, slots), decay(d_column_decay, slots))


attend.defvjp(_attend_forward, _attend_backward)


def _in_blocks(
    num_rows: int, num_columns: int, queries: Queries, keys: Keys
) -> tuple[Queries, _Columns]:
    """Blocks of queries and of keys, padded; the first axis counts the blocks."""
    groups = keys.k.shape[1]
    rows, columns = min(num_rows, queries.q.shape[0]), min(num_columns, keys.k.shape[0])
    blocks = Queries(
        _blocks(queries.slot, rows, -1),  # a padded query sees nothing
        _blocks(queries.start, rows, _NEVER),
        _blocks(queries.q, rows, 0),
        jax.tree.map(lambda x: _blocks(x, rows, 0), queries.decay),
    )
    slot = jnp.arange(keys.k.shape[0], dtype=jnp.int32)
    slots = _blocks(slot, columns, _NEVER)  # a padded key is seen by none
    key_blocks = jax.tree.map(lambda x: _blocks(x, columns, 0), keys)
    heads_first = jax.vmap(partial(_head_first, groups=groups))(blocks)
    return heads_first, jax.vmap(_columns)(slots, key_blocks)


def _over_columns(body: Any, carry: Any, block: Queries, columns: _Columns) -> Any:
    """Run ``body(j, carry)`` over the blocks of keys of which a block of queries sees something."""
    count, size = columns.slot.shape
    if count == 1:
        return body(0, carry)
    # One range for the whole batch under vmap: a loop with a range per sequence would select
    # between old and new sums in every turn. A block that is not seen adds exactly nothing.
    begin = _lowest(block.start.min()) // size
    end = jnp.minimum(_highest(block.slot.max()) // size + 1, count)
    return jax.lax.fori_loop(begin, end, body, carry)


@jax.custom_batching.custom_vmap
def _lowest(x: Array) -> Array:
    """The identity; under vmap, the lowest of the batch."""
    return x


@_lowest.def_vmap
def _lowest_of_batch(_: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
    return _lowest(x.min(axis=0) if batched[0] else x), False


def _highest(x: Array) -> Array:
    """The identity; under vmap, the highest of the batch."""
    return -_lowest(-x)


def _at(tree: Any, j: Array | int) -> Any:
    """Block ``j`` of blocks."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, j, keepdims=False), tree)


def _blocks(x: Array, size: int, fill: int) -> Array:
    """Pad the first axis to a multiple of ``size`` and split it."""
    count = -(-x.shape[0] // size)
    x = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(count, size, *x.shape[1:])


def _rows_first(x: Array, size: int, groups: int) -> Array:
    """(L, H, …) to (blocks, G, R, size, …)."""
    return jax.vmap(partial(_by_group, groups=groups))(_blocks(x, size, 0))


def _steps_first(x: Array, length: int) -> Array:
    """(blocks, G, R, size, …) to (L, H, …)."""
    x = jnp.moveaxis(x, 3, 1)
    x = x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])
    return x[:length]
