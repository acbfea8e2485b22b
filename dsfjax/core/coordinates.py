r"""Changes of coordinates h̃_t = T_t h_t: other matrices, the same input–output map Φ.

.. math:: Λ̃_t = T_t Λ_t T_{t-1}^{-1}, \qquad B̃_t = T_t B_t, \qquad C̃_t = C_t T_t^{-1}.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.maps import (
    DenseInput,
    DenseOutput,
    InnerOutput,
    OuterInput,
    SummedNormalizer,
    to_heads,
)
from dsfjax.core.system import System
from dsfjax.core.transitions import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    Factored,
    Scalar,
    Transition,
)


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
    heads, length = system.state_shape[0], system.length
    fits = log_t.ndim in (1, 2) and log_t.shape[1:] in ((), (heads,))
    if not fits or length not in (1, log_t.shape[0]):
        steps = "L" if length == 1 else length
        raise ValueError(
            f"rescale: expected log_t of shape ({steps},) or ({steps}, {heads}), got {log_t.shape}."
        )
    log_t = jnp.broadcast_to(log_t.reshape(log_t.shape[0], -1), (log_t.shape[0], heads))
    ratio = jnp.diff(log_t, axis=0, prepend=jnp.zeros((1, heads), log_t.dtype))
    t = jnp.exp(log_t)
    return dataclasses.replace(
        system,
        A=_scale_transition(system.A, ratio),
        B=_scale_input(system, t),
        C=_scale_output(system, 1 / t),
    )


def _scale_transition(A: Transition, log_r: Array) -> Transition:
    if isinstance(A, Scalar):
        return Scalar(A.log_a + log_r.astype(A.log_a.dtype))
    if isinstance(A, Diagonal):
        return Diagonal(A.log_decay() + log_r[:, :, None, None].astype(A.log_a.dtype))
    if isinstance(A, DiagonalPlusLowRank):
        w = A.w * jnp.exp(log_r)[:, :, None, None].astype(A.w.dtype)
        return DiagonalPlusLowRank(A.log_a + log_r[:, :, None].astype(A.log_a.dtype), w, A.z)
    return Dense(A.with_heads() * jnp.exp(log_r)[:, :, None, None].astype(A.dtype))


def _scale_input(system: System, t: Array) -> OuterInput | DenseInput:
    B, (_, n, p) = system.B, system.state_shape
    if isinstance(B, DenseInput):
        return DenseInput(B.matrix * jnp.repeat(t, n * p, axis=1)[:, :, None].astype(B.dtype))
    t = t[:, :, None]
    if isinstance(system.eta, SummedNormalizer):  # z is driven by b alone
        return OuterInput(_times(B.b, t), B.scale, B.W)
    return OuterInput(B.b, _times(B.scale, t), B.W)


def _scale_output(system: System, t: Array) -> InnerOutput | DenseOutput:
    C, (_, n, p) = system.C, system.state_shape
    if isinstance(C, DenseOutput):
        t = jnp.repeat(t, n * p, axis=1)[:, None, :]
        return DenseOutput(C.matrix * t.astype(C.dtype), C.conjugate_pairs)
    t = t[:, :, None]
    if isinstance(system.eta, SummedNormalizer):
        return InnerOutput(_times(C.c, t), C.gate, C.conjugate_pairs)
    return InnerOutput(C.c, _times(C.gate, t), C.conjugate_pairs)


def _times(x: Array | None, t: Array) -> Array:
    """The product of t (L, H, 1) with an array (T, G or H, ·), or with 1."""
    return t if x is None else to_heads(x, t.shape[1]) * t.astype(x.dtype)


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
        raise TypeError(
            "pad_state: needs OuterInput and InnerOutput; a dense map has no n axis to pad."
        )

    def pad(x: Array, axis: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, n - n_now)
        return jnp.pad(x, widths)

    one = jnp.ones((1, 1, 1), jnp.finfo(system.dtype).dtype)
    A, B, C = system.A, system.B, system.C
    if isinstance(A, Diagonal) and A.log_a.shape[-2] > 1:
        log_a = A.log_a
        if isinstance(log_a, Factored):
            A = Diagonal.factored(log_a.step, pad(log_a.rate, -2))
        else:
            A = Diagonal(pad(log_a, -2))
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
