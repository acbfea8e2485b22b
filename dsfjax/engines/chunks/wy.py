r"""Chunks by matrix products for diagonal plus low rank, A_t = diag(a_t) − W_t Z_tᵀ: the WY form.

Call what a step reads before its update :math:`r_t = Z_t^\top h_{t-1}`. Then

.. math:: h_t = a_t ⊙ h_{t-1} + b_t x_t^\top - W_t r_t ,

a diagonal recurrence with the additional writes −W_t r_t. If r were known, a chunk would be as in
`products`. It is a sum over the steps before, with α the products of decays,

.. math:: r_t = Z_t^\top \Big( α_{t-1←0} ⊙ h
   + \sum_{s<t} α_{t-1←s} ⊙ (b_s x_s^\top - W_s r_s) \Big) ,

which for all steps together is a unit lower triangular system,

.. math:: (I + T) \, r = \tilde Z h + E X, \quad
   T_{ts} = Z_t^\top (α_{t-1←s} ⊙ W_s), \quad E_{ts} = Z_t^\top (α_{t-1←s} ⊙ b_s), \quad
   \tilde Z_t = Z_t ⊙ α_{t-1←0} .

Its solution is affine in h, so a chunk still is an affine map (`maps`), now with a dense P. With
:math:`F_{ts} = c_t^\top (α_{t←s} ⊙ W_s)` and :math:`\bar W_s = α_{c←s} ⊙ W_s`, the outputs lose F r
and the state loses :math:`\bar W^\top r`. The product of c reflections as one I − W̄ᵀ(…)⁻¹ Z̃ is
the WY (or UT) form that gives the algorithm its name.

The inverse grows with (c k)³, so chunks are shorter than without a low-rank part.

References:
    Yang et al. (2024), arXiv:2406.06484 and arXiv:2412.06464; Bischof & Van Loan (1987).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.transitions import DiagonalPlusLowRank, Transition, to_heads
from dsfjax.engines.chunks.affine import AffineChunks, ChunkMap
from dsfjax.engines.chunks.decay import lower_blocks
from dsfjax.engines.chunks.products import (
    Chunk,
    by_head,
    chunk_of,
    decayed_products,
    ends,
    finish,
    padded,
)
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


class _Reads(NamedTuple):
    """The products of the derivation, for a chunk of c steps and factors of rank k.

    Attributes:
        read_b: c with b, (H, c·R, c·r).
        read_w: F, c with W, (H, c·R, c·k).
        seen_b: E, Z with b, (H, c·k, c·r).
        inverse: (I + T)⁻¹, (H, c·k, c·k).
    """

    read_b: Array
    read_w: Array
    seen_b: Array
    inverse: Array


@dataclass(frozen=True)
class WYForm(AffineChunks):
    """The delta rule and its family as matrix products."""

    name: ClassVar[str] = "matrix products, WY form"

    def against(self, A: Transition, *, states: bool = False) -> str | None:
        """Why it does not run a transition; see `ChunkAlgorithm.against`."""
        if not isinstance(A, DiagonalPlusLowRank):
            return "it is not diagonal plus low rank"
        return "chunks skip the states between" if states else None

    def chunk_map(self, problem: Recurrence, heads: int) -> ChunkMap:
        """All steps of a recurrence as one affine map."""
        # Where time meets time a weight may be 0, and 0 · ∞ is NaN at steps that ∞ does not reach.
        problem = finite(problem)
        precision = problem.precision
        chunk, w, z = _factored(problem, heads)
        matmul = partial(jnp.matmul, precision=precision)
        whole, n = chunk.decays.whole, chunk.b.shape[-1]
        reader, writer, decay = ends(chunk, heads)
        reads = _reads(chunk, w, z, heads, precision)
        # r_t reads the state before the update, which has decayed up to t − 1. What W_s writes
        # decays from s + 1 on, as what b_s writes does.
        before, to_end = jnp.exp(whole.before[:, 0]), jnp.exp(whole.after[:, 0])
        z_start = (by_head(z, heads) * before[:, :, None]).reshape(heads, -1, n)
        w_end = (by_head(w, heads) * to_end[:, :, None]).reshape(heads, -1, n)
        # r as a map of h and as a number, side by side: its columns are Z̃ and E X.
        right = jnp.concatenate([z_start, matmul(reads.seen_b, chunk.x)], axis=-1)
        r = matmul(reads.inverse, right)
        # What outputs and state lose, F r and W̄ᵀ r: n columns that multiply h, then the numbers.
        unread = matmul(reads.read_w, r)
        lost = jnp.einsum("hsn,hsm->hnm", w_end, r, precision=precision)
        out = matmul(reads.read_b, chunk.x) - unread[..., n:]
        added = jnp.einsum("hsn,hsp->hnp", writer, chunk.x, precision=precision) - lost[..., n:]
        # P = diag(α) − W̄ᵀ (I + T)⁻¹ Z̃
        decay = decay * jnp.eye(n, dtype=decay.dtype)[None] - lost[..., :n]
        return finish(chunk, ChunkMap(out, reader - unread[..., :n], decay, added))


WY = WYForm()


def chunk_length(A: Transition) -> int:
    """Steps per chunk whose triangular system stays small, for a transition of any rank."""
    # About 32 rows: the inverse costs their cube, the other products their square.
    return max(8, 32 // max(1, A.low_rank))


def _factored(problem: Recurrence, heads: int) -> tuple[Chunk, Array, Array]:
    """The chunk of the diagonal part, and W and Z (c, H, k, n) in its coordinates."""
    A, steps = problem.A, problem.length
    assert isinstance(A, DiagonalPlusLowRank)
    negative = None if A.sign is None else A.sign < 0
    chunk = chunk_of(problem, heads, A.log_a, negative)
    # Each column of W and Z is written and read like a vector b or c: (c, H, k, n) as those.
    w, z = (
        padded(to_heads(v, heads, -3).astype(problem.x.dtype).swapaxes(-1, -2), steps)
        for v in (A.w, A.z)
    )
    if problem.reset is not None:  # a reset step reads the zero state
        z = jnp.where(padded(problem.reset, steps)[:, None, None, None], 0, z)
    if negative is not None and chunk.sign is not None:
        # Z reads the state before the update, whose sign is that of the step before.
        before = jnp.where(padded(negative, steps)[:, :, None], -chunk.sign, chunk.sign)
        w, z = w * chunk.sign, z * before
    return chunk, w, z


def _reads(chunk: Chunk, w: Array, z: Array, heads: int, precision: str) -> _Reads:
    products = partial(decayed_products, chunk.decays, heads=heads, precision=precision)
    b, c = (to_heads(v.swapaxes(1, 2), heads).swapaxes(1, 2) for v in (chunk.b, chunk.c))
    # b and W are written by the same step: one product of each reader with both.
    writers = jnp.concatenate([b, w], axis=2)
    steps, rank, kinds = writers.shape[0], b.shape[2], writers.shape[2]

    def split(both: Array) -> tuple[Array, Array]:
        both = both.reshape(heads, -1, steps, kinds)
        of_b, of_w = both[..., :rank], both[..., rank:]
        return of_b.reshape(heads, -1, steps * rank), of_w.reshape(heads, -1, of_w[0, 0].size)

    # c reads after the update and Z before it: T and E have no diagonal.
    read_b, read_w = split(products(c, writers))
    seen_b, T = split(products(z, writers, exclusive=True))
    return _Reads(read_b, read_w, seen_b, unit_lower_inverse(T, precision))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_lower_inverse(T: Array, precision: str) -> Array:
    r"""The inverse of I + T for strictly lower triangular T (…, m, m), by halves of halves.

    .. math::
       \begin{pmatrix} A & 0 \\ L & D \end{pmatrix}^{-1} =
       \begin{pmatrix} A^{-1} & 0 \\ -D^{-1} L A^{-1} & D^{-1} \end{pmatrix}

    Matrix products only: a triangular solver runs such small matrices one after another.
    """
    size = T.shape[-1]
    if size <= 4:
        # T⁴ = 0, so the series I − T + T² − T³ is the whole inverse. It has the terms that blocks
        # of halves have; for longer ones it would add powers that are larger than their sum.
        first = jnp.broadcast_to(jnp.eye(size, dtype=T.dtype), T.shape) - T
        square = jnp.matmul(T, T, precision=precision)
        return first + jnp.matmul(first, square, precision=precision)
    half = 1 << ((size - 1).bit_length() - 1)
    if size != 2 * half:  # the identity below and to the right changes nothing above it
        T = jnp.pad(T, [(0, 0)] * (T.ndim - 2) + [(0, 2 * half - size)] * 2)
    # Both inverses of half the size in one batch of products.
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
    # d(M⁻¹) = −M⁻¹ dM M⁻¹: two products, where the recursion above would be differentiated whole.
    inverse = unit_lower_inverse(*primals, precision)
    product = jnp.matmul(inverse, tangents[0], precision=precision)
    return inverse, -jnp.matmul(product, inverse, precision=precision)
