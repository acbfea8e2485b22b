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

Its solution is affine in h, and −r is what the chunk writes (`affine`): with
:math:`F_{ts} = c_t^\top (α_{t←s} ⊙ W_s)` and :math:`\bar W_s = α_{c←s} ⊙ W_s`, the outputs lose F r
and the state loses :math:`\bar W^\top r`. The product of c reflections as one I − W̄ᵀ(…)⁻¹ Z̃ is
the WY (or UT) form that gives the algorithm its name.

W here is W S of the transition. A delta rule corrects what it writes by what is there already, and
its W is b, so with the numbers S

.. math:: h_t = a_t ⊙ h_{t-1} + b_t u_t^\top, \quad u_t = x_t - S_t r_t, \quad
   (I + S E) \, u = X - S \tilde Z h ,

and products with b are all there are. A recurrence says so by being ``tied``.

The inverse grows with (c k)³, so chunks are shorter than without a low-rank part.

References:
    Yang et al. (2024), arXiv:2406.06484 and arXiv:2412.06464; Bischof & Van Loan (1987).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core.rows import scaled_rows
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
    scaled,
)
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


@dataclass(frozen=True)
class WYForm(AffineChunks):
    """The delta rule and its family as matrix products."""

    name: ClassVar[str] = "matrix products, WY form"
    takes_tied: ClassVar[bool] = True

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
        chunk, w, z, scale = _factored(problem, heads)
        matmul = partial(jnp.matmul, precision=precision)
        products = partial(decayed_products, chunk.decays, heads=heads, precision=precision)
        n = chunk.b.shape[-1]
        reader, writer, decay = ends(chunk, heads)
        # r_t reads the state before the update, which has decayed up to t − 1.
        z_start = scaled(by_head(z, heads), chunk.decays.before()[:, :, None])
        z_start = z_start.reshape(heads, -1, n)
        if w is None:  # (I + S E) u = X − S Z̃ h
            weights, E = products(chunk.c, chunk.b), products(z, chunk.b, exclusive=True)
            if scale is not None:
                z_start, E = scale * z_start, scale * E
            inverse = unit_lower_inverse(E, precision)
            values, seen = matmul(inverse, chunk.x), matmul(inverse, z_start)
            return finish(chunk, ChunkMap(decay, reader, weights, values, writer, seen))
        # What W_s writes decays from s + 1 on, as what b_s writes does.
        w_end = scaled(by_head(w, heads), chunk.decays.to_end()[:, :, None])
        read_b, read_w, seen_b, T = _products_with_both(chunk, w, z, heads, products)
        inverse = unit_lower_inverse(T, precision)
        found = ChunkMap(
            decay,
            reader,
            read_w,
            -matmul(inverse, matmul(seen_b, chunk.x)),
            w_end.reshape(heads, -1, n),
            matmul(inverse, z_start),
            out=matmul(read_b, chunk.x),
            added=jnp.einsum("hsn,hsp->hnp", writer, chunk.x, precision=precision),
        )
        return finish(chunk, found)


WY = WYForm()


def chunk_length(A: Transition) -> int:
    """Steps per chunk whose triangular system stays small, for a transition of any rank."""
    # About 32 rows: the inverse costs their cube, the other products their square.
    return max(8, 32 // max(1, A.low_rank))


def _factored(problem: Recurrence, heads: int) -> tuple[Chunk, Array | None, Array, Array | None]:
    """The chunk of the diagonal part, and W and Z (c, H, k, n) in its coordinates.

    Where W = b S, W is None, and S, (H, c, 1), is given apart.
    """
    A, steps = problem.A, problem.length
    assert isinstance(A, DiagonalPlusLowRank)
    negative = None if A.sign is None else A.sign < 0
    chunk = chunk_of(problem.untie(), heads, A.log_a, negative)

    # Each column of W and Z is written and read like a vector b or c: (c, H, k, n) as those.
    def columns(v: Array) -> Array:
        v = to_heads(v, heads, -3).astype(problem.x.dtype)
        return padded(v.swapaxes(-1, -2), steps)

    w, z = A.factors()
    z = columns(z)
    if problem.reset is not None:  # a reset step reads the zero state
        z = jnp.where(padded(problem.reset, steps)[:, None, None, None], 0, z)
    if negative is not None and chunk.sign is not None:
        # Z reads the state before the update, whose sign is that of the step before.
        z = z * jnp.where(padded(negative, steps)[:, :, None], -chunk.sign, chunk.sign)
    scale = None if A.scale is None else padded(A.scale.astype(problem.x.dtype), steps)
    if problem.tied:
        return chunk, None, z, None if scale is None else scale.swapaxes(0, 1)
    w = columns(w)
    w = w if scale is None else scaled_rows(w, scale[..., None])
    return chunk, w if chunk.sign is None else w * chunk.sign, z, None


def _products_with_both(
    chunk: Chunk, w: Array, z: Array, heads: int, products: Callable[..., Array]
) -> tuple[Array, Array, Array, Array]:
    """The products of the derivation where b and W differ, of c steps with factors of rank k.

    Returns:
        c with b (H, c·R, c·r); c with W, F (H, c·R, c·k); Z with b, E (H, c·k, c·r); Z with W,
        T (H, c·k, c·k).
    """
    b, c = (to_heads(v.swapaxes(1, 2), heads).swapaxes(1, 2) for v in (chunk.b, chunk.c))
    # b and W are written by the same step: one product of each reader with both.
    writers = jnp.concatenate([b, w], axis=2)
    steps, rank, kinds = writers.shape[0], b.shape[2], writers.shape[2]

    def split(both: Array) -> tuple[Array, Array]:
        both = both.reshape(heads, -1, steps, kinds)
        of_b, of_w = both[..., :rank], both[..., rank:]
        return of_b.reshape(heads, -1, steps * rank), of_w.reshape(heads, -1, of_w[0, 0].size)

    # c reads after the update and Z before it: T and E have no diagonal.
    return *split(products(c, writers)), *split(products(z, writers, exclusive=True))


DIRECT = 16
"""Rows up to which an inverse is made of products of whole matrices."""


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_lower_inverse(T: Array, precision: str) -> Array:
    r"""The inverse of I + T for strictly lower triangular T (…, m, m), by halves of halves.

    .. math::
       \begin{pmatrix} A & 0 \\ L & D \end{pmatrix}^{-1} =
       \begin{pmatrix} A^{-1} & 0 \\ -D^{-1} L A^{-1} & D^{-1} \end{pmatrix}

    Matrix products only: a triangular solver runs such small matrices one after another. So does a
    batch of products of 4 × 4: up to `DIRECT` rows the blocks of one size stay where they are in a
    matrix J of the whole size, with zeros around them, and the formula for all of them at once is
    J − J L J.
    """
    size = T.shape[-1]
    if size <= DIRECT:
        return _directly(T, precision)
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


def _directly(T: Array, precision: str) -> Array:
    """The inverse of I + T, by products of matrices of its size."""
    size, matmul = T.shape[-1], partial(jnp.matmul, precision=precision)
    t, s = np.ogrid[:size, :size]

    def only(where: np.ndarray) -> Array:
        return jnp.where(jnp.broadcast_to(where, T.shape), T, 0)

    # T⁴ = 0 within blocks of 4, so the series I − T + T² − T³ is the whole inverse. It has the
    # terms that blocks of halves have; for longer ones it would add powers that are larger than
    # their sum.
    steps = 4
    first = only(t // steps == s // steps)
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=T.dtype), T.shape) - first
    inverse = inverse + matmul(inverse, matmul(first, first))
    while steps < size:
        low = only((t // steps != s // steps) & (t // (2 * steps) == s // (2 * steps)))
        inverse, steps = inverse - matmul(matmul(inverse, low), inverse), 2 * steps
    return inverse


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(
    precision: str, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # d(M⁻¹) = −M⁻¹ dM M⁻¹: two products, where the recursion above would be differentiated whole.
    inverse = unit_lower_inverse(*primals, precision)
    product = jnp.matmul(inverse, tangents[0], precision=precision)
    return inverse, -jnp.matmul(product, inverse, precision=precision)
