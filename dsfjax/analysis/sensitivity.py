r"""How a loss reaches back in time: the gradient to the state of every step."""

from __future__ import annotations

from functools import singledispatch

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from dsfjax.analysis.normalizer import finite, normalized
from dsfjax.core import (
    DenseInput,
    InnerOutput,
    InputMap,
    KernelSystem,
    OuterInput,
    OutputMap,
    System,
)
from dsfjax.core.pytree import map_time
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
    C = paper.C
    if C.before_update:  # the output of a step reads the state of the step before
        C, dy = map_time(_following, C), jnp.concatenate([dy[1:], jnp.zeros_like(dy[:1])])
        if paper.reset is not None:
            dy = jnp.where(_following(paper.reset)[:, None], 0, dy)
    return scan(_adjoint(paper, C), dy[::-1], return_states=True)[2][::-1]


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


def _adjoint(system: System, C: OutputMap) -> System:
    """The system of G_t = C_tᵀ dy_t + A_{t+1}ᵀ G_{t+1}, in reversed time, without outputs."""
    n = system.state_shape[1]
    B = _transposed(C, system)
    # Step t of the recursion uses the transition of t + 1; the last one meets a zero gradient.
    A = map_time(_following, system.A.transpose())
    reset = None if system.reset is None else _following(system.reset)
    none = InnerOutput(None if n == 1 else jnp.zeros((1, 1, n), system.dtype))
    shape = system.state_shape
    flipped = System(A, B, none, reset=reset, state_shape=shape, length=system.length)
    return map_time(lambda x: x[::-1], flipped)


@singledispatch
def _transposed(C: OutputMap, system: System) -> InputMap:
    """The input map Cᵀ, twice it for a state of one of each conjugate pair."""
    factor = 2 if system.is_complex and C.conjugate_pairs else 1
    return DenseInput(factor * C.matrix(system.state_shape).swapaxes(1, 2))


@_transposed.register
def _(C: InnerOutput, system: System) -> InputMap:
    if C.over == "p":
        return _transposed.dispatch(OutputMap)(C, system)
    gate = C.gate
    if system.is_complex and C.conjugate_pairs:
        shape = (1, system.num_heads, 1) if C.rank == 1 else (1, C.rank, system.num_heads, 1)
        two = jnp.full(shape, 2, system.real_dtype)
        gate = two if gate is None else 2 * gate
    return OuterInput(C.c, gate, rank=C.rank)


def _following(x: Array) -> Array:
    return x if x.shape[0] == 1 else jnp.concatenate([x[1:], x[-1:]])
