r"""How long eigenvalues keep what they are given: horizons and half-lives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax._util.accumulation import running
from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.analysis.spectrum import carried_log_moduli, count_per_head, starts
from dsfjax.core import KernelSystem, System

_COLUMNS = 256  # eigenvalues whose horizons are looked for at once
_PIVOTS = 16  # entries that a search begins with


class Horizons(NamedTuple):
    """For every token s, head and eigenvalue, how long its product stays large.

    Attributes:
        steps: (L, H, k) integers: the first τ ≥ 1 with |λ_{s+1} ⋯ λ_{s+τ}| < ε, or the number of
            steps that are left if the sequence ends before.
        censored: (L, H, k), whether the sequence ended before.
    """

    steps: Array
    censored: Array


class HorizonCounts(NamedTuple):
    """Distribution of horizons; counts of several sequences add up.

    Attributes:
        ended: Share of products that fell below ε at exactly τ steps, (…, T) for τ = 0 … T − 1.
        censored: Share that was still at or above ε when the sequence ended after τ steps, (…, T).
    """

    ended: Array
    censored: Array


@jitted("epsilon", "length")
def horizons(
    system: System | KernelSystem, epsilon: float = 0.01, *, length: int | None = None
) -> Horizons:
    r"""Steps until the product of the moduli of the eigenvalues falls below ε, token by token.

    .. math:: τ(s) = \min \{ τ \ge 1 : |λ_{s+1}| \cdots |λ_{s+τ}| < ε \}.

    It ends at a reset. Exact also where some moduli are above 1 and the product is not monotone: it
    is the first passage that counts.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        epsilon: ε, in (0, 1).
        length: L, needed only if nothing in the system varies in time.

    Returns:
        `Horizons`. The product of Λ along one eigenvalue is what a state keeps for diagonal
        transitions; for `Dense` and `DiagonalPlusLowRank` it is a figure of the spectrum only,
        sorted by size (`lyapunov_exponents` says what the product of the matrices does).

    Raises:
        ValueError: If ε is not in (0, 1), or ``length`` contradicts that of the system.

    Numerics:
        Differences of cumulative sums of logarithms, zeros apart: a product counts as below ε to
        the rounding of these sums. O(L H k log L) work, O(L H k) memory; where some modulus is
        above 1 about three times the work.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> found = horizons(s, 0.2, length=6)
        >>> found.steps[:, 0, 0].tolist(), found.censored[:, 0, 0].astype(int).tolist()
        ([3, 3, 3, 2, 1, 0], [0, 0, 0, 1, 1, 1])
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"horizons: expected epsilon in (0, 1), got {epsilon}.")
    log_modulus = carried_log_moduli(system, length=length)
    if _mixes(system):
        log_modulus = jnp.sort(log_modulus, axis=-1)
    steps, heads, k = log_modulus.shape
    columns = log_modulus.reshape(steps, heads * k)
    zero = jnp.isneginf(columns)
    total = running("sum", jnp.where(zero, 0, columns))

    def ends(search: Callable[[Array, Array], Array]) -> Callable[[Array], Array]:
        one = partial(_below, search=search, log_epsilon=math.log(epsilon))
        return lambda total: jax.lax.map(one, total, batch_size=_COLUMNS)

    decays = jnp.all(columns <= 0)
    end = jax.lax.cond(decays, ends(_bisect), ends(_first_passage), total.T).T
    # A zero ends every product that runs into it.
    end = jnp.minimum(end, _following(zero)).reshape(steps, heads, k)
    index = jnp.arange(steps, dtype=jnp.int32)[:, None, None]
    censored = end == steps
    return Horizons(jnp.where(censored, steps - 1, end) - index, censored)


@jitted()
def count_horizons(found: Horizons) -> HorizonCounts:
    """The distribution of horizons over the tokens and eigenvalues of each head.

    Args:
        found: Of `horizons`.

    Returns:
        `HorizonCounts` with arrays (H, L); shares of all tokens. Average them over a batch.
    """
    length, heads, k = found.steps.shape
    steps = jnp.moveaxis(found.steps, 1, 0).reshape(heads, -1)
    censored = jnp.moveaxis(found.censored, 1, 0).reshape(heads, -1)
    index = jnp.where(censored, steps + length, steps)
    shares = count_per_head(index, jnp.ones_like(censored), 2 * length) / (length * k)
    return HorizonCounts(shares[:, :length], shares[:, length:])


@jitted()
def survival(counts: HorizonCounts) -> Float[Array, "*axes T"]:
    r"""Share of products that are still at or above ε after τ steps, by Kaplan and Meier.

    .. math:: S(τ) = \prod_{i \le τ} \left( 1 - \frac{d_i}{r_i} \right)

    with d_i the products that end at i steps and r_i those that were watched for i steps. Products
    that the end of the sequence cut off count for as long as they were seen, and bias nothing.

    Args:
        counts: Of `count_horizons`, averaged over a batch if there is one.

    Returns:
        S(τ) for τ = 0 … T − 1; S(0) = 1. Where nothing was watched that long, the last value.

    Example:
        Half of the products end at 1 step, a quarter at 2, a quarter is cut off at 1 step:

        >>> S = survival(HorizonCounts(jnp.array([0, 0.5, 0.25]), jnp.array([0, 0.25, 0])))
        >>> S.tolist()
        [1.0, 0.5, 0.0]
    """
    gone = counts.ended + counts.censored
    watched = jnp.cumsum(gone[..., ::-1], axis=-1)[..., ::-1]
    hazard = jnp.where(watched > 0, counts.ended / jnp.where(watched > 0, watched, 1), 0)
    return jnp.cumprod(1 - jnp.minimum(hazard, 1), axis=-1)


@jitted("length")
def half_life(system: System | KernelSystem, *, length: int | None = None) -> Float[Array, "H k"]:
    r"""Steps in which an eigenvalue of average size halves the state, per head.

    .. math:: \frac{\log 1/2}{\overline{\log |λ|}}, \qquad
              \text{the mean over the steps that carry a state over.}

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L; where nothing in the system varies in time, any is the same.

    Returns:
        (H, k): 0 if a decay is exactly 0 at some step, ∞ where the product does not decay, NaN
        where no step carries a state over (L = 1).

    Raises:
        ValueError: If ``length`` contradicts that of the system.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5, 0.25, 1.0]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(3, 1, 1))
        >>> half_life(s)[:, 0].tolist()
        [1.0, 0.5, inf]
    """
    mean = mean_log_modulus(system, length=length)
    lasting = jnp.where(jnp.isnan(mean), mean, jnp.inf)
    return jnp.where(mean < 0, math.log(0.5) / jnp.where(mean < 0, mean, -1), lasting)


def mean_log_modulus(
    system: System | KernelSystem, *, length: int | None = None
) -> Float[Array, "H k"]:
    """Mean of log |λ| over the steps that carry a state over: all but the first and resets."""
    if length is None and system.length is None:
        length = 2  # the first step carries nothing over, and all others are alike
    log_modulus = carried_log_moduli(system, length=length)
    if _mixes(system):
        log_modulus = jnp.sort(log_modulus, axis=-1)
    kept = ~starts(system, log_modulus.shape[0])
    # As a product with ones: XLA's sum over a first axis takes twice the time on a CPU.
    ones = jnp.ones(len(kept), log_modulus.dtype)
    carried = jnp.where(kept[:, None, None], log_modulus, 0)
    total = jnp.einsum("t,thk->hk", ones, carried, precision="highest")
    return total / jnp.sum(kept).astype(total.dtype)


def _mixes(system: System | KernelSystem) -> bool:
    """Whether eigenvalues of different steps belong to different directions of the state."""
    return has_finite_state(system) and not system.A.is_diagonal


def _following(marked: Array) -> Array:
    """For every s the first t > s with marked[t], or L; time on the first axis."""
    length = marked.shape[0]

    def back(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        t, marked = step
        return jnp.where(marked, t, following), following

    last = jnp.full(marked.shape[1:], length, jnp.int32)
    index = jnp.arange(length, dtype=jnp.int32)
    return jax.lax.scan(back, last, (index, marked), reverse=True)[1]


def _below(total: Array, search: Callable[[Array, Array], Array], log_epsilon: float) -> Array:
    return search(total, total + log_epsilon)


def _bisect(total: Array, level: Array) -> Array:
    """For every s the first t > s with total[t] < level[s], or L, in a total that never grows."""
    # Comparisons with a few entries find the block, which takes less time than the steps of a
    # search that they save: those gather. The first entry is never below.
    size = 1 << max(0, (total.shape[0] - 1).bit_length() - _PIVOTS.bit_length() + 1)
    position = jnp.full(level.shape, -size, jnp.int32)
    for pivot in total[::size]:
        position = jnp.where(pivot >= level, position + size, position)
    padded = jnp.concatenate([total, jnp.full(size, -jnp.inf, total.dtype)])
    halvings = size.bit_length() - 1

    def halve(i: Array, position: Array) -> Array:
        later = position + (size >> (i + 1)).astype(position.dtype)
        above = padded.at[later].get(mode="promise_in_bounds") >= level
        return jnp.where(above, later, position)

    return jax.lax.fori_loop(0, halvings, halve, position) + 1


def _first_passage(total: Array, level: Array) -> Array:
    """The same for any total."""
    length = total.shape[0]
    position = jnp.arange(length, dtype=jnp.int32)
    # lowest[j][s] is the smallest total over s < t ≤ s + 2^j; −∞ stops the search at the end.
    lowest = [jnp.concatenate([total[1:], jnp.full(1, -jnp.inf, total.dtype)])]
    for j in range((length - 1).bit_length()):
        last = lowest[-1]
        shifted = jnp.concatenate([last[2**j :], jnp.full(2**j, -jnp.inf, last.dtype)])
        lowest.append(jnp.minimum(last, shifted))
    for j in reversed(range(len(lowest))):
        above = lowest[j].at[position].get(mode="promise_in_bounds") >= level
        position = jnp.where(above, position + 2**j, position)
    return position + 1
