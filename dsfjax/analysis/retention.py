r"""What is left of one marked token later on: measured by intervention, and predicted."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsfjax.analysis.normalizer import has_finite_state, normalized, num_output_heads
from dsfjax.analysis.spectra import carried_log_moduli
from dsfjax.core import KernelSystem, System
from dsfjax.engines import scan


class Retention(NamedTuple):
    """What is left of M marked tokens at every step, relative to the step at which they enter.

    NaN before the marked token, and where it leaves no trace at all when it enters.

    Attributes:
        state: Norm of its trace in the state of each head, (M, L, H); None for a `KernelSystem`.
        output: Norm of its trace in the outputs of each head, (M, L, H); (M, L, 1) for a dense C.
        predicted: Root mean square over the eigenvalues of a head of |λ_{s+1} ⋯ λ_t|, (M, L, H).
    """

    state: Array | None
    output: Array
    predicted: Array


class Agreement(NamedTuple):
    """How well a prediction matches a measurement, both positive, compared as logarithms.

    Attributes:
        correlation: Pearson correlation of the logarithms; NaN if either does not vary.
        ratio: Geometric mean of measured / predicted, 1 if they agree.
        spread: Factor by which they typically differ, exp of the root mean square of
            log(measured / predicted); 1 if they agree.
        compared: How many pairs were compared.
    """

    correlation: Array
    ratio: Array
    spread: Array
    compared: Array


def retention(
    system: System | KernelSystem, u: Float[Array, "L d"], marks: Int[Array, " M"]
) -> Retention:
    r"""Follow marked tokens through the system.

    A system is linear in its tokens, so the difference that the token at s makes is the response to
    that token alone, with everything before and after it set to zero:

    .. math:: δh_t = Λ_t \cdots Λ_{s+1} B_s u_s, \qquad δy_t = C_t \, δh_t \quad (t \ge s),

    exactly, in the paper's coordinates h_t/η_t and without the skip. The coefficients A, B, C and η
    stay those of the whole sequence: it is the token as a value that is taken away. Beside it, what
    the eigenvalues alone predict. For a scalar decay the two agree to rounding for the state.

    Args:
        system: A system of one sequence of length L (or constant in time); batches by `jax.vmap`.
        u: Its tokens (L, d).
        marks: Steps s of the marked tokens, in [0, L).

    Returns:
        `Retention`, indexed by mark, step and head.

    Raises:
        ValueError: If the tokens do not fit the system.

    Numerics:
        One `scan` with all states per mark, O(L N) memory, one mark after the other.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> found = retention(s, jnp.ones((4, 1)), jnp.array([1]))
        >>> found.state[0, :, 0].tolist(), found.predicted[0, :, 0].tolist()
        ([nan, 1.0, 0.5, 0.25], [nan, 1.0, 0.5, 0.25])
    """
    steps = u.shape[0]
    log_modulus = carried_log_moduli(system, length=steps)
    index = jnp.arange(steps, dtype=marks.dtype)
    paper, is_kernel = system, not has_finite_state(system)
    if has_finite_state(system):
        paper = normalized(dataclasses.replace(system, D=None), length=steps)
    heads = num_output_heads(system)

    def relative(size: Array, mark: Array) -> Array:
        left = size / size[mark][None]
        return jnp.where((index >= mark)[:, None] & (size[mark] > 0)[None], left, jnp.nan)

    def follow(mark: Array) -> Retention:
        alone = jnp.where((index == mark)[:, None], u, 0)
        y, _, *states = scan(paper, alone, return_states=not is_kernel)
        output = jnp.linalg.norm(y.reshape(steps, heads, -1), axis=-1)
        state = None
        if states:
            state = jnp.linalg.norm(states[0].reshape(*states[0].shape[:2], -1), axis=-1)
            state = relative(state, mark)
        after = jnp.where((index > mark)[:, None, None], log_modulus, 0)
        kept = jnp.exp(2 * jnp.cumsum(after, axis=0))
        predicted = relative(jnp.sqrt(kept.mean(axis=-1)), mark)
        return Retention(state, relative(output, mark), predicted)

    return jax.lax.map(follow, marks)


def agreement(
    measured: Float[Array, "*shape"],
    predicted: Float[Array, "*shape"],
    *,
    floor: float = 1e-6,
) -> Agreement:
    """Compare a measured with a predicted `Retention`, over all entries.

    Args:
        measured: Such as ``retention.state`` or ``retention.output``.
        predicted: Of the same shape.
        floor: Pairs with either value below it, or undefined, are not compared; neither are those
            where both are exactly 1, as at the marked token itself.

    Returns:
        `Agreement` of scalars.

    Example:
        >>> found = agreement(jnp.array([1.0, 0.2, 0.1]), jnp.array([1.0, 0.1, 0.05]))
        >>> [round(float(x), 3) for x in found]
        [1.0, 2.0, 2.0, 2.0]
    """
    valid = (measured >= floor) & (predicted >= floor) & ~((measured == 1) & (predicted == 1))
    x, y = (jnp.log(jnp.where(valid, v, 1)) for v in (measured, predicted))
    count = valid.sum().astype(x.dtype)

    def mean(v: Array) -> Array:
        return jnp.where(valid, v, 0).sum() / count

    dx, dy = x - mean(x), y - mean(y)
    correlation = mean(dx * dy) / jnp.sqrt(mean(dx**2) * mean(dy**2))
    ratio, spread = jnp.exp(mean(x - y)), jnp.exp(jnp.sqrt(mean((x - y) ** 2)))
    return Agreement(correlation, ratio, spread, count)
