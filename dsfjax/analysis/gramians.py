r"""Gramians of a time-varying system: what inputs can reach, and what outputs can show.

Inputs are white noise of variance 1 on every value channel (on every token, where B or C is dense):

.. math::
   P_t = Λ_t P_{t-1} Λ_t^H + B_t B_t^H, \qquad
   Q_t = C_t^H C_t + Λ_{t+1}^H Q_{t+1} Λ_{t+1},

in the paper's coordinates. P_t is the covariance of the state, h^H Q_t h the energy that a state h
still sends to the outputs from step t on. Both include the present step, and the skip passes by.
The square roots of the eigenvalues of P_t Q_t do not depend on coordinates: what goes from the past
to the future *through* the state.

They are computed for the parts of the state that never meet. With structured maps every value
channel j of a head h drives n states of its own and is read back from them alone, so a system of
N = H·n·p states is H·p systems of n states with one input and one output each. Where decay, scale
and gate do not vary over p, the p systems of a head are the same. A dense B or C joins everything,
and the whole state is one block.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsfjax._util.accumulation import running
from dsfjax._util.factor import one_by_one
from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import channel_maps, finite, normalized
from dsfjax.analysis.phi import on_values
from dsfjax.core import KernelSystem, System, steps
from dsfjax.core.pytree import pytree, static
from dsfjax.core.transitions import to_heads


@pytree
class Blocks:
    """Independent systems h_t = A_t h_{t−1} + B_t u_t, y_t = C_t h_t in the paper's coordinates.

    There are H × c of them: one per head and value channel, or one per head that stands for all its
    channels (c = 1), or one for the whole state (H = c = 1).

    Attributes:
        A: Eigenvalues (T, H, c, n) of a diagonal transition, or matrices (T, H, c or 1, n, n); zero
            at resets.
        B: (T, H, c, n, m): m values are written, as many as the rank of the input map, or the d
            tokens of the whole state.
        C: (T, H, c, r, n): r inner products, or the d_out outputs of the whole state. Where the
            output reads the state before the update, the products of the next step.
        copies: How many equal blocks each of them stands for.
    """

    A: Array
    B: Array
    C: Array
    copies: int = static(default=1)

    @property
    def is_diagonal(self) -> bool:
        """Whether the transitions are given as diagonals."""
        return self.A.ndim == 4


def blocks(owner: str, system: System | KernelSystem, length: int | None) -> Blocks:
    """The independent blocks of a system over ``length`` steps (what is constant has T = 1)."""
    length = steps(system, length, owner=owner)
    system = normalized(finite(owner, system), length=length)
    if system.acts_on_values:
        found = _of_channels(on_values(owner, system), system.state_shape[2])
    else:
        found = _whole(system)
    if not system.C.before_update:
        return found
    # What the state of a step sends to the outputs begins with the step after it.
    C = found.C
    if system.length is not None:
        C = jnp.broadcast_to(C, (length, *C.shape[1:]))
        C = jnp.concatenate([_cut(C, system.reset)[1:], jnp.zeros_like(C[:1])])
    return dataclasses.replace(found, C=C)


def _of_channels(system: System, p: int) -> Blocks:
    heads, n, channels = system.state_shape
    (B, C), A, dtype = channel_maps(system), system.A, system.dtype

    def outer(rank: int, vector: Array | None, factor: Array | None) -> Array:
        """(T, H, c, r, n) from (T, r, groups, n) and (T, r, H, p or 1)."""
        one = jnp.ones((1, rank, heads, 1), dtype)
        vector = one if vector is None else to_heads(vector, heads).astype(dtype)
        factor = one if factor is None else factor.astype(dtype)
        product = vector[:, :, :, None, :] * factor[:, :, :, :, None]
        product = jnp.broadcast_to(product, (product.shape[0], rank, heads, channels, n))
        return jnp.moveaxis(product, 1, 3)

    if A.is_diagonal:
        transition = A.decay().astype(dtype).swapaxes(2, 3)  # type: ignore[attr-defined]
        transition = jnp.broadcast_to(transition, (transition.shape[0], heads, channels, n))
    else:
        matrices = A.matrix().astype(dtype)[:, :, None]
        transition = jnp.broadcast_to(matrices, (matrices.shape[0], heads, 1, n, n))
    return Blocks(
        _cut(transition, system.reset),
        outer(B.rank, B.vectors(), B.scales()).swapaxes(-1, -2),
        outer(C.rank, C.vectors(), C.gates()),
        copies=p // channels,
    )


def _whole(system: System) -> Blocks:
    shape, dtype = system.state_shape, system.dtype
    if system.A.is_diagonal:
        transition = system.A.decay().astype(dtype)  # type: ignore[attr-defined]
        transition = jnp.broadcast_to(transition, (transition.shape[0], *shape))
        transition = transition.reshape(-1, 1, 1, system.num_states)
    else:
        transition = system.A.dense(shape).astype(dtype)[:, None, None]
    B, C = (part.matrix(shape)[:, None, None].astype(dtype) for part in (system.B, system.C))
    return Blocks(_cut(transition, system.reset), B, C)


def _cut(transition: Array, reset: Array | None) -> Array:
    """Zero transitions at resets."""
    if reset is None:
        return transition
    return jnp.where(reset.reshape(-1, *[1] * (transition.ndim - 1)), 0, transition)


_SEGMENT = 64  # steps that are multiplied at once


class Gramians(NamedTuple):
    """Gramians at M steps, (M, H, c, n, n), Hermitian; complex where the state is.

    One block per head and value channel, c = p; c = 1 where all channels of a head have the same;
    (M, 1, 1, N, N) where B or C is dense.

    Attributes:
        controllability: P_t.
        observability: Q_t.
    """

    controllability: Array
    observability: Array


@jitted("at", "length")
def gramians(
    system: System | KernelSystem, *, at: Sequence[int] | None = None, length: int | None = None
) -> Gramians:
    r"""Controllability and observability Gramians of a system, block by block.

    .. math::
       P_t = Λ_t P_{t-1} Λ_t^H + B_t B_t^H, \qquad
       Q_t = C_t^H C_t + Λ_{t+1}^H Q_{t+1} Λ_{t+1} .

    Args:
        system: A finite system of one sequence.
        at: Steps t; by default the middle one, t = ⌊L/2⌋.
        length: L, for a system that is constant in time. Without it (and without ``at``) such a
            system is looked at over infinite time: the solutions of the Lyapunov equations
            P = Λ P Λ^H + B B^H and Q = Λ^H Q Λ + C^H C, NaN if some |λ| ≥ 1.

    Returns:
        `Gramians` at the M steps of ``at``.

    Raises:
        ValueError: For a `KernelSystem`, or steps outside the sequence.

    Numerics:
        O(L N n) work for diagonal transitions, O(L N n²) for matrices, O(M N n + L N) memory. The
        Lyapunov equation of a matrix is solved by doubling: P ← P + Λ P Λ^H, Λ ← Λ².

    References:
        Moore (1981), "Principal component analysis in linear systems", IEEE TAC 26(1). Smith
        (1968), "Matrix equation XA + BX = C", SIAM J. Appl. Math. 16(1).

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> gramians(s, at=[0, 1], length=2).controllability[:, 0, 0, 0, 0].tolist()
        [1.0, 1.25]
        >>> round(gramians(s).controllability.item(), 4)  # 1 / (1 − 0.5²)
        1.3333
    """
    found = blocks("gramians", system, length)
    if system.length is None and length is None and at is None:
        return _stationary(found)
    length = steps(system, length, owner="gramians")
    return gramians_of_blocks(found, length, at)


def gramians_of_blocks(found: Blocks, steps: int, at: Sequence[int] | None) -> Gramians:
    """`gramians` of L steps of a system that is already in blocks."""
    at = [steps // 2] if at is None else list(at)
    if not at or not all(0 <= t < steps for t in at):
        raise ValueError(f"gramians: expected steps in [0, {steps}), got {at}.")
    P = _covariances(found.A, found.B, steps, at)
    reads = adjoint(found.C)[::-1]
    Q = _covariances(_backwards(found), reads, steps, [steps - 1 - t for t in at])
    return Gramians(P, Q)


def _backwards(found: Blocks) -> Array:
    """The transitions with which Q_t follows the recursion of P_t backwards in time."""
    A = found.A
    if A.shape[0] > 1:
        A = jnp.concatenate([A[1:], jnp.zeros_like(A[:1])])[::-1]
    return A.conj() if found.is_diagonal else adjoint(A)


@jitted()
def mean_gramians(system: System | KernelSystem) -> Gramians:
    r"""The means over all steps of both Gramians, block by block.

    .. math:: \bar P = \frac1L \sum_t P_t, \qquad \bar Q = \frac1L \sum_t Q_t .

    One pair of coordinates for a whole sequence, such as weights can have, is taken from these.

    Args:
        system: A finite system of one sequence, of a known length.

    Returns:
        `Gramians` without the axis of steps: (H, c, n, n).

    Raises:
        ValueError: For a `KernelSystem`, or a system that is constant in time.

    Numerics:
        O(L N n) work for diagonal transitions, O(L N n²) for matrices, step by step; the memory of
        two Gramians.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(
        ...     A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1), length=2
        ... )
        >>> mean_gramians(s).controllability.item()  # of 1 and 1.25
        1.125
    """
    length = steps(system, None, owner="mean_gramians")
    found = blocks("mean_gramians", system, length)
    A, backwards = found.A, _backwards(found)
    P, Q = _mean(A, found.B, length), _mean(backwards, adjoint(found.C)[::-1], length)
    return Gramians(P, Q)


def _mean(A: Array, F: Array, steps: int) -> Array:
    """The mean of P_t = A_t P_{t−1} A_tᴴ + F_t F_tᴴ over the steps, (H, c, n, n)."""

    def at(x: Array, t: Array) -> Array:
        return x[t] if x.shape[0] > 1 else x[0]

    def advance(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], None]:
        P = _transport(at(A, t), carry[0]) + _outer(at(F, t))
        return (P, carry[1] + P), None

    zero = jnp.zeros((*F.shape[1:3], F.shape[-2], F.shape[-2]), F.dtype)
    (_, total), _ = jax.lax.scan(advance, (zero, zero), jnp.arange(steps))
    return total / steps


@jitted()
def hankel_singular_values(found: Gramians) -> Float[Array, "M H c n"]:
    r"""Singular values of the map from past inputs to future outputs, √eig(P_t Q_t), descending.

    How much of each direction of the state is both driven and read. Invariant under changes of
    coordinates.

    Args:
        found: Of `gramians`.

    Returns:
        (M, H, c, n), descending in the last axis.

    Numerics:
        The square roots of the eigenvalues of Sᴴ Q S with P = S Sᴴ: O(n³) per block. Values below
        about 1e-8 (float64) or 1e-3 (float32) of the largest are lost in rounding, or 0.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> round(hankel_singular_values(gramians(s)).item(), 4)
        1.3333
    """
    S = square_root(found.controllability)
    squares = one_by_one(jnp.linalg.eigvalsh, matmul(adjoint(S), matmul(found.observability, S)))
    return jnp.sqrt(jnp.maximum(squares[..., ::-1], 0))


def square_root(P: Array) -> Array:
    """S with P = S Sᴴ for Hermitian P ≥ 0; eigenvalues that are rounding errors are taken as 0."""
    values, vectors = one_by_one(jnp.linalg.eigh, P)
    noise = values.shape[-1] * jnp.finfo(values.dtype).eps * values[..., -1:]
    values = jnp.where(values > noise, values, 0)
    return vectors * jnp.sqrt(values).astype(P.dtype)[..., None, :]


def adjoint(x: Array) -> Array:
    """The conjugate transpose of the last two axes."""
    return x.conj().swapaxes(-1, -2)


def matmul(x: Array, y: Array) -> Array:
    """Matrix product in full precision."""
    return jnp.matmul(x, y, precision="highest")


def _covariances(A: Array, F: Array, steps: int, at: Sequence[int]) -> Array:
    """P_t = A_t P_{t−1} A_tᴴ + F_t F_tᴴ at the steps ``at``, (M, H, c, n, n).

    A segment of steps that nobody asks about is one matrix product: with W the products of the
    eigenvalues from each of its steps to its end, it adds (W ⊙ F)(W ⊙ F)ᴴ.
    """
    diagonal = A.ndim == 4
    wanted, where = np.unique(np.asarray(at), return_inverse=True)
    index, live, slot = _segments(steps, wanted, _SEGMENT if diagonal else 1)
    FF = _outer(F[0]) if F.shape[0] == 1 else None
    n = F.shape[-2]
    zero = jnp.zeros((*F.shape[1:3], n, n), F.dtype)

    def take(x: Array, index: Array, live: Array, otherwise: int) -> Array:
        x = x[index] if x.shape[0] > 1 else jnp.broadcast_to(x, (len(index), *x.shape[1:]))
        return jnp.where(live.reshape(-1, *[1] * (x.ndim - 1)), x, otherwise)

    def advance(carry: tuple[Array, Array], segment: tuple[Array, Array, Array]) -> tuple:
        (P, kept), (index, live, slot) = carry, segment
        if diagonal:
            a = take(A, index, live, 1)
            to_end = running("product", a, reverse=True)
            W = jnp.concatenate([to_end[1:], jnp.ones_like(a[:1])])
            W = jnp.broadcast_to(take(W, jnp.arange(len(a)), live, 0), (len(a), *zero.shape[:3]))
            P = _transport(to_end[0], P)
            if FF is None:
                Z = W[..., None] * take(F, index, live, 0)
                P = P + _over_steps("thcnm,thckm->hcnk", Z)
            else:
                P = P + _over_steps("thcn,thck->hcnk", W) * FF
        else:
            a = A[index[0]] if A.shape[0] > 1 else A[0]
            P = _transport(a, P) + (_outer(F[index[0]]) if FF is None else FF)
        return (P, kept.at[slot].set(P, mode="drop")), None

    kept = jnp.zeros((len(wanted), *zero.shape), zero.dtype)
    (_, kept), _ = jax.lax.scan(advance, (zero, kept), (index, live, slot))
    return kept[where]


def _segments(steps: int, wanted: np.ndarray, size: int) -> tuple[Array, Array, Array]:
    """Cut the steps after every wanted one, and what is longer into parts of at most ``size``.

    Returns:
        Steps of every segment (S, most steps of one), which of them are not padding, and the place
        in ``wanted`` of its last step, one past the end if nobody wants it.
    """
    cuts = sorted({0, *(wanted + 1).tolist(), steps})
    edges = [0]
    for start, stop in itertools.pairwise(cuts):
        parts = -(-(stop - start) // size)
        edges += np.linspace(start, stop, parts + 1).round().astype(int)[1:].tolist()
    starts, stops = np.asarray(edges[:-1], np.int32), np.asarray(edges[1:], np.int32)
    index = starts[:, None] + np.arange((stops - starts).max(), dtype=np.int32)
    live = index < stops[:, None]
    place = {int(t) + 1: i for i, t in enumerate(wanted)}
    slot = np.asarray([place.get(stop, len(wanted)) for stop in stops.tolist()], np.int32)
    return jnp.asarray(np.minimum(index, steps - 1)), jnp.asarray(live), jnp.asarray(slot)


def _stationary(found: Blocks) -> Gramians:
    """Solutions of the two Lyapunov equations, (1, H, c, n, n)."""
    BB, CC = _outer(found.B[0]), _inner(found.C[0])
    A = found.A[0]
    if found.is_diagonal:
        stable = jnp.all(jnp.abs(A) < 1, axis=-1)[..., None, None]
        products = 1 - A[..., :, None] * A.conj()[..., None, :]
        products = jnp.where(stable, products, 1)
        P, Q = BB / products, CC / products.conj()
    else:
        stable = jnp.max(jnp.abs(one_by_one(jnp.linalg.eigvals, A)), axis=-1)[..., None, None] < 1
        A = jnp.where(stable, A, 0)
        P, Q = _doubling(A, BB), _doubling(adjoint(A), CC)
    return Gramians(*(jnp.where(stable, x, jnp.nan)[None] for x in (P, Q)))


def _doubling(A: Array, F: Array) -> Array:
    """The sum over k of A^k F A^kᴴ."""

    def unfinished(carry: tuple[Array, Array]) -> Array:
        return jnp.max(jnp.abs(carry[0])) ** 2 > jnp.finfo(F.dtype).eps ** 2

    def double(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        A, P = carry
        return matmul(A, A), P + _transport(A, P)

    return jax.lax.while_loop(unfinished, double, (A, F))[1]


def _transport(A: Array, P: Array) -> Array:
    """A P Aᴴ with A as eigenvalues (H, c, n) or matrices (H, c or 1, n, n)."""
    if A.ndim == 3:
        return A[..., :, None] * P * A.conj()[..., None, :]
    return matmul(matmul(A, P), adjoint(A))


def _outer(B: Array) -> Array:
    return matmul(B, adjoint(B))


def _over_steps(axes: str, B: Array) -> Array:
    """The sum of B Bᴴ over the steps, with time left where it is: to move it takes as long."""
    return jnp.einsum(axes, B, B.conj(), precision="highest")


def _inner(C: Array) -> Array:
    return matmul(adjoint(C), C)
