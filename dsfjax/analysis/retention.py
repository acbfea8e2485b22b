r"""What is left of one marked token later on, measured by taking it away."""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsfjax._util.jitted import jitted
from dsfjax.analysis.copies import step_of_copies
from dsfjax.analysis.normalizer import has_finite_state, normalized, num_output_heads
from dsfjax.analysis.spectrum import carried_log_moduli
from dsfjax.core import KernelSystem, System
from dsfjax.core.composition import with_length
from dsfjax.core.dtypes import state_dtype
from dsfjax.engines import by_steps, scan


class Retention(NamedTuple):
    """What is left of M marked tokens at every step, relative to the step at which they enter.

    NaN before the marked token, and where it leaves no trace at all when it enters.

    Attributes:
        state: Norm of its trace in the state of each head, (M, L, H); None for a `KernelSystem`.
        output: Norm of its trace in the outputs of each head, (M, L, H); (M, L, 1) where C is dense
            or has several inner products. Where outputs read the state before the update, it is
            relative to the step after, the first that shows the token.
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


@jitted()
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
        `Retention`, indexed by mark, step and head; NaN for a mark that is no step.

    Raises:
        ValueError: If the tokens do not fit the system.

    Numerics:
        Step by step for all marks at once, O(M N) memory; a `KernelSystem` by one `scan` per mark.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> found = retention(s, jnp.ones((4, 1)), jnp.array([1]))
        >>> found.state[0, :, 0].tolist(), found.predicted[0, :, 0].tolist()
        ([nan, 1.0, 0.5, 0.25], [nan, 1.0, 0.5, 0.25])
    """
    length = u.shape[0]
    moduli = jnp.exp(carried_log_moduli(system, length=length))
    states, outputs = _traces(system, u, marks)
    # The output of a step that reads before the update shows the token of the step before.
    late = int(has_finite_state(system) and system.C.before_update)
    index = jnp.arange(length, dtype=marks.dtype)

    def relative(size: Array, shift: int = 0) -> Array:
        def of_mark(size: Array, start: Array) -> Array:
            first = size[start][None]  # beyond the end that of the last step, which is not seen
            return jnp.where((index >= start)[:, None] & (first > 0), size / first, jnp.nan)

        return jax.vmap(of_mark, in_axes=(1, 0))(size, marks + shift)

    def decay(kept: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        t, moduli = step
        kept = jnp.where((marks < t)[:, None, None], kept * jnp.square(moduli)[None], kept)
        return kept, jnp.sqrt(kept.mean(axis=-1))

    alone = jnp.ones((marks.shape[0], *moduli.shape[1:]), moduli.dtype)
    predicted = jax.lax.scan(decay, alone, (index, moduli))[1]
    state = None if states is None else relative(states)
    return Retention(state, relative(outputs, late), relative(predicted))


@singledispatch
def _traces(system: Any, u: Array, marks: Array) -> tuple[Array | None, Array]:
    """Norms of the answers to the marked tokens alone: of states (L, M, H), of outputs."""
    raise TypeError(f"retention: expected a System or KernelSystem, got {type(system).__name__}.")


@_traces.register
def _(system: KernelSystem, u: Array, marks: Array) -> tuple[Array | None, Array]:
    length = u.shape[0]

    def follow(mark: Array) -> Array:
        y, _ = scan(system, jnp.where((jnp.arange(length) == mark)[:, None], u, 0))
        return jnp.linalg.norm(y.reshape(length, system.num_heads, -1), axis=-1)

    return None, jnp.moveaxis(jax.lax.map(follow, marks), 0, 1)


@_traces.register
def _(system: System, u: Array, marks: Array) -> tuple[Array | None, Array]:
    # Step by step for all marks: the states of all steps would be M·L·N numbers.
    length = u.shape[0]
    paper = normalized(dataclasses.replace(system, D=None), length=length)
    heads = num_output_heads(system)
    arrays, step_of = by_steps(paper, length)

    def advance(h: Array, now: tuple[Array, Array, list[Array]]) -> tuple[Array, Any]:
        t, token, arrays = now
        tokens = jnp.where((marks == t)[:, None], token, 0)
        y, h = step_of_copies(with_length(step_of(arrays), 1), tokens, h)
        flat = h.reshape(*h.shape[:2], -1), y.reshape(len(y), heads, -1)
        return h, tuple(jnp.linalg.norm(x, axis=-1) for x in flat)

    start = (marks.shape[0], *paper.carried_shape)
    start = jnp.zeros(start, state_dtype(paper.dtype, u.dtype))
    steps = jnp.arange(length, dtype=marks.dtype)
    return jax.lax.scan(advance, start, (steps, u, arrays))[1]


@jitted("floor")
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
