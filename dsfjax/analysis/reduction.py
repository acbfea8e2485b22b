r"""Balanced truncation: a smaller system that keeps what passes through the state.

How far it is from the original is its gain: the largest amplification of a causal linear map,
measured without writing the map out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dsfjax._util.factor import one_by_one
from dsfjax._util.jitted import jitted
from dsfjax.analysis.gramians import (
    Blocks,
    Gramians,
    adjoint,
    blocks,
    gramians,
    gramians_of_blocks,
    matmul,
    square_root,
)
from dsfjax.analysis.normalizer import channel_maps, finite
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    DenseSkip,
    InnerOutput,
    KernelSystem,
    OuterInput,
    System,
    steps,
)
from dsfjax.core.dense import skip_matrix
from dsfjax.core.dtypes import real_dtype
from dsfjax.engines import scan


@jitted("iterations", functions=("f",))
def gain(
    f: Callable[[Float[Array, "L d"]], Float[Array, "L d_out"]],
    u: Float[Array, "L d"],
    *,
    iterations: int = 40,
) -> Float[Array, ""]:
    r"""The norm of a linear map of sequences, its largest singular value.

    .. math:: \max_u \frac{\|f(u)\|_2}{\|u\|_2}, \qquad \|u\|_2^2 = \sum_t \|u_t\|^2 .

    For a constant system over infinite time it is the H∞ norm of its transfer function. The gain of
    the difference of two systems says how far apart their outputs can be.

    Args:
        f: A linear function of tokens, such as ``lambda u: scan(system, u)[0]``. A
            `jax.tree_util.Partial` of a function and a system is compiled once for all systems of
            a shape.
        u: Tokens to start from, (L, d), not zero; random ones are good.
        iterations: Steps of the Lanczos iteration.

    Returns:
        The gain, a scalar: exact to rounding after L·d iterations, before that a lower bound that
        converges fast.

    Numerics:
        Lanczos iteration on fᵀf with full orthogonalisation: one f and one transposed f per
        iteration, O(iterations · L d) memory.

    References:
        Golub & Van Loan, "Matrix Computations", chapter 10.

    Example:
        >>> u = jnp.array([[1.0], [1.0], [1.0]])
        >>> round(float(gain(lambda u: 3 * u, u)), 4)
        3.0
    """
    transpose = jax.vjp(f, u)[1]
    tiny = jnp.finfo(u.dtype).eps

    def advance(
        carry: tuple[Array, Array, Array], i: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, v, previous = carry
        basis = basis.at[i].set(v.reshape(-1))
        w = transpose(f(v))[0].reshape(-1)
        alpha = jnp.vdot(v.reshape(-1), w)
        for _ in range(2):  # once is not enough to be orthogonal to rounding
            w = w - jnp.matmul(jnp.matmul(basis, w, precision="highest"), basis)
        beta = jnp.linalg.norm(w)
        largest = jnp.maximum(previous, jnp.abs(alpha))
        # An invariant subspace is found: what remains is rounding.
        v = jnp.where(beta > tiny * largest, w / beta, 0).reshape(v.shape)
        return (basis, v, largest), (alpha, jnp.where(beta > tiny * largest, beta, 0))

    basis = jnp.zeros((iterations, u.size), u.dtype)
    start = (basis, u / jnp.linalg.norm(u), jnp.zeros((), u.dtype))
    _, (alpha, beta) = jax.lax.scan(advance, start, jnp.arange(iterations))
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(tridiagonal)[-1], 0))


class Reduction(NamedTuple):
    """A smaller system, and how far it is from the one it came from.

    Attributes:
        system: The smaller `System`, in the paper's coordinates.
        singular_values: Hankel singular values of the original, (T, H, c, n), descending.
        error: Gain of the difference (`gain`): the largest ‖y − ŷ‖ over ‖v‖, with ‖·‖ over time and
            channels and v the values (the tokens, where B or C is dense).
        bound: Twice the sum of the singular values that were left out, of the worst block, which
            bounds ``error`` if nothing varies in time; None otherwise.
    """

    system: System
    singular_values: Array
    error: Array
    bound: Array | None


@jitted("order", "length")
def balanced_truncation(
    system: System | KernelSystem, order: int, *, length: int | None = None
) -> Reduction:
    r"""Keep the ``order`` directions of every block that are best driven and read.

    With P = S Sᴴ, Q = R Rᴴ and RᴴS = U Σ Vᴴ at every step, and subscript r for the leading r,

    .. math::
       L_t = Σ_r^{-1/2} U_r^H R^H, \quad T_t = S V_r Σ_r^{-1/2}, \qquad
       \hat Λ_t = L_t Λ_t T_{t-1}, \; \hat B_t = L_t B_t, \; \hat C_t = C_t T_t .

    Blocks are those of `gramians`: r states for each value channel, or of the whole state where B
    or C is dense.

    Args:
        system: A finite system of one sequence.
        order: r, between 1 and n (N where B or C is dense).
        length: L over which the error is measured, needed only for a system that is constant in
            time; that one is reduced by its Gramians over infinite time and stays constant.

    Returns:
        `Reduction`. Its transition is `Dense`; the heads are those of ``system`` if the channels of
        a head have equal blocks, else every channel becomes a head of its own.

    Raises:
        ValueError: For a `KernelSystem`, an order outside its range, or a constant system without
            ``length``.

    Numerics:
        O(L H c n³) work and O(L H c n²) memory if the system varies in time: every step has its own
        coordinates. Directions whose singular value is rounding noise are set to zero.

    References:
        Moore (1981), IEEE TAC 26(1). Bound: Enns (1984), 23rd CDC; discrete time: Al-Saggaf &
        Franklin (1987), IEEE TAC 32(9). Time-varying: Sandberg & Rantzer (2004), IEEE TAC 49(2).

    Example:
        Two states, one of which is hardly read:

        >>> import dsfjax
        >>> A = dsfjax.Diagonal(jnp.log(jnp.array([0.5, 0.9])).reshape(1, 1, 2, 1))
        >>> b, c = jnp.ones((1, 1, 2)), jnp.array([[[1.0, 1e-3]]])
        >>> maps = dsfjax.OuterInput(b), dsfjax.InnerOutput(c)
        >>> s = dsfjax.System(A, *maps, state_shape=(1, 2, 1))
        >>> small = balanced_truncation(s, 1, length=64)
        >>> small.system.state_shape, bool(small.error <= small.bound < 0.02)
        ((1, 1, 1), True)
    """
    system = finite("balanced_truncation", system)
    constant = system.length is None
    if constant and length is None:
        raise ValueError(
            "balanced_truncation: expected a length, the steps over which the error is measured, "
            "because nothing in this system varies in time."
        )
    length = steps(system, length, owner="balanced_truncation")
    found = blocks("balanced_truncation", system, None if constant else length)
    n = found.B.shape[-2]
    if not 1 <= order <= n:
        raise ValueError(f"balanced_truncation: expected an order in [1, {n}], got {order}.")
    if constant:
        both = gramians(system)
    else:
        both = gramians_of_blocks(found, length, range(length))
    values, left, right = balancing(both, order)
    small = _assemble(system, _project(found, left, right), order)
    bound = None
    if constant:
        factor = 2 if system.C.conjugate_pairs and system.is_complex else 1
        bound = 2 * factor * jnp.max(jnp.sum(values[0, ..., order:], axis=-1))
    return Reduction(small, values, _distance(system, small, length), bound)


class Balancing(NamedTuple):
    """Coordinates in which every direction is driven as much as it is read, the leading ones alone.

    Attributes:
        singular_values: √eig(P Q) of all directions, (…, n), descending.
        left: L, to the leading r coordinates, (…, r, n).
        right: T, back from them, (…, n, r); L T is the identity.
    """

    singular_values: Array
    left: Array
    right: Array


@jitted("order")
def balancing(both: Gramians, order: int) -> Balancing:
    r"""Projections that balance two Gramians and keep ``order`` directions.

    With P = S Sᴴ, Q = R Rᴴ, RᴴS = U Σ Vᴴ, and subscript r for the leading r,

    .. math:: L = Σ_r^{-1/2} U_r^H R^H, \quad T = S V_r Σ_r^{-1/2}.

    Vectors k that P was made of and q that Q was made of then have qᵀk ≈ (Tᵀq)ᵀ(L k), exactly so
    if RᴴS has no more than r directions.

    Args:
        both: P and Q, (…, n, n), Hermitian and at least 0.
        order: r, from 1 to n.

    Returns:
        `Balancing`.

    Numerics:
        Two eigendecompositions and a singular value decomposition of (n, n). Directions whose
        singular value is rounding noise are set to zero.

    References:
        Moore (1981), IEEE TAC 26(1).

    Example:
        >>> both = Gramians(jnp.diag(jnp.array([4.0, 1.0])), jnp.diag(jnp.array([1.0, 0.01])))
        >>> values, left, right = balancing(both, 1)
        >>> [round(x, 4) for x in values.tolist()], round(float((left @ right)[0, 0]), 4)
        ([2.0, 0.1], 1.0)
    """
    S, R = (square_root(x) for x in both)
    U, values, Vh = one_by_one(
        lambda x: jnp.linalg.svd(x, full_matrices=False), matmul(adjoint(R), S)
    )
    noise = values.shape[-1] * jnp.finfo(values.dtype).eps
    largest = values[..., :1]
    kept = values[..., :order]
    weight = jnp.where(kept > noise * largest, 1 / jnp.sqrt(jnp.where(kept > 0, kept, 1)), 0)
    weight = weight.astype(S.dtype)
    left = weight[..., :, None] * matmul(adjoint(U[..., :order]), adjoint(R))
    right = matmul(S, adjoint(Vh[..., :order, :])) * weight[..., None, :]
    return Balancing(values, left, right)


def _project(found: Blocks, left: Array, right: Array) -> Blocks:
    before = right if right.shape[0] == 1 else jnp.concatenate([right[:1], right[:-1]])
    if found.is_diagonal:
        A = matmul(left, found.A[..., None] * before)
    else:
        A = matmul(left, matmul(found.A, before))
    return Blocks(A, matmul(left, found.B), matmul(found.C, right), found.copies)


def _assemble(system: System, small: Blocks, order: int) -> System:
    """The reduced blocks as a System with the value map and the skip of the original."""
    pairs, before, D = system.C.conjugate_pairs, system.C.before_update, system.D
    if before and small.C.shape[0] > 1:  # the blocks have the C of the step after
        small = dataclasses.replace(small, C=jnp.roll(small.C, 1, axis=0))
    if not system.acts_on_values:
        skip = None if D is None else DenseSkip(skip_matrix(system))
        B, C = (x[:, 0, 0] for x in (small.B, small.C))
        return System(
            Dense(small.A[:, 0]),
            DenseInput(B),
            DenseOutput(C, pairs, before),
            skip,
            reset=system.reset,
            state_shape=(1, order, 1),
            length=system.length,
        )
    wide, read = channel_maps(system)
    if wide.rank * read.rank > 1:
        raise ValueError(
            "balanced_truncation: expected one value and one output per channel; for an input or "
            "output of higher rank take to_dense(system) first."
        )
    heads, _, p = system.state_shape
    num_blocks = heads * small.B.shape[2]

    def merged(x: Array) -> Array:
        return x.reshape(x.shape[0], num_blocks, *x.shape[3:])

    return System(
        Dense(merged(small.A)),
        OuterInput(merged(small.B)[..., 0], W=wide.W),
        InnerOutput(merged(small.C)[..., 0, :], conjugate_pairs=pairs, before_update=before),
        None if D is None else D.split_heads(num_blocks, system.state_shape),
        reset=system.reset,
        state_shape=(num_blocks, order, heads * p // num_blocks),
        length=system.length,
    )


def _distance(system: System, small: System, steps: int) -> Array:
    """Gain of the difference, without skip, and without the value map of a structured system."""

    def bare(s: System) -> System:
        s = dataclasses.replace(s, D=None)
        if not s.acts_on_values:
            return s
        return dataclasses.replace(s, B=channel_maps(s)[0].on_values())

    a, b = bare(system), bare(small)
    shape = (steps, a.token_width)
    u = jax.random.normal(jax.random.key(0), shape, real_dtype(system.dtype))
    return gain(Partial(_difference, a, b), u)


def _difference(a: System, b: System, u: Array) -> Array:
    return scan(a, u)[0] - scan(b, u)[0]
