r"""Engines of a `KernelSystem`: softmax attention over its past, and its cache.

The sums over keys are those of `dsfjax.engines.softmax`; keys that a transition moves are the
subject of `dsfjax.engines.moving_keys`. A sink is one more term of η, which is added to what the
blocks give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from dsfjax._util.varying import vary_alike
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.core.rows import scaled_rows
from dsfjax.core.transitions import to_heads
from dsfjax.engines.guard import finite, guarded
from dsfjax.engines.moving_keys import CHUNK, Moving, attend_moving, in_chunks, move, step_by_step
from dsfjax.engines.moving_keys import to_the_end as keys_at_the_end
from dsfjax.engines.recurrence import by_steps, project
from dsfjax.engines.softmax import (
    NEVER,
    Decay,
    Keys,
    Queries,
    attend,
    columns_of,
    cumulative,
    finish,
    head_first,
    one_by_one,
    scores_of,
)

BLOCK = 128
"""Keys per block."""


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
    length, A = u.shape[0], system.key_transition
    if method == "sequential" and length != 1:
        return _sequential(system, u, h0)
    k, v = _keys_and_values(system, u)
    q, moved, past = system.q.astype(k.dtype), k, h0
    decay, spoilt = _decay(system, length, k.dtype)
    if A is not None and length == 1:
        past = None if h0 is None else h0._replace(k=move(A, h0.k))
    elif A is not None:
        # For the cache: all keys as they are after the last step. The outputs need them as they are
        # at every step between, which is the work of `attend_moving`.
        moved, product = keys_at_the_end(in_chunks(A, q, k, CHUNK), length)
        if h0 is not None:
            product = product.astype(h0.k.dtype)
            past = h0._replace(k=jnp.einsum("jnm,sjm->sjn", product, h0.k, precision="highest"))
    # The new keys come first: a query sees that of its own step.
    offset, cache, key_decay = _append(system, moved, v, decay, spoilt, past)
    first, start, kept = _visible(system, length, offset, cache.first)
    q = _spoil(q, spoilt, offset, start, kept)
    queries = Queries(offset + jnp.arange(length, dtype=jnp.int32), start, q, decay, kept)
    run: Any = partial(attend, *_sizes(method, length, cache.k.shape[0]), system.soft_cap)
    exact: Any = partial(one_by_one, system.soft_cap)
    # Sums are at least float32, whatever the cache is kept in.
    keys = Keys(cache.k.astype(k.dtype), cache.v.astype(k.dtype), key_decay)
    arguments = queries, keys
    if A is not None and length > 1:
        size = CHUNK if method == "chunked" else length
        run = partial(attend_moving, size, _reach(system), system.soft_cap)
        exact = partial(step_by_step, system.soft_cap)
        arguments = Moving(A, queries, Keys(k, v, decay), queries.slot, *_past(h0, decay, k.dtype))
    arguments = vary_alike(tuple(arguments))
    if length == 1:  # one query: the definition costs no more, and needs no guard
        means = exact(*arguments)
    else:
        means = guarded(lambda *x: run(*finite(x)), exact, *arguments)
    y, _ = _with_sink(system, *means)
    if cache.length is not None and not _is_bounded(system, h0):
        # While tracing the length is unknown: an overflow shows as NaN instead of a wrong answer.
        y = jnp.where(cache.length <= keys.k.shape[0], y, jnp.nan)
    return y.reshape(length, -1).astype(u.dtype), _kept(system, cache._replace(first=first), h0)


def _sizes(method: str, length: int, slots: int) -> tuple[int, int]:
    """Queries and keys per block."""
    return (length, slots) if method == "materialized" else (rows(), BLOCK)


def rows() -> int:
    """Queries per block: more where the device computes many at once."""
    return BLOCK if jax.default_backend() == "cpu" else 8 * BLOCK


def _keys_and_values(system: KernelSystem, u: Array) -> tuple[Array, Array]:
    """Keys (L, G, m) and values (L, V, p) in the dtype of the sums."""
    dtype = state_dtype(system.dtype, u.dtype)
    return to_heads(system.k.astype(dtype), system.key_heads), values(system, u).astype(dtype)


def _decay(system: KernelSystem, length: int, dtype: Any) -> tuple[Decay | None, Array | None]:
    """The decays of the weights in the dtype of the sums, summed up from the first step on.

    A decay that is NaN or above all numbers would never leave these sums, whatever is reset. It
    counts as 0, and is marked: what would have met it becomes NaN (`_spoil`).
    """
    if (log_a := system.weight_log_decay) is None:
        return None, None
    log_a = jnp.broadcast_to(log_a.astype(dtype), (length, system.num_heads))
    spoilt = ~(log_a < jnp.inf)
    return cumulative(jnp.where(spoilt, -jnp.inf, log_a)), spoilt


def _spoil(
    q: Array, spoilt: Array | None, offset: Array, start: Array, kept: tuple[Array, Array] | None
) -> Array:
    """Queries that are NaN where a spoilt decay lies between them and a key that they see."""
    if spoilt is None:
        return q
    slot = offset + jnp.arange(q.shape[0], dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(spoilt, slot[:, None], -1), axis=0)
    # The decay of a step acts on the keys before it, so that of the first key in sight on none.
    earliest = start if kept is None else jnp.minimum(start, kept[0])
    return jnp.where((last > earliest[:, None])[..., None], jnp.nan, q)


def values(system: KernelSystem, u: Array) -> Array:
    """The values W u_t, (L, V, p)."""
    if system.W is not None:
        u = project(u, system.W, "default" if u.dtype == jnp.bfloat16 else "highest")
    return u.reshape(u.shape[0], *system.value_shape)


def _with_sink(system: KernelSystem, y: Array, log_eta: Array) -> tuple[Array, Array]:
    """Means and log η with the sink among what is summed."""
    if system.sink is None:
        return y, log_eta
    # e^σ is one more term of η without a value: the means shrink by η / (η + e^σ). In logarithms,
    # as either may overflow.
    whole = jnp.logaddexp(log_eta, system.sink.astype(log_eta.dtype)[None])
    return scaled_rows(y, jnp.exp(log_eta - whole)[:, :, None]), whole


def attention_map(system: KernelSystem) -> Array:
    """The normalised attention matrix (H, L, L), exact zeros above the diagonal."""
    scores, seen = score_rows(system)(jnp.arange(system.length, dtype=jnp.int32))
    if system.sink is not None:  # one more column, whose weight is left out
        sink = system.sink.astype(scores.dtype)[:, None, None]
        sink = jnp.broadcast_to(sink, (*scores.shape[:2], 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
    phi = jax.nn.softmax(scores, axis=-1)[..., : system.length]
    return jnp.where(seen, phi, 0)  # also where a score is NaN


def score_rows(system: KernelSystem) -> Callable[[Array], tuple[Array, Array]]:
    """The function of steps t (T,) ↦ their scores x_{ts}, (H, T, L), and which s they see.

    Scores are −∞ where s is unseen. Where a transition moves the keys, the function holds all
    L × L products; otherwise those of T steps.
    """
    queries, keys = _own(system)
    columns, A = columns_of(queries.slot, keys), system.key_transition
    # Keys that move: all steps as one chunk, in which every product is formed.
    within = None if A is None else in_chunks(A, queries.q, keys.k, system.length).within[0]

    def rows_at(t: Array) -> tuple[Array, Array]:
        some = head_first(jax.tree.map(lambda x: x[t], queries), keys.k.shape[1])
        if within is None:
            scores, seen, _ = scores_of(system.soft_cap, some, columns)
        else:
            scores, seen, _ = finish(system.soft_cap, within[:, :, t], some, columns)
        shape = (system.num_heads, t.shape[0], system.length)
        return scores.reshape(shape), jnp.broadcast_to(seen, scores.shape).reshape(shape)

    return rows_at


@jax.jit
def log_normalizer(system: KernelSystem) -> Array:
    """Logarithm of η_t, (L, H), without forming L × L arrays."""
    queries, keys = _own(system)
    if system.key_transition is None:
        means: Any = attend(rows(), BLOCK, system.soft_cap, queries, keys)
    else:
        moving = Moving(system.key_transition, queries, keys, queries.slot, None, None)
        means = attend_moving(CHUNK, _reach(system), system.soft_cap, *moving)
    return _with_sink(system, *means)[1]


def _own(system: KernelSystem) -> tuple[Queries, Keys]:
    """The queries and keys of a system without a past, and without values."""
    length, dtype = system.length, system.dtype
    k = to_heads(system.k.astype(dtype), system.key_heads)
    (decay, spoilt), zero = _decay(system, length, dtype), jnp.zeros((), jnp.int32)
    _, start, kept = _visible(system, length, zero, zero)
    q = _spoil(system.q.astype(dtype), spoilt, zero, start, kept)
    # Values of no channels: the sums over keys then give log η alone.
    slot = jnp.arange(length, dtype=jnp.int32)
    v = jnp.zeros((length, system.value_shape[0], 0), dtype)
    return Queries(slot, start, q, decay, kept), Keys(k, v, decay)


def _reach(system: KernelSystem) -> int | None:
    """How many steps back the keys lie that a query sees; None for any number."""
    # A key that moves reaches a query through every chunk between. To the first keys of a document
    # the way is as long as the document, window or not.
    return None if system.keep_first else system.window


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
    """Whether an allocated cache holds all that is ever seen, so that old slots may make room."""
    most = system.most_slots
    return most is not None and cache is not None and cache.k.shape[0] >= most


def _append(
    system: KernelSystem,
    k: Array,
    v: Array,
    decay: Decay | None,
    spoilt: Array | None,
    h0: KVCache | None,
) -> tuple[Array, KVCache, Decay | None]:
    """Add keys and values to the past.

    Returns:
        The slot of the first new one, the cache with all of them, and the decays of the slots.
    """
    if h0 is None:
        zero = jnp.zeros((), jnp.int32)
        log_weight = _to_the_end(decay, decay, spoilt, zero)
        return zero, KVCache(k, v, zero, log_weight=log_weight), decay
    # In the dtype of the cache, which may be narrower than that of the sums: what a later call will
    # read is what this one reads.
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
        return jax.lax.dynamic_update_slice_in_dim(
            old, new, offset, 0, allow_negative_indices=False
        )

    key_decay = None
    if decay is not None:
        key_decay = jax.tree.map(put, _decay_of_past(h0, decay), decay)
    log_weight = _to_the_end(decay, key_decay, spoilt, offset)
    if log_weight is not None and h0.log_weight is not None:
        log_weight = log_weight.astype(h0.log_weight.dtype)
    return offset, KVCache(put(h0.k, k), put(h0.v, v), h0.first, length, log_weight), key_decay


def _decay_of_past(h0: KVCache, decay: Decay) -> Decay:
    """The decays of the slots of a cache, as sums from its end on."""
    assert h0.log_weight is not None
    # The sums of the new steps begin with 0 before the first of them. From a slot to there the
    # decay has the logarithm w, as if the sum at the slot were −w. What decayed by a factor 0 on
    # the way counts fewer zeros than any query, and so is seen by none.
    gone = jnp.isneginf(h0.log_weight)
    coarse = -jnp.where(gone, 0, h0.log_weight).astype(decay.coarse.dtype)
    return Decay(coarse, jnp.zeros_like(coarse), jnp.where(gone, -1, 0).astype(jnp.int32))


def _past(h0: KVCache | None, decay: Decay | None, dtype: Any) -> tuple[Keys | None, Array | None]:
    """What a cache holds, and the slots; `NEVER` where it holds nothing yet."""
    if h0 is None:
        return None, None
    slot = jnp.arange(h0.k.shape[0], dtype=jnp.int32)
    if h0.length is not None:
        slot = jnp.where(slot < h0.length, slot, NEVER)
    of_past = None if decay is None else _decay_of_past(h0, decay)
    return Keys(h0.k.astype(dtype), h0.v.astype(dtype), of_past), slot


def _to_the_end(
    decay: Decay | None, key_decay: Decay | None, spoilt: Array | None, offset: Array
) -> Array | None:
    """Logarithm of the decay of every slot up to the last step, (S, H)."""
    if decay is None or key_decay is None or spoilt is None:
        return None
    last = jax.tree.map(lambda x: x[-1:], decay)
    # As in `finish`: coarse parts first, and −∞ where a decay of 0 lies between.
    log_weight = (last.coarse - key_decay.coarse) + (last.fine - key_decay.fine)
    log_weight = jnp.where(last.zeros == key_decay.zeros, log_weight, -jnp.inf)
    step = offset + jnp.arange(spoilt.shape[0], dtype=jnp.int32)[:, None]
    slot = jnp.arange(log_weight.shape[0], dtype=jnp.int32)[:, None]
    return jnp.where(slot < jnp.where(spoilt, step, -1).max(axis=0)[None], jnp.nan, log_weight)


def decays_to_the_end(system: KernelSystem, length: int, dtype: Any) -> tuple[Array, Array] | None:
    """Logarithms of the decays from every step to the last, (L, H), and over all steps, (H,).

    None without decays of the weights.
    """
    decay, spoilt = _decay(system, length, dtype)
    each = _to_the_end(decay, decay, spoilt, jnp.zeros((), jnp.int32))
    if decay is None or spoilt is None or each is None:
        return None
    last = jax.tree.map(lambda x: x[-1], decay)
    total = jnp.where(last.zeros == 0, last.coarse + last.fine, -jnp.inf)
    return each, jnp.where(spoilt.any(axis=0), jnp.nan, total)


def _kept(system: KernelSystem, cache: KVCache, h0: KVCache | None) -> KVCache:
    """The cache without the slots that no later step can see."""
    if system.most_slots is None:
        return cache
    slots = cache.k.shape[0]
    if cache.length is None:
        size = min(slots, system.most_slots)
        dropped: Any = slots - size
    elif h0 is not None and _is_bounded(system, h0):
        size = h0.k.shape[0]
        dropped = jnp.maximum(cache.length - size, 0)
    else:
        return cache

    # The first keys of the document move up to the window. If its beginning lies less than
    # ``keep_first`` slots before the window they are there already: all slots move alike.
    head = min(size, system.keep_first)
    begin = jnp.minimum(cache.first, dropped)

    def cut(x: Array) -> Array:
        window = jax.lax.dynamic_slice_in_dim(
            x, dropped + head, size - head, allow_negative_indices=False
        )
        if not head:
            return window
        return jnp.concatenate(
            [jax.lax.dynamic_slice_in_dim(x, begin, head, allow_negative_indices=False), window]
        )

    k, v, log_weight = jax.tree.map(cut, (cache.k, cache.v, cache.log_weight))
    first = jnp.maximum(cache.first - dropped, 0)
    return KVCache(
        k, v, first, None if cache.length is None else cache.length - dropped, log_weight
    )


def _visible(
    system: KernelSystem, length: int, offset: Array, first: Array
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Which slots each step sees.

    Returns:
        The first slot of the last document; that of the window of each step (L,); the first and
        the last slot that it sees at the beginning of its document, or None for none.
    """
    slot = offset + jnp.arange(length, dtype=jnp.int32)
    if system.reset is None:
        start = jnp.broadcast_to(first, (length,))
    else:
        # Slots grow, so the largest start so far is that of the document of the step.
        start = jax.lax.cummax(jnp.where(system.reset, slot, first))
        first = start[-1]
    if system.window is None:
        return first, start, None
    kept = (start, start + (system.keep_first - 1)) if system.keep_first else None
    return first, jnp.maximum(start, slot - (system.window - 1)), kept


def _sequential(system: KernelSystem, u: Array, h0: KVCache | None) -> tuple[Array, KVCache]:
    """One step at a time, in a cache of the final size that is written in place."""
    dtype = state_dtype(system.dtype, u.dtype)
    # The gradient to what is the same at all steps is added up over them, in its own dtype: in
    # bfloat16 that loses two digits. So W is applied before the loop, to all tokens at once, and
    # the rest is carried through it in the dtype of the sums.
    u = values(system, u).reshape(u.shape[0], -1).astype(u.dtype)
    fixed = system.transition, system.log_decay, system.sink
    wide = jax.tree.map(lambda x: x.astype(state_dtype(x.dtype, dtype)), fixed)
    system = dataclasses.replace(
        system, W=None, transition=wide[0], log_decay=wide[1], sink=wide[2]
    )
    if h0 is not None and h0.length is not None:
        cache = h0
    else:
        # A loop carries arrays of one shape: all slots are there from the first step on.
        shapes = jax.eval_shape(
            lambda: _append(
                system, *_keys_and_values(system, u), *_decay(system, u.shape[0], dtype), h0
            )[1]
        )
        past = 0 if h0 is None else h0.k.shape[0]
        capacity = past + u.shape[0]
        if system.most_slots is not None:
            capacity = max(min(capacity, system.most_slots), past)
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
    xs, step_of = by_steps(system, u.shape[0])

    def body(cache: KVCache, inputs: tuple[Array, list[Array]]) -> tuple[KVCache, Array]:
        token, arrays = inputs
        y, cache = run(step_of(arrays), token[None], cache, method="sequential")
        return cache, y[0]

    cache, y = jax.lax.scan(body, cache, (u, xs))
    if h0 is not None and h0.length is not None:
        return y, cache
    # All slots are in use at the end: it is a cache that grows again, and may be cut.
    return y, _kept(system, cache._replace(length=None), h0)
