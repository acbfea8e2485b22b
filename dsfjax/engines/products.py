r"""A chunk of steps as one affine map of the state, by matrix products.

For decays that are the same for all value channels, a chunk that starts from the state h is

.. math:: S = Y + R h, \qquad h' = P h + Q,

with S the outputs (c, p) of its c steps. Without a low-rank part, with decays :math:`α_{t←s}`
(see `decay`),

.. math:: Y = (C B^\top ⊙ α) X, \quad R_t = c_t ⊙ α_{t←0}, \quad P = α_{c←0}, \quad
   Q = \sum_s (α_{c←s} ⊙ b_s) x_s^\top ,

which is linear attention on a short sequence (GLA, SSD). A low-rank part −W_t Z_tᵀ adds what the
steps read from one another, :math:`r_t = Z_t^\top h_{t-1}`: a unit lower triangular system
(I + T) r = Z̃ h + E X, the WY or UT form of the delta rule. Its solution is affine in h, too.

References:
    Yang et al. (2023), arXiv:2312.06635; Dao & Gu (2024), arXiv:2405.21060; Yang et al. (2024),
    arXiv:2406.06484 and arXiv:2412.06464.
"""

from __future__ import annotations

from functools import partial, singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.diagonal import Elementwise
from dsfjax.core.transitions import DiagonalPlusLowRank, Transition, to_heads
from dsfjax.engines.decay import Sums, between, block_sums, halves, lower_blocks
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


class ChunkMap(NamedTuple):
    """A chunk of c steps as an affine map of the state before it, one sequence, heads first.

    Attributes:
        out: Outputs from the zero state Y, (H, c·R, p).
        reader: How the outputs see the state R, (H, c·R, n).
        decay: How the state crosses the chunk P: (H, 1, 1) or (H, n, 1) elementwise, or (H, n, n).
        added: State after the chunk from the zero state Q, (H, n, p).
    """

    out: Array
    reader: Array
    decay: Array
    added: Array

    def apply(self, h: Array, precision: str) -> Array:
        """The state after the chunk, P h + Q."""
        return cross(self.decay, h, precision) + self.added


def cross(decay: Array, h: Array, precision: str) -> Array:
    """P h: a matrix product for P (H, n, n), else elementwise."""
    return jnp.matmul(decay, h, precision=precision) if is_dense(decay) else decay * h


def is_dense(decay: Array) -> bool:
    """Whether a chunk mixes its states."""
    return decay.shape[-1] > 1


class _Chunk(NamedTuple):
    """A recurrence of c steps, padded to a power of two by steps that change nothing.

    Attributes:
        levels: Sums of log decays, axes (H, blocks, m, n or 1).
        x: (H, c·r, p).
        b: (c, G, r, n).
        c: (c, G, R, n).
        w: (c, H, k, n), or None without a low-rank part.
        z: (c, H, k, n), 0 at reset steps, where what is read is the zero state.
        sign: Sign of the product of all decays, (H, n or 1), or None. Negative decays are positive
            ones in coordinates that change sign with them; b, c, w and z are in these.
    """

    levels: list[Sums]
    x: Array
    b: Array
    c: Array
    w: Array | None
    z: Array | None
    sign: Array | None


def chunk_map(problem: Recurrence, heads: int) -> ChunkMap:
    """Summarise all steps of a recurrence whose decays do not vary over the value channels."""
    # Where time meets time a weight may be 0, and 0 · ∞ is NaN at steps that ∞ does not reach.
    problem = finite(problem)
    precision, steps = problem.precision, problem.length
    matmul = partial(jnp.matmul, precision=precision)
    chunk = _chunk(problem, heads)
    whole, n = chunk.levels[-1], chunk.b.shape[-1]
    from_start, to_end = jnp.exp(whole.upto[:, 0]), jnp.exp(whole.after[:, 0])
    reader = (_by_head(chunk.c, heads) * from_start[:, :, None]).reshape(heads, -1, n)
    writer = (_by_head(chunk.b, heads) * to_end[:, :, None]).reshape(heads, -1, n)
    decay = from_start[:, -1, :, None]
    added = jnp.einsum("hsn,hsp->hnp", writer, chunk.x, precision=precision)
    read_b, reads = _products(chunk, heads, precision)
    out = matmul(read_b, chunk.x)
    if reads is not None and chunk.w is not None and chunk.z is not None:
        before = jnp.exp(whole.before[:, 0])[:, :, None]
        z_start = (_by_head(chunk.z, heads) * before).reshape(heads, -1, n)
        w_end = (_by_head(chunk.w, heads) * to_end[:, :, None]).reshape(heads, -1, n)
        # What the steps read from the state before the chunk, and from one another.
        seen = jnp.concatenate([z_start, matmul(reads.seen_b, chunk.x)], axis=-1)
        seen = matmul(reads.inverse, seen)
        corrected = matmul(reads.read_w, seen)
        lost = jnp.einsum("hsn,hsm->hnm", w_end, seen, precision=precision)
        reader, out = reader - corrected[..., :n], out - corrected[..., n:]
        decay = decay * jnp.eye(n, dtype=decay.dtype)[None] - lost[..., :n]
        added = added - lost[..., n:]
    if chunk.sign is not None:
        decay, added = (chunk.sign[:, :, None] * x for x in (decay, added))
    rows = steps * chunk.c.shape[2]
    return ChunkMap(out[:, :rows], reader[:, :rows], decay, added)


def kernel(problem: Recurrence, heads: int) -> Array:
    """Φ_{t,s} = c_tᵀ A_t ⋯ A_{s+1} b_s of all steps as one chunk, (H, L·R, L·r)."""
    steps, precision = problem.length, problem.precision
    chunk = _chunk(problem, heads)
    read_b, reads = _products(chunk, heads, precision)
    if reads is not None:
        seen = jnp.matmul(reads.inverse, reads.seen_b, precision=precision)
        read_b = read_b - jnp.matmul(reads.read_w, seen, precision=precision)
    return read_b[:, : steps * chunk.c.shape[2], : steps * chunk.b.shape[2]]


class _Reads(NamedTuple):
    """What the low-rank part of a chunk reads and is read by, products (H, steps·k, steps·j).

    Attributes:
        read_w: c with w.
        inverse: (I + z with w)⁻¹, what the steps read from one another.
        seen_b: z with b.
    """

    read_w: Array
    inverse: Array
    seen_b: Array


def _products(chunk: _Chunk, heads: int, precision: str) -> tuple[Array, _Reads | None]:
    """The products of c with b, (H, c·R, c·r); and those of the low-rank part, if there is one."""
    weights = partial(_weights, chunk.levels, heads=heads, precision=precision)
    if chunk.w is None or chunk.z is None:
        return weights(chunk.c, chunk.b), None
    b, c = (to_heads(v.swapaxes(1, 2), heads).swapaxes(1, 2) for v in (chunk.b, chunk.c))
    writers = jnp.concatenate([b, chunk.w], axis=2)
    steps, rank, kinds = writers.shape[0], b.shape[2], writers.shape[2]

    def split(products: Array) -> tuple[Array, Array]:
        products = products.reshape(heads, -1, steps, kinds)
        first, second = products[..., :rank], products[..., rank:]
        return first.reshape(heads, -1, steps * rank), second.reshape(heads, -1, second[0, 0].size)

    read_b, read_w = split(weights(c, writers))
    seen_b, seen_w = split(weights(chunk.z, writers, exclusive=True))
    return read_b, _Reads(read_w, unit_lower_inverse(seen_w, precision), seen_b)


def _chunk(problem: Recurrence, heads: int) -> _Chunk:
    """Bring a recurrence to the axes of `_Chunk`."""
    dtype, steps = problem.x.dtype, problem.length
    log_a, negative, w, z = decay_and_low_rank(problem.A)
    padded = 1 << (steps - 1).bit_length()

    def over(v: Array) -> Array:
        v = jnp.broadcast_to(v, (steps, *v.shape[1:]))
        return jnp.pad(v, [(0, padded - steps)] + [(0, 0)] * (v.ndim - 1))

    log_a = jnp.broadcast_to(log_a, (log_a.shape[0], heads, log_a.shape[2])).astype(dtype)
    if problem.reset is not None:
        log_a = jnp.where(problem.reset[:, None, None], -jnp.inf, log_a)
    one = jnp.ones((1, 1, 1, 1), dtype)
    b, c = (over(one if v is None else v).swapaxes(1, 2) for v in (problem.b, problem.c))
    if w is not None and z is not None:
        w, z = (over(to_heads(v, heads, -3).astype(dtype).swapaxes(-1, -2)) for v in (w, z))
        if problem.reset is not None:
            z = jnp.where(over(problem.reset)[:, None, None, None], 0, z)
    sign = None
    if negative is not None:
        odd = jnp.cumsum(over(negative), axis=0) % 2 == 1
        after = jnp.where(odd, -1, 1).astype(dtype)[:, :, None]  # (c, H, 1, n or 1)
        before = jnp.where(over(negative)[:, :, None], -after, after)
        b, c = (to_heads(v, heads, 1) * after for v in (b, c))
        w, z = (None if v is None else v * s for v, s in ((w, after), (z, before)))
        sign = after[-1, :, 0]
    x = jnp.moveaxis(over(problem.x), 2, 0).reshape(heads, -1, problem.x.shape[-1])
    return _Chunk(block_sums(jnp.moveaxis(over(log_a), 0, 1)), x, b, c, w, z, sign)


@singledispatch
def decay_and_low_rank(
    A: Transition,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """Log |a| (T, H, n or 1), where a is negative, W and Z (T, G, n, k) of A = diag(a) − W Zᵀ."""
    raise TypeError(f"chunks by matrix products: no form for {type(A).__name__}.")


@decay_and_low_rank.register
def _(A: Elementwise) -> tuple[Array, Array | None, Array | None, Array | None]:
    negative = A.negative()
    return A.log_decay()[..., 0], None if negative is None else negative[..., 0], None, None


@decay_and_low_rank.register
def _(A: DiagonalPlusLowRank) -> tuple[Array, Array | None, Array | None, Array | None]:
    return A.log_a, None if A.sign is None else A.sign < 0, A.w, A.z


def _weights(
    levels: list[Sums],
    readers: Array,
    writers: Array,
    *,
    heads: int,
    precision: str,
    exclusive: bool = False,
) -> Array:
    """Decayed inner products of what is read and written, (H, c·k, c·j), time before k and j.

    Args:
        levels: Sums of log decays, (H, …, n or 1).
        readers: (c, G, k, n); G groups of heads.
        writers: (c, G', j, n).
        heads: H.
        precision: Of matrix products.
        exclusive: Read the state before the step instead of after it.
    """
    steps, k, j = readers.shape[0], readers.shape[2], writers.shape[2]
    if levels[0].upto.shape[-1] == 1:
        if readers.shape[1] != writers.shape[1]:
            readers, writers = (jnp.moveaxis(_by_head(v, heads), 0, 1) for v in (readers, writers))
        alpha = between(levels)
        if exclusive:
            alpha = jnp.pad(alpha[:, :-1], [(0, 0), (1, 0), (0, 0)])
        scores = jnp.einsum("tgkn,sgjn->gtksj", readers, writers, precision=precision)
        alpha = alpha.reshape(scores.shape[0], -1, steps, 1, steps, 1)
        return (scores[:, None] * alpha).reshape(heads, steps * k, steps * j)
    readers, writers = _by_head(readers, heads), _by_head(writers, heads)
    products = jnp.einsum("htkn,htjn->htkj", readers, writers, precision=precision)
    if exclusive:
        products = jnp.zeros_like(products)
    for sums in levels[:-1]:
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
    heads, blocks, size, n = log_decay.shape
    kinds = v.shape[2]
    v = v.reshape(heads, blocks // 2, 2, size, kinds, n)[:, :, half]
    decay = jnp.exp(halves(log_decay, blocks // 2)[half])
    # One kind after the other: the gradient of the product with all at once is a sum on which XLA's
    # CPU back end of jax 0.10 crashes.
    scaled = jnp.stack([v[..., k, :] * decay for k in range(kinds)], axis=3)
    return scaled.reshape(heads, blocks // 2, size * kinds, n)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_lower_inverse(T: Array, precision: str) -> Array:
    r"""The inverse of I + T for strictly lower triangular T (…, m, m), by halves of halves.

    .. math::
       \begin{pmatrix} A & 0 \\ L & D \end{pmatrix}^{-1} =
       \begin{pmatrix} A^{-1} & 0 \\ -D^{-1} L A^{-1} & D^{-1} \end{pmatrix}

    Matrix products only: a triangular solver runs such small matrices one after another.
    """
    size = T.shape[-1]
    if size == 1:
        return jnp.ones_like(T)
    half = 1 << ((size - 1).bit_length() - 1)
    if size != 2 * half:  # the identity below and to the right changes nothing above it
        T = jnp.pad(T, [(0, 0)] * (T.ndim - 2) + [(0, 2 * half - size)] * 2)
    corners = jnp.stack([T[..., :half, :half], T[..., half:, half:]], axis=-3)
    corners = unit_lower_inverse(corners, precision)
    first, second = corners[..., 0, :, :], corners[..., 1, :, :]
    low = jnp.matmul(second, T[..., half:, :half], precision=precision)
    low = -jnp.matmul(low, first, precision=precision)
    return lower_blocks(first, low, second, 0.0)[..., :size, :size]


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(
    precision: str, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(*primals, precision)
    product = jnp.matmul(inverse, tangents[0], precision=precision)
    return inverse, -jnp.matmul(product, inverse, precision=precision)


def _by_head(v: Array, heads: int) -> Array:
    """(c, G, …) to (H, c, …), repeating the groups."""
    v = jnp.moveaxis(v, 1, 0)
    return v if v.shape[0] == heads else jnp.repeat(v, heads // v.shape[0], axis=0)
