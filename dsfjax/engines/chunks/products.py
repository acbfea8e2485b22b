r"""Chunks by matrix products, for decays that are the same for all value channels.

With α_{t←s} = a_t ⋯ a_{s+1} the product of the decays of the steps s+1 … t, a chunk of c steps that
starts from the state h reads

.. math:: S_t = \sum_{s \le t} c_t^\top (α_{t←s} ⊙ b_s) \, x_s^\top + c_t^\top (α_{t←0} ⊙ h) .

With the rows of X and C the values and queries of the steps, `affine` has of it

.. math:: U = X, \quad M_{ts} = c_t^\top (α_{t←s} ⊙ b_s), \quad R_t = c_t ⊙ α_{t←0}, \quad
   B_s = α_{c←s} ⊙ b_s ,

and α_{c←0} as the decay of the whole chunk.

That is linear attention on a short sequence (GLA, SSD): c² n + c² p operations of matrix products
within a chunk and c n p for its state, where step by step every state is touched c times. Where a
decay differs between the n states, M is no single product, multiplied by α afterwards, but is put
together from blocks below the diagonal, in each of which α factors into a part of t and a part of s
(`decay`). Where a, b and c are constant in time, all chunks have the same matrices (`convolution`).

References:
    Yang et al. (2023), arXiv:2312.06635; Dao & Gu (2024), arXiv:2405.21060.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core.diagonal import Elementwise
from dsfjax.core.rows import scaled_rows
from dsfjax.core.transitions import Transition, to_heads
from dsfjax.engines.chunks import convolution
from dsfjax.engines.chunks.affine import AffineChunks, ChunkMap
from dsfjax.engines.chunks.decay import Decays, halves, lower_blocks
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


class Chunk(NamedTuple):
    """A recurrence of c steps, padded to a power of two by steps that change nothing.

    Attributes:
        decays: Those of all steps, of (H, c, n) log decays, or (H, c, 1) for all states alike; n /
            2 of them are those of both halves (`for_states`).
        x: (H, c·r, p).
        b: (c, G, r, n).
        c: (c, G, R, n).
        sign: Of the product of the decays up to and including every step, (c, H, 1, n or 1), or
            None. Negative decays are positive ones in coordinates that change sign with them, and
            b and c are in these.
        steps: Without padding.
    """

    decays: Decays
    x: Array
    b: Array
    c: Array
    sign: Array | None
    steps: int


@dataclass(frozen=True)
class MatrixProducts(AffineChunks):
    """Linear attention within chunks: scalar decays, and decays per state."""

    name: ClassVar[str] = "matrix products"

    def against(self, A: Transition, *, states: bool = False) -> str | None:
        """Why it does not run a transition; see `ChunkAlgorithm.against`."""
        if not isinstance(A, Elementwise):
            return "it is not diagonal"
        if A.per_channel:
            return "its decay varies over the value channels"
        return "chunks skip the states between" if states else None

    def all_segments(
        self, problem: Recurrence, h0: Array, chunk: int, count: int
    ) -> tuple[Array, Array, Array] | None:
        """What is constant in time but for its values; see `ChunkAlgorithm.all_segments`."""
        return convolution.run(problem, h0, chunk, count) if convolution.applies(problem) else None

    def chunk_map(self, problem: Recurrence, heads: int) -> ChunkMap:
        """All steps of a recurrence as one affine map."""
        # Where time meets time a weight may be 0, and 0 · ∞ is NaN at steps that ∞ does not reach.
        problem = finite(problem)
        A = problem.A
        assert isinstance(A, Elementwise)
        negative = A.negative()
        negative = None if negative is None else negative[..., 0]
        # The last axis is that of p, over which the decay does not vary (`against`).
        chunk = chunk_of(problem, heads, A.log_decay()[..., 0], negative)
        reader, writer, decay = ends(chunk, heads)
        # No causal mask: α is 0 above the diagonal.
        weights = decayed_products(
            chunk.decays, chunk.c, chunk.b, heads=heads, precision=problem.precision
        )
        return finish(chunk, ChunkMap(decay, reader, weights, chunk.x, writer))

    def kernel(self, problem: Recurrence, heads: int) -> Array:
        """Φ_{t,s} = c_tᵀ A_t ⋯ A_{s+1} b_s of all steps as one chunk, (H, L·R, L·r)."""
        A = problem.A
        assert isinstance(A, Elementwise)
        negative = A.negative()
        negative = None if negative is None else negative[..., 0]
        chunk = chunk_of(problem, heads, A.log_decay()[..., 0], negative)
        weights = decayed_products(
            chunk.decays, chunk.c, chunk.b, heads=heads, precision=problem.precision
        )
        return weights[:, : chunk.steps * chunk.c.shape[2], : chunk.steps * chunk.b.shape[2]]


MATRIX_PRODUCTS = MatrixProducts()


def chunk_of(problem: Recurrence, heads: int, log_a: Array, negative: Array | None) -> Chunk:
    """Bring a recurrence to the axes of `Chunk`.

    Args:
        problem: Recurrence of c steps.
        heads: H.
        log_a: Its log |a|, (T, H or 1, n or 1).
        negative: Where a is negative, same axes; or None.
    """
    dtype, steps = problem.x.dtype, problem.length
    # In the dtype of the state, complex where that is, as are b and c, which α multiplies.
    log_a = jnp.broadcast_to(log_a, (log_a.shape[0], heads, log_a.shape[2])).astype(dtype)
    if problem.reset is not None:
        # A reset is a decay of 0, which no product of decays crosses.
        log_a = jnp.where(problem.reset[:, None, None], -jnp.inf, log_a)
    one = jnp.ones((1, 1, 1, 1), dtype)
    b, c = (padded(one if v is None else v, steps).swapaxes(1, 2) for v in (problem.b, problem.c))
    sign = None
    if negative is not None:
        sign = _running_sign(padded(negative, steps)).astype(dtype)[:, :, None]
        # With σ_t the sign of a_t ⋯ a_1: σ_t h_t decays by |a_t|, is fed by σ_t b_t and read by
        # σ_t c_t.
        b, c = (to_heads(v, heads, 1) * sign for v in (b, c))
    # The r terms of a step are neighbours among the rows of X, as among the columns of C Bᵀ ⊙ α.
    x = jnp.moveaxis(padded(problem.x, steps), 2, 0).reshape(heads, -1, problem.x.shape[-1])
    decays = Decays.of(jnp.moveaxis(padded(log_a, steps), 0, 1))
    return Chunk(decays, x, b, c, sign, steps)


def _running_sign(negative: Array) -> Array:
    """The sign of the product of the decays up to and including every step, (c, H, n or 1)."""
    t, s = np.ogrid[: len(negative), : len(negative)]
    # As a product with a triangle of ones: a sum of integers along time takes longer than a chunk.
    count = jnp.einsum("ts,shn->thn", jnp.asarray(s <= t, "float32"), negative.astype("float32"))
    return 1 - 2 * (count - 2 * jnp.floor(count / 2))


def padded(v: Array, steps: int) -> Array:
    """An array with time axis 1 or c written out for all steps, then zeros to a power of two.

    Zeros are steps that change nothing: a log decay of 0 keeps the state, and nothing is written.
    """
    v = jnp.broadcast_to(v, (steps, *v.shape[1:]))
    size = 1 << (steps - 1).bit_length()  # halves of halves: see `decay`
    return v if size == steps else jnp.pad(v, [(0, size - steps)] + [(0, 0)] * (v.ndim - 1))


def ends(chunk: Chunk, heads: int) -> tuple[Array, Array, Array]:
    """How the steps read the state before the chunk and write to that after it, and its decay.

    Returns:
        (H, c·R, n), (H, c·r, n), and (H, n or 1, 1).
    """
    n = chunk.b.shape[-1]
    # Step t reads what has decayed up to and including t. What step s writes decays from s + 1 on.
    from_start, to_end = chunk.decays.from_start(), chunk.decays.to_end()
    reader = scaled(by_head(chunk.c, heads), from_start[:, :, None]).reshape(heads, -1, n)
    writer = scaled(by_head(chunk.b, heads), to_end[:, :, None]).reshape(heads, -1, n)
    return reader, writer, for_states(from_start[:, -1], n)[..., None]


def finish(chunk: Chunk, found: ChunkMap) -> ChunkMap:
    """The map without the padded steps, and with its states in their own coordinates."""
    rows = chunk.steps * chunk.c.shape[2]
    found = found._replace(
        reader=found.reader[:, :rows],
        weights=found.weights[:, :rows],
        out=None if found.out is None else found.out[:, :rows],
    )
    if chunk.sign is None:
        return found
    # α, B and what is added end in the state after the chunk, whose sign is that of all decays in
    # it. The others end in outputs, which c has brought back already, or begin with the state
    # before, whose sign is +1.
    last = chunk.sign[-1, :, 0]
    return found._replace(
        decay=last[:, :, None] * found.decay,
        writer=last[:, None] * found.writer,
        added=None if found.added is None else last[:, :, None] * found.added,
    )


def decayed_products(
    decays: Decays,
    readers: Array,
    writers: Array,
    *,
    heads: int,
    precision: str,
    exclusive: bool = False,
) -> Array:
    """Decayed inner products of what is read and written, (H, c·k, c·j), time before k and j.

    Args:
        decays: Of the chunk, (H, …, n or 1).
        readers: (c, G, k, n); G groups of heads.
        writers: (c, G', j, n).
        heads: H.
        precision: Of matrix products.
        exclusive: Read the state before the step instead of after it.
    """
    steps, k, j = readers.shape[0], readers.shape[2], writers.shape[2]
    if decays.products is not None:
        # One decay for all n states: α is a matrix of numbers next to the products, which heads of
        # one group share.
        if readers.shape[1] != writers.shape[1]:
            readers, writers = (jnp.moveaxis(by_head(v, heads), 0, 1) for v in (readers, writers))
        alpha = decays.products[..., 1:]
        if exclusive:  # what t reads before its update has decayed by the steps up to t − 1
            alpha = jnp.pad(alpha[:, :-1], [(0, 0), (1, 0), (0, 0)])
        scores = jnp.einsum("tgkn,sgjn->gtksj", readers, writers, precision=precision)
        alpha = alpha.reshape(scores.shape[0], -1, steps, steps)
        if k * j == 1:
            weights = scores[:, None] * alpha[:, :, :, None, :, None]
        else:
            # Not as a product of broadcast arrays: the gradient to α would be a sum over k and j on
            # which XLA's CPU back end of jax 0.10 crashes.
            weights = jnp.einsum("gtksj,ghts->ghtksj", scores, alpha, precision=precision)
        return weights.reshape(heads, steps * k, steps * j)
    # A decay per state stands inside of the sum over n. Start with the steps by themselves, then
    # join halves: between two neighbouring blocks α = exp(P_t) exp(Q_s) goes to the two vectors.
    readers, writers = by_head(readers, heads), by_head(writers, heads)
    products = jnp.einsum("htkn,htjn->htkj", readers, writers, precision=precision)
    if exclusive:  # what a step writes, it does not read
        products = jnp.zeros_like(products)
    for sums in decays.levels[:-1]:
        late = _scaled_half(readers, sums.before if exclusive else sums.upto, 1)
        early = _scaled_half(writers, sums.after, 0)
        low = jnp.einsum("hbtn,hbsn->hbts", late, early, precision=precision)
        first, second = halves(products, products.shape[1] // 2)
        products = lower_blocks(first, low, second, 0.0)
    return products[:, 0]


def _scaled_half(v: Array, log_decay: Array, half: int) -> Array:
    """Decayed vectors in the first (0) or second (1) block of every pair, (H, pairs, m·k, n).

    Args:
        v: (H, c, k, n).
        log_decay: (H, 2·pairs, m, n).
        half: Which block of a pair.
    """
    heads, blocks, size, _ = log_decay.shape
    kinds = v.shape[2]
    v = halves(v.reshape(heads, blocks, size * kinds, -1), blocks // 2)[half]
    decay = jnp.exp(halves(log_decay, blocks // 2)[half])
    if kinds == 1:
        return scaled(v, decay)
    # One kind after the other: the gradient of the product with all at once is a sum on which XLA's
    # CPU back end of jax 0.10 crashes.
    v = v.reshape(*decay.shape[:3], kinds, -1)
    of_kinds = jnp.stack([scaled(v[..., k, :], decay) for k in range(kinds)], axis=3)
    return of_kinds.reshape(heads, blocks // 2, size * kinds, -1)


def scaled(v: Array, decay: Array) -> Array:
    """Vectors (…, n) times decays, as `for_states` takes them."""
    return scaled_rows(v, for_states(decay, v.shape[-1]))


def for_states(decay: Array, n: int) -> Array:
    """Decays (…, n or 1) of all n states; those of one half, (…, n / 2), for both."""
    if decay.shape[-1] in (1, n):
        return decay
    return jnp.concatenate([decay, decay], axis=-1)


def by_head(v: Array, heads: int) -> Array:
    """(c, G, …) to (H, c, …), repeating the groups."""
    v = jnp.moveaxis(v, 1, 0)
    return v if v.shape[0] == heads else jnp.repeat(v, heads // v.shape[0], axis=0)
