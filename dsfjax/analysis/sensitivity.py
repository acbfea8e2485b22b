r"""How a loss reaches back in time: the gradient to the state of every step."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from dsfjax.analysis.normalizer import finite, normalized
from dsfjax.core import (
    Dense,
    DenseInput,
    DiagonalPlusLowRank,
    InnerOutput,
    KernelSystem,
    OuterInput,
    System,
)
from dsfjax.core.pytree import map_time
from dsfjax.core.transitions import Transition
from dsfjax.engines import scan


def state_gradients(
    system: System | KernelSystem, dy: Float[Array, "L d_out"]
) -> Inexact[Array, "L H n p"]:
    r"""Gradient of a loss to the state of every step, given its gradient to the outputs.

    .. math:: \frac{∂\mathcal L}{∂h_t} = C_t^\top \frac{∂\mathcal L}{∂y_t}
              + Λ_{t+1}^\top \frac{∂\mathcal L}{∂h_{t+1}},

    in the paper's coordinates h_t/η_t: what changes if the state of step t is disturbed, and all
    later states follow. The recursion is again a system, with b and c exchanged, that `scan` runs
    from the last step to the first.

    Args:
        system: A finite system of one sequence of length L (or constant in time).
        dy: ∂L/∂y_t, (L, d_out).

    Returns:
        (L, H, n, p) in the dtype of the state. For complex states the derivative without
        conjugation, whose modulus is the size of the gradient.

    Raises:
        ValueError: For a `KernelSystem`.

    Numerics:
        One `scan` with all states: O(L N) memory.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> state_gradients(s, jnp.array([[0.0], [0.0], [1.0]]))[:, 0, 0, 0].tolist()
        [0.25, 0.5, 1.0]
    """
    paper = normalized(finite("state_gradients", system), length=dy.shape[0])
    adjoint = _adjoint(paper)
    return scan(adjoint, dy[::-1], return_states=True)[2][::-1]


def gradient_norms(
    system: System | KernelSystem, dy: Float[Array, "L d_out"]
) -> Float[Array, "L H"]:
    """Norms of the `state_gradients` of every step and head.

    Where they fall towards early steps gradients vanish, where they grow they explode.

    Args:
        system: A finite system of one sequence of length L (or constant in time).
        dy: ∂L/∂y_t, (L, d_out).

    Returns:
        (L, H), real.

    Raises:
        ValueError: For a `KernelSystem`.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> gradient_norms(s, jnp.array([[0.0, 0.0], [0.0, 2.0]]))[:, 0].tolist()
        [1.0, 2.0]
    """
    G = state_gradients(system, dy)
    return jnp.linalg.norm(G.reshape(*G.shape[:2], -1), axis=-1)


def _adjoint(system: System) -> System:
    """The system of G_t = C_tᵀ dy_t + A_{t+1}ᵀ G_{t+1}, in reversed time, without outputs."""
    factor = 2 if system.is_complex and system.C.conjugate_pairs else 1
    heads, n, _ = system.state_shape
    if isinstance(system.C, InnerOutput):
        gate = system.C.gate
        if factor == 2:
            two = jnp.full((1, heads, 1), 2, jnp.finfo(system.dtype).dtype)
            gate = two if gate is None else 2 * gate
        B = OuterInput(system.C.c, gate)
    else:
        B = DenseInput(factor * system.C.matrix.swapaxes(1, 2))
    # Step t of the recursion uses the transition of t + 1; the last one meets a zero gradient.
    A = map_time(_following, _transposed(system.A))
    reset = None if system.reset is None else _following(system.reset)
    C = InnerOutput(None if n == 1 else jnp.zeros((1, 1, n), system.dtype))
    flipped = System(A, B, C, reset=reset, state_shape=system.state_shape)
    return map_time(lambda x: x[::-1], flipped)


def _following(x: Array) -> Array:
    return x if x.shape[0] == 1 else jnp.concatenate([x[1:], x[-1:]])


def _transposed(A: Transition) -> Transition:
    if isinstance(A, DiagonalPlusLowRank):
        return DiagonalPlusLowRank(A.log_a, A.z, A.w)
    return Dense(A.matrix.swapaxes(-1, -2)) if isinstance(A, Dense) else A
