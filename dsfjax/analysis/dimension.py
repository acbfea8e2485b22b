r"""How much of the state is used: Hankel values of all blocks together, effective dimensions.

The Hankel singular values say it of white noise, the covariance of the state of real tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from dsfjax._util.jitted import jitted
from dsfjax.analysis.gramians import gramians, hankel_singular_values
from dsfjax.analysis.normalizer import finite, normalized
from dsfjax.core import KernelSystem, System
from dsfjax.core.steps import steps
from dsfjax.engines import scan

Axis = Literal["all", "states", "channels"]


class EffectiveDimension(NamedTuple):
    """Two ways to count directions that carry energy; leading axes of the energies.

    Attributes:
        rank: How many of the largest energies make up the share, an integer.
        participation: (Σ e)² / Σ e², between 1 and their number; it needs no threshold.
    """

    rank: Array
    participation: Array


@jitted("share")
def effective_dimension(
    energies: Float[Array, "*axes k"], *, share: float = 0.99
) -> EffectiveDimension:
    """How many directions carry the energy.

    Args:
        energies: Non-negative, in any order: eigenvalues of a covariance or a Gramian, or squares
            of `hankel_singular_values`. Rounding errors below 0 count as 0.
        share: In (0, 1], of the energy that the rank covers.

    Returns:
        `EffectiveDimension` over the last axis; rank 0 and participation NaN without any energy.

    Raises:
        ValueError: If ``share`` is not in (0, 1].

    Example:
        >>> found = effective_dimension(jnp.array([4.0, 4.0, 0.0, 0.0]))
        >>> found.rank.item(), found.participation.item()
        (2, 2.0)
    """
    if not 0 < share <= 1:
        raise ValueError(f"effective_dimension: expected share in (0, 1], got {share}.")
    e = jnp.sort(jnp.maximum(energies, 0), axis=-1)[..., ::-1]
    total = e.sum(axis=-1)
    before = jnp.cumsum(e, axis=-1) - e
    rank = jnp.sum((before < share * total[..., None]) & (e > 0), axis=-1)
    return EffectiveDimension(rank, total**2 / jnp.sum(e**2, axis=-1))


@jitted("over")
def state_covariance(
    system: System | KernelSystem, u: Float[Array, "L d"], *, over: Axis = "all"
) -> Inexact[Array, "H k k"]:
    r"""Second moments of the state that real tokens drive, per head.

    .. math:: \frac{1}{L} \sum_t h_t h_t^H, \qquad h \text{ in the paper's coordinates}\; h_t/η_t .

    What a Gramian says about white noise, for the tokens and coefficients of a trained model. Mean
    over a batch: average the results.

    Args:
        system: A finite system of one sequence of length L (or constant in time).
        u: Its tokens (L, d).
        over: "all" for k = n·p (row-major), "states" for k = n with the value channels as samples,
            "channels" for k = p with the states as samples.

    Returns:
        (H, k, k), Hermitian, in the dtype of the state.

    Raises:
        ValueError: For a `KernelSystem`, or an unknown ``over``.

    Numerics:
        One `scan` with all states, O(L N) memory, then O(L H k²) work. "all" is large for large
        n·p: its k² numbers are the answer.

    Example:
        Two value channels that always carry the same use one dimension:

        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> moments = state_covariance(s, jnp.ones((4, 2)))
        >>> round(effective_dimension(jnp.linalg.eigvalsh(moments)).participation.item(), 3)
        1.0
    """
    system = finite("state_covariance", system)
    if over not in get_args(Axis):
        raise ValueError(
            f"state_covariance: expected over to be one of {get_args(Axis)}, got {over!r}."
        )
    states = scan(normalized(system, length=u.shape[0]), u, return_states=True)[2]
    steps, heads = states.shape[:2]
    x = jnp.moveaxis(states, 1, 0)
    if over == "states":
        x = x.swapaxes(2, 3)
    if over == "all":
        x = x.reshape(heads, steps, -1)
    else:
        x = x.reshape(heads, -1, x.shape[-1])
    total = jnp.einsum("hti,htj->hij", x, x.conj(), precision="highest")
    return total / x.shape[1]


@jitted("at", "length")
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
