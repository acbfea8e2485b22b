r"""How much of its state a system uses: the Hankel singular values of all its blocks together."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax.analysis.gramians import gramians, hankel_singular_values
from dsfjax.analysis.normalizer import finite
from dsfjax.core import KernelSystem, System
from dsfjax.core.steps import steps


def state_use(
    system: System | KernelSystem, *, at: int | None = None, length: int | None = None
) -> Float[Array, " N"]:
    r"""The N Hankel singular values of a system at one step, of all heads and value channels.

    .. math:: σ_1 \ge σ_2 \ge \dots \ge σ_N, \qquad σ^2 \in \operatorname{eig}(P_t Q_t),

    one per direction of the state: how much goes from the past to the future through it. The
    `effective_dimension` of their squares is the number of directions in use, to be held against N.

    Args:
        system: A finite system of one sequence; batches come from `jax.vmap`.
        at: Step t; by default the middle one.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        (N,), descending. Blocks that several value channels share count for each of them.

    Raises:
        ValueError: For a `KernelSystem`, or a step outside the sequence.

    Numerics:
        That of `gramians` and `hankel_singular_values`.

    Example:
        Two heads that keep three channels each, the second of which is not read:

        >>> import dsfjax
        >>> A, B = dsfjax.Scalar(jnp.log(jnp.array([[0.5, 0.5]]))), dsfjax.OuterInput()
        >>> C = dsfjax.InnerOutput(None, jnp.array([[[1.0], [0.0]]]))
        >>> s = dsfjax.System(A, B, C, state_shape=(2, 1, 3))
        >>> [round(x, 3) for x in state_use(s, at=1, length=3).tolist()]
        [1.25, 1.25, 1.25, 0.0, 0.0, 0.0]
    """
    length = steps(system, length, owner="state_use")
    found = gramians(system, at=[length // 2 if at is None else at], length=length)
    values = hankel_singular_values(found).reshape(-1)
    copies = finite("state_use", system).num_states // values.size
    return jnp.sort(jnp.repeat(values, copies))[::-1]
