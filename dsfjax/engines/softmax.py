r"""Softmax over what queries see, in blocks of queries and keys.

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
parts (`Decay`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import Array

from dsfjax._util.varying import zeros_as
from dsfjax.core.rows import inner
from dsfjax.engines.guard import AT_MOST

NEVER = jnp.iinfo(jnp.int32).max
"""No slot: that of a padded query or key."""

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
        start: First slot of its window, (L,).
        q: (L, H, m).
        decay: From the first query on, or None.
        kept: First and last slot, (L,) each, that each query sees before its window; None if it
            sees none there.
    """

    slot: Array
    start: Array
    q: Array
    decay: Decay | None
    kept: tuple[Array, Array] | None = None


class Keys(NamedTuple):
    """What the slots hold: k (S, G, m), v (S, V, p), G and V dividing H, and decays of H heads."""

    k: Array
    v: Array
    decay: Decay | None


def cumulative(log_a: Array) -> Decay:
    """Log decays (L, H), summed up from the first step on."""
    length = log_a.shape[0]
    # A decay of 0 is counted and left out of the sums, which −∞ would never leave again.
    is_zero = jnp.isneginf(log_a)
    zeros = jnp.cumsum(is_zero, axis=0, dtype=jnp.int32)
    parts = in_blocks(jnp.where(is_zero, 0, log_a), _PART, 0)
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
    # The gradient is that of a plain cumulative sum: its value is taken away, its derivative stays,
    # and no derivative of the rounding errors is asked for.
    plain = jnp.cumsum(parts.reshape(-1, parts.shape[-1]), axis=0)
    plain = (plain - jax.lax.stop_gradient(plain))[:length]

    def spread(x: Array) -> Array:
        x = jnp.broadcast_to(jax.lax.stop_gradient(x), parts.shape)
        return x.reshape(-1, parts.shape[-1])[:length]

    return Decay(spread(coarse[:, None]) + plain, spread(rest[:, None] + within), zeros)


def one_by_one(soft_cap: float | None, queries: Queries, keys: Keys) -> tuple[Array, Array]:
    """`attend` query by query: the definition."""
    everything = columns_of(jnp.arange(keys.k.shape[0], dtype=jnp.int32), keys)

    def mean(query: Queries) -> tuple[Array, Array]:
        return one(soft_cap, query, everything)

    if queries.q.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], mean(jax.tree.map(lambda x: x[0], queries)))
    return jax.lax.map(mean, queries)


def one(soft_cap: float | None, query: Queries, keys: Columns) -> tuple[Array, Array]:
    """The mean (H, p) and log η (H,) of one query, its arrays without the axis that counts."""
    row = head_first(jax.tree.map(lambda x: x[None], query), keys.k.shape[0])
    scores, seen, _ = scores_of(soft_cap, row, keys)
    # Heads that share values side by side; one query, so no axis of them.
    scores, seen = (_by_values(x, keys.v)[:, :, 0] for x in (scores, seen))
    maximum = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    maximum = jnp.where(jnp.isneginf(maximum), 0, maximum)  # −∞ where nothing is seen
    weights = jnp.where(seen, jnp.exp(scores - maximum), 0)
    total = weights.sum(axis=-1)
    # Unseen values are taken out: as a weight of 0 they would let 0 · ∞ through. There is one such
    # array for all heads that share values, unless their decays differ.
    shown = jnp.where(seen[..., None], keys.v[:, None], 0)
    value = jnp.matmul(weights[:, :, None], shown, precision="highest")[:, :, 0]
    value = value / jnp.where(total == 0, 1, total)[..., None]
    log_eta = maximum[..., 0] + jnp.log(total)
    return value.reshape(-1, value.shape[-1]), log_eta.reshape(-1)


class Columns(NamedTuple):
    """A block of keys: slot (c,), k (G, c, m), v (V, c, p), decay (G, R, c)."""

    slot: Array
    k: Array
    v: Array
    decay: Decay | None


def head_first(queries: Queries, groups: int) -> Queries:
    """A block of queries with q (G, R, r, m) and decay (G, R, r), R heads in a group."""
    turn = partial(_by_group, groups=groups)
    return queries._replace(q=turn(queries.q), decay=jax.tree.map(turn, queries.decay))


def columns_of(slot: Array, keys: Keys) -> Columns:
    """A block of keys, heads first."""
    turn = partial(_by_group, groups=keys.k.shape[1])
    decay = jax.tree.map(turn, keys.decay)
    return Columns(slot, jnp.moveaxis(keys.k, 0, 1), jnp.moveaxis(keys.v, 0, 1), decay)


def _by_group(x: Array, groups: int) -> Array:
    """(r, H, …) to (G, R, r, …)."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])


def _by_values(x: Array, v: Array) -> Array:
    """(G, R, …), one entry per head, to (V, H/V, …), so that heads which share values are one axis.

    What is the same for all heads, (1, 1, …), stays so.
    """
    return x.reshape(min(v.shape[0], x.shape[0] * x.shape[1]), -1, *x.shape[2:])


def _weighted(weights: Array, v: Array) -> Array:
    """Σ_s w_s v_s of weights (G, R, r, c) and values (V, c, p), (G, R, r, p)."""
    y = jnp.einsum("vnts,vsp->vntp", _by_values(weights, v), v, precision="highest")
    return y.reshape(*weights.shape[:-1], v.shape[-1])


def scores_of(
    soft_cap: float | None, queries: Queries, keys: Columns
) -> tuple[Array, Array, Array | None]:
    """Scores (G, R, r, c), −∞ where unseen; what is seen; the slope of the soft cap."""
    products = jnp.einsum("grtm,gsm->grts", queries.q, keys.k, precision="highest")
    return finish(soft_cap, products, queries, keys)


def finish(
    soft_cap: float | None, scores: Array, queries: Queries, keys: Columns
) -> tuple[Array, Array, Array | None]:
    """`scores_of` of the products of queries and keys."""
    slope = None  # of the cap where it was applied, for the backward pass: 1 without one
    if soft_cap is not None:
        bent = jnp.tanh(scores / soft_cap)
        scores, slope = soft_cap * bent, 1 - jnp.square(bent)
    seen = keys.slot[None] <= queries.slot[:, None]
    wanted = keys.slot[None] >= queries.start[:, None]
    if queries.kept is not None:
        first, last = (x[:, None] for x in queries.kept)
        wanted = wanted | ((keys.slot[None] >= first) & (keys.slot[None] <= last))
    seen = (seen & wanted)[None, None]
    if queries.decay is not None and keys.decay is not None:
        coarse, fine, zeros = (
            (x[..., :, None], y[..., None, :])
            for x, y in zip(queries.decay, keys.decay, strict=True)
        )
        # Large parts first: of nearby steps they cancel without a rounding error. For decays up to
        # 1 the sum is not positive for a key that is seen; for a later one it may be anything, and
        # is masked below.
        scores = scores + ((coarse[0] - coarse[1]) + (fine[0] - fine[1]))
        seen = seen & (zeros[0] == zeros[1])  # no decay of 0 between the two
    return jnp.where(seen, scores, -jnp.inf), seen, slope


class Sums(NamedTuple):
    """Sums over keys of a block of queries: maximum and weight (G, R, r), value (G, R, r, p)."""

    maximum: Array
    weight: Array
    value: Array

    @classmethod
    def zero(cls, q: Array, num_channels: int) -> Sums:
        """Over no keys, for queries (G, R, r, m)."""
        shape = q.shape[:-1]
        maximum = zeros_as(q, shape, fill=-jnp.inf)
        return cls(maximum, zeros_as(q, shape), zeros_as(q, (*shape, num_channels)))

    def add(self, scores: Array, seen: Array, v: Array) -> Sums:
        """With a block of keys: their scores (G, R, r, c) and values (V, c, p)."""
        maximum = jnp.maximum(self.maximum, scores.max(axis=-1))
        maximum = jax.lax.stop_gradient(maximum)  # it cancels
        guard = jnp.where(jnp.isneginf(maximum), 0, maximum)  # −∞ where nothing is seen yet
        weights = jnp.where(seen, jnp.exp(scores - guard[..., None]), 0)
        # What was summed up so far, with respect to the new maximum; 0 while there is nothing.
        rescale = jnp.exp(self.maximum - guard)
        value = _weighted(weights, v)
        weight = rescale * self.weight + weights.sum(axis=-1)
        return Sums(maximum, weight, rescale[..., None] * self.value + value)

    def means(self) -> tuple[Array, Array]:
        """Means of the values, and log η."""
        # A query that sees nothing has the mean 0 and log η = −∞ + log 0 = −∞.
        y = self.value / jnp.where(self.weight == 0, 1, self.weight)[..., None]
        return y, self.maximum + jnp.log(self.weight)


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
    blocks, columns = _both_in_blocks(num_rows, num_columns, queries, keys)

    def means(block: Queries) -> tuple[Array, Array]:
        def body(j: Array | int, sums: Sums) -> Sums:
            now = at(columns, j)
            scores, seen, _ = scores_of(soft_cap, block, now)
            return sums.add(scores, seen, now.v)

        sums = Sums.zero(block.q, keys.v.shape[-1])
        return _over_columns(body, sums, block, columns).means()

    if blocks.slot.shape[0] == 1:  # no loop to compile
        found = jax.tree.map(lambda x: x[None], means(at(blocks, 0)))
    else:
        found = jax.lax.map(means, blocks)
    y, log_eta = (steps_first(x, queries.q.shape[0]) for x in found)
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
    blocks, columns = _both_in_blocks(num_rows, num_columns, queries, keys)
    common = d_log_eta - inner(dy, y)[..., 0]  # the same for all keys of a query
    size, groups = blocks.slot.shape[1], keys.k.shape[1]
    # A padded query sees nothing: any finite log η will do.
    of_rows = tuple(_rows_first(x, size, groups) for x in (dy, common, log_eta))
    has_decay = queries.decay is not None

    def of_block(d_columns: Any, inputs: Any) -> tuple[Any, Any]:
        block, (dy, common, log_eta) = inputs

        def body(j: Array | int, carry: Any) -> Any:
            (dk, dv, d_decay), (dq, d_row) = carry
            now = at(columns, j)
            scores, seen, slope = scores_of(soft_cap, block, now)
            # P itself: η is known, and no maximum is needed. Where a key is seen the exponent is at
            # most 0 up to rounding, as its weight is one of the terms of η.
            weights = jnp.where(seen, jnp.exp(scores - log_eta[..., None]), 0)
            d_weights = _weighted(dy, now.v.swapaxes(1, 2))
            d_scores = weights * (d_weights + common[..., None])
            # A score has the sum of decays up to t, less that up to s. Both are added after the cap
            # has bent the product, so their cotangents do not see its slope.
            if has_decay:
                d_row = d_row + d_scores.sum(axis=-1)
                d_decay = d_decay.at[j].add(-d_scores.sum(axis=-2))
            if slope is not None:
                d_scores = d_scores * slope
            dq = dq + jnp.einsum("grts,gsm->grtm", d_scores, now.k, precision="highest")
            d_k = jnp.einsum("grts,grtm->gsm", d_scores, block.q, precision="highest")
            shared = (_by_values(x, now.v) for x in (weights, dy))
            d_v = jnp.einsum("vnts,vntp->vsp", *shared, precision="highest")
            return (dk.at[j].add(d_k), dv.at[j].add(d_v), d_decay), (dq, d_row)

        of_rows = (
            zeros_as(block.q, block.q.shape),
            zeros_as(block.q, block.q.shape[:-1]) if has_decay else None,
        )
        return _over_columns(body, (d_columns, of_rows), block, columns)

    # All blocks of queries add to the cotangents of keys and values, which the loop over them
    # carries and writes in place; those of the queries are results of a turn. The order is fixed,
    # so that the sums are the same in every run.
    zeros = (columns.k, columns.v, columns.decay.coarse if columns.decay is not None else None)
    zeros = jax.tree.map(lambda x: zeros_as(x, x.shape), zeros)
    if blocks.slot.shape[0] == 1:
        d_columns, d_rows = of_block(zeros, at((blocks, of_rows), 0))
        d_rows = jax.tree.map(lambda x: x[None], d_rows)
    else:
        d_columns, d_rows = jax.lax.scan(of_block, zeros, (blocks, of_rows))
    dk, dv, d_column_decay = d_columns
    dq, d_row_decay = d_rows
    steps, slots = queries.q.shape[0], keys.k.shape[0]

    def decay(x: Array | None, length: int) -> Decay | None:
        return None if x is None else Decay(steps_first(x, length), None, None)  # type: ignore

    # Slots are integers and have no cotangent. The parts ``fine`` and ``zeros`` of a decay have
    # none either: `cumulative` lets the gradient through ``coarse`` alone.
    d_queries = Queries(None, None, steps_first(dq, steps), decay(d_row_decay, steps))  # type: ignore
    d_k, d_v = (steps_first(x[:, :, None], slots) for x in (dk, dv))
    return d_queries, Keys(d_k, d_v, decay(d_column_decay, slots))


attend.defvjp(_attend_forward, _attend_backward)


def _both_in_blocks(
    num_rows: int, num_columns: int, queries: Queries, keys: Keys
) -> tuple[Queries, Columns]:
    """Blocks of queries and of keys, padded; the first axis counts the blocks."""
    groups = keys.k.shape[1]
    rows, columns = min(num_rows, queries.q.shape[0]), min(num_columns, keys.k.shape[0])
    slot = jnp.arange(keys.k.shape[0], dtype=jnp.int32)
    slots = in_blocks(slot, columns, NEVER)  # a padded key is seen by none
    key_blocks = jax.tree.map(lambda x: in_blocks(x, columns, 0), keys)
    return query_blocks(queries, rows, groups), jax.vmap(columns_of)(slots, key_blocks)


def query_blocks(queries: Queries, size: int, groups: int) -> Queries:
    """Queries in blocks of ``size``, heads first; those that fill up the last see nothing."""
    blocks = Queries(
        in_blocks(queries.slot, size, -1),
        in_blocks(queries.start, size, NEVER),
        in_blocks(queries.q, size, 0),
        jax.tree.map(lambda x: in_blocks(x, size, 0), queries.decay),
        jax.tree.map(lambda x: in_blocks(x, size, NEVER), queries.kept),
    )
    return jax.vmap(partial(head_first, groups=groups))(blocks)


def _over_columns(body: Any, carry: Any, block: Queries, columns: Columns) -> Any:
    """Run ``body(j, carry)`` over the blocks of keys of which a block of queries sees something."""
    count, size = columns.slot.shape
    if count == 1:
        return body(0, carry)
    # One range for the whole batch under vmap: a loop with a range per sequence would select
    # between old and new sums in every turn. A block that is not seen adds exactly nothing.
    begin = _lowest(block.start.min()) // size
    end = jnp.minimum(_highest(block.slot.max()) // size + 1, count)
    window, skipped = begin, None
    if block.kept is not None:
        # The blocks of the first keys take the turns before those of the window, in the same loop.
        # Only the first document of the block of queries can have some further back: the others
        # begin within that block.
        first, last = block.kept
        low = _lowest(first.min()) // size
        high = jnp.minimum(_highest(last.min()) // size + 1, window)
        begin = window - jnp.maximum(high - low, 0)
        skipped = begin - low

    def turn(i: Array | int, carry: Any) -> Any:
        return body(i if skipped is None else jnp.where(i < window, i - skipped, i), carry)

    def loop(begin: Array, end: Array, carry: Any) -> Any:
        return jax.lax.fori_loop(begin, end, turn, carry)

    loop.__name__ = f"{AT_MOST}{count}"  # for whoever counts operations
    return jax.jit(loop)(begin, end, carry)


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


def at(tree: Any, j: Array | int) -> Any:
    """Block ``j`` of blocks."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, j, keepdims=False, allow_negative_indices=False),
        tree,
    )


def in_blocks(x: Array, size: int, fill: int) -> Array:
    """Pad the first axis to a multiple of ``size`` and split it."""
    count = -(-x.shape[0] // size)
    x = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(count, size, *x.shape[1:])


def _rows_first(x: Array, size: int, groups: int) -> Array:
    """(L, H, …) to (blocks, G, R, size, …)."""
    return jax.vmap(partial(_by_group, groups=groups))(in_blocks(x, size, 0))


def steps_first(x: Array, length: int) -> Array:
    """(blocks, G, R, size, …) to (L, H, …)."""
    x = jnp.moveaxis(x, 3, 1)
    x = x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])
    return x[:length]
