r"""Changes of coordinates h̃_t = T_t h_t: other matrices, the same input–output map Φ.

.. math:: Λ̃_t = T_t Λ_t T_{t-1}^{-1}, \qquad B̃_t = T_t B_t, \qquad C̃_t = C_t T_t^{-1}.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.maps import DenseInput, DenseOutput, InnerOutput, OuterInput
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, Diagonal, DiagonalPlusLowRank, Scalar, Transition


def rescale(system: System, log_t: Float[Array, " L"] | Float[Array, "L H"]) -> System:
    r"""Apply the change of coordinates T_t = exp(log_t) I; Φ does not change.

    With T_t = η_t I this turns the paper's form of separable attention (Λ_t = η_{t−1}/η_t) into the
    un-normalised one (Λ_t = I), which is Lemma 1. T_0 = I, so an initial state keeps its meaning.

    Args:
        system: Any finite system.
        log_t: Logarithms of the scale, one per step (L,), or per step and head (L, H).

    Returns:
        The system in the new coordinates, of the same structure (a factored decay becomes explicit,
        O(L H n p) memory).

    Numerics:
        exp(±log_t) multiplies b and c: keep |log_t| well below 700 (float64) or 80 (float32).

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 1.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((3, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> dsfjax.rescale(s, jnp.array([0.0, 1.0, 3.0])).A.log_a[:, 0].tolist()
        [0.0, 1.0, 2.0]
    """
    heads = system.state_shape[0]
    if log_t.ndim not in (1, 2) or log_t.shape[1:] not in ((), (heads,)) or system.length not in (1, log_t.shape[0]):
        raise ValueError(
            f"rescale: expected log_t of shape (L,) or (L, {heads}) with L = {system.length}, got {log_t.shape}."
        )
    log_t = jnp.broadcast_to(log_t.reshape(log_t.shape[0], -1), (log_t.shape[0], heads))
    ratio = jnp.diff(log_t, axis=0, prepend=jnp.zeros((1, heads), log_t.dtype))
    t = jnp.exp(log_t)
    return dataclasses.replace(
        system,
        A=_scale_transition(system.A, ratio),
        B=_scale_input(system.B, t, system.state_shape),
        C=_scale_output(system.C, 1 / t, system.state_shape),
    )


def _scale_transition(A: Transition, log_r: Array) -> Transition:
    if isinstance(A, Scalar):
        return Scalar(A.log_a + log_r.astype(A.log_a.dtype))
    if isinstance(A, Diagonal):
        return Diagonal(A.log_decay() + log_r[:, :, None, None].astype(A.log_a.dtype))
    if isinstance(A, DiagonalPlusLowRank):
        w = A.w * jnp.exp(log_r)[:, :, None, None].astype(A.w.dtype)
        return DiagonalPlusLowRank(A.log_a + log_r[:, :, None].astype(A.log_a.dtype), w, _over_time(A.z, w))
    return Dense(A.with_heads() * jnp.exp(log_r)[:, :, None, None].astype(A.dtype))


def _over_time(x: Array, like: Array) -> Array:
    return jnp.broadcast_to(x, (like.shape[0], *x.shape[1:]))


def _scale_input(B: OuterInput | DenseInput, t: Array, shape: tuple[int, int, int]) -> OuterInput | DenseInput:
    heads, n, p = shape
    if isinstance(B, DenseInput):
        return DenseInput(B.matrix * jnp.repeat(t, n * p, axis=1)[:, :, None].astype(B.dtype))
    scale = t[:, :, None] if B.scale is None else B.scale * t[:, :, None].astype(B.scale.dtype)
    return OuterInput(B.b, scale, B.W)


def _scale_output(C: InnerOutput | DenseOutput, t: Array, shape: tuple[int, int, int]) -> InnerOutput | DenseOutput:
    heads, n, p = shape
    if isinstance(C, DenseOutput):
        return DenseOutput(C.matrix * jnp.repeat(t, n * p, axis=1)[:, None, :].astype(C.dtype), C.conjugate_pairs)
    gate = t[:, :, None] if C.gate is None else C.gate * t[:, :, None].astype(C.gate.dtype)
    return InnerOutput(C.c, gate, C.conjugate_pairs)


def pad_state(system: System, n: int) -> System:
    """Embed a system in one with a larger state expansion; Φ does not change (Lemma 2).

    b is padded with zeros, so the new states stay empty; expressivity is at least as good.

    Args:
        system: A finite system with `OuterInput` and `InnerOutput`.
        n: The new state expansion per head, at least the present one.

    Returns:
        The padded system, of the same structure.

    Raises:
        ValueError: If ``n`` is smaller than the present state expansion.
        TypeError: For dense input or output maps (pad their matrices directly).

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 2.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((1, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> dsfjax.pad_state(s, 4).state_shape
        (1, 4, 2)
    """
    heads, n_now, p = system.state_shape
    if n < n_now:
        raise ValueError(
            f"pad_state: expected n ≥ {n_now}, the present state expansion, got {n}. Reducing a "
            "state changes Φ in general."
        )
    if not isinstance(system.B, OuterInput) or not isinstance(system.C, InnerOutput):
        raise TypeError("pad_state: needs OuterInput and InnerOutput; a dense map has no n axis to pad.")

    def pad(x: Array, axis: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, n - n_now)
        return jnp.pad(x, widths)

    one = jnp.ones((1, 1, 1), jnp.finfo(system.dtype).dtype)
    A, B, C = system.A, system.B, system.C
    if isinstance(A, Diagonal) and A.log_a.shape[-2] == n_now and n_now > 1:
        A = Diagonal(pad(A.log_decay(), -2))
    elif isinstance(A, DiagonalPlusLowRank):
        log_a = jnp.broadcast_to(A.log_a, (*A.log_a.shape[:-1], n_now))
        A = DiagonalPlusLowRank(pad(log_a, -1), pad(A.w, -2), pad(A.z, -2))
    elif isinstance(A, Dense):
        A = Dense(pad(pad(A.matrix, -1), -2))
    return dataclasses.replace(
        system,
        A=A,
        B=OuterInput(pad(one if B.b is None else B.b, -1), B.scale, B.W),
        C=InnerOutput(pad(one if C.c is None else C.c, -1), C.gate, C.conjugate_pairs),
        state_shape=(heads, n, p),
    )
