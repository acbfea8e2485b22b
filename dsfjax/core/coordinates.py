r"""Changes of coordinates h̃_t = T_t h_t: other matrices, the same input–output map Φ.

.. math:: Λ̃_t = T_t Λ_t T_{t-1}^{-1}, \qquad B̃_t = T_t B_t, \qquad C̃_t = C_t T_t^{-1}.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.system import System


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
    heads, length = system.num_heads, system.length
    fits = log_t.ndim in (1, 2) and log_t.shape[1:] in ((), (heads,))
    if not fits or length not in (None, log_t.shape[0]):
        steps = "L" if length is None else length
        raise ValueError(
            f"rescale: expected log_t of shape ({steps},) or ({steps}, {heads}), got {log_t.shape}."
        )
    log_t = jnp.broadcast_to(log_t.reshape(log_t.shape[0], -1), (log_t.shape[0], heads))
    before = jnp.concatenate([jnp.zeros((1, heads), log_t.dtype), log_t[:-1]])
    # z follows b alone, so with a summed normaliser the factors belong to the vectors.
    vectors = system.eta is not None and system.eta.num_channels > 0
    shape, read = system.state_shape, before if system.C.before_update else log_t
    return dataclasses.replace(
        system,
        A=system.A.rescale(log_t - before),
        B=system.B.rescale(jnp.exp(log_t), shape, vectors=vectors),
        C=system.C.rescale(jnp.exp(-read), shape, vectors=vectors),
        length=log_t.shape[0],
    )


def pad_state(system: System, n: int) -> System:
    """Embed a system in one with a larger state expansion; Φ does not change (Lemma 2).

    The input map is padded with zeros, so the new states stay empty; expressivity is at least as
    good.

    Args:
        system: A finite system.
        n: The new state expansion per head, at least the present one.

    Returns:
        The padded system, of the same structure.

    Raises:
        ValueError: If ``n`` is smaller than the present state expansion, or the output map has one
            output per state (`InnerOutput` over p).

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
    return dataclasses.replace(
        system,
        A=system.A.pad(n_now, n),
        B=system.B.pad(n, system.state_shape),
        C=system.C.pad(n, system.state_shape),
        state_shape=(heads, n, p),
    )
