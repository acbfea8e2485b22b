r"""How long a system keeps what it is given.

Three answers: horizons and half-lives, from the eigenvalues of the transition; the age of what is
read, from the kernel Φ; and what is left of one marked token later on, measured by taking it away.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import has_finite_state, normalized, num_output_heads
from dsfjax.analysis.phi import kernel_rows, map_rows, on_values, token_rows
from dsfjax.analysis.spectrum import carried_log_moduli, count_per_head, starts
from dsfjax.core import (
    DenseInput,
    DenseOutput,
    Elementwise,
    InnerOutput,
    InputMap,
    KernelSystem,
    OuterInput,
    OutputMap,
    System,
    steps,
)
from dsfjax.engines import scan

_COLUMNS = 256  # eigenvalues whose horizons are looked for at once


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
    total = jnp.cumsum(jnp.where(zero, 0, columns), axis=0)

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
        length: L, needed only if nothing in the system varies in time.

    Returns:
        (H, k): 0 if a decay is exactly 0 at some step, ∞ where the product does not decay.

    Raises:
        ValueError: If ``length`` contradicts that of the system.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5, 0.25, 1.0]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(3, 1, 1))
        >>> half_life(s, length=9)[:, 0].tolist()
        [1.0, 0.5, inf]
    """
    mean = mean_log_modulus(system, length=length)
    return jnp.where(mean < 0, math.log(0.5) / jnp.where(mean < 0, mean, -1), jnp.inf)


def mean_log_modulus(
    system: System | KernelSystem, *, length: int | None = None
) -> Float[Array, "H k"]:
    """Mean of log |λ| over the steps that carry a state over: all but the first and resets."""
    log_modulus = carried_log_moduli(system, length=length)
    if _mixes(system):
        log_modulus = jnp.sort(log_modulus, axis=-1)
    kept = ~starts(system, log_modulus.shape[0])
    total = jnp.sum(jnp.where(kept[:, None, None], log_modulus, 0), axis=0)
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
    return jnp.searchsorted(-total, -level, side="right").astype(jnp.int32)


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


_ROWS = 16  # rows of Φ that are held at once


@jitted("length")
def mean_age(system: System | KernelSystem, *, length: int | None = None) -> Float[Array, "L H c"]:
    r"""Mean age in steps of what is read at every step, per head.

    .. math:: \frac{\sum_{s \le t} w_{t,s} \, (t - s)}{\sum_{s \le t} w_{t,s}},

    0 if only the present token is read. The weights are

    * for diagonal transitions :math:`w_{t,s} = |c_t|^\top |A_t| \cdots |A_{s+1}| \, |b_s| |s_s|`,
      which is |Φ| wherever the terms of the inner product have one sign (one state per channel,
      positive features), and elsewhere what is read from the entries of the state before they
      cancel;
    * for all others, whose entries of the state have no past of their own, |Φ| itself; with a
      dense B or C, Σ|Φ| over the entries of a token.

    Normaliser and gate cancel.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        (L, H, c), with c = p if decay or scale vary over the value channels, else 1; (L, 1, d_out)
        for a dense C, whose outputs belong to no head. NaN where nothing is read.

    Raises:
        ValueError: For B or C of a rank above 1 around a transition that is not diagonal.

    Numerics:
        No L × L array. Diagonal transitions and a `KernelSystem`: two runs of `scan`, on values 1
        and s, O(L) memory; the age is a difference of positions, exact to rounding of t. Others:
        row after row of Φ, O(L² N) work and O(L N) memory, d_out times that for a dense B or C.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> [round(x, 3) for x in mean_age(s, length=30)[jnp.array([0, 1, 29]), 0, 0].tolist()]
        [0.0, 0.333, 1.0]
    """
    length = steps(system, length, owner="mean_age")
    if has_finite_state(system):
        C = _without_gate(system.C)
        system = dataclasses.replace(system, C=C, eta=None, D=None)
        if not system.A.is_diagonal:
            return _by_rows(system, length)
    heads, dtype = num_output_heads(system), system.real_dtype
    positive = _positive(system)
    position = jnp.arange(length).astype(dtype)[:, None]
    tokens = jnp.broadcast_to(position, (length, positive.token_width))
    weight, weighted = (scan(positive, u)[0] for u in (jnp.ones_like(tokens), tokens))
    read = weight > 0
    mean = jnp.where(read, weighted / jnp.where(read, weight, 1), jnp.nan)
    return (position - mean).reshape(length, heads, -1)


def _by_rows(system: System, steps: int) -> Array:
    """Ages with the weights |Φ|, of a dense B or C those of all entries of a token together."""
    index, on_values = jnp.arange(steps), system.acts_on_values
    rows = kernel_rows("mean_age", system, steps) if on_values else token_rows(system, steps)

    def row(t: Array) -> Array:
        return rows(t) if on_values else jnp.abs(rows(t)).sum(axis=2).T[:, None]

    def age(t: Array) -> Array:
        weight = jnp.abs(row(t))
        distance = (t - index).astype(weight.dtype)[:, None, None]
        return (weight * distance).sum(axis=0) / weight.sum(axis=0)

    return map_rows(age, steps, _ROWS)


@singledispatch
def _positive(system: Any) -> System | KernelSystem:
    """The system of the moduli of all entries, on values."""
    raise TypeError(f"mean_age: expected a System or KernelSystem, got {type(system).__name__}.")


@_positive.register
def _(system: KernelSystem) -> KernelSystem:
    return dataclasses.replace(system, W=None, num_channels=1)


@_positive.register
def _(system: System) -> System:
    A = system.A
    assert isinstance(A, Elementwise)
    if system.acts_on_values:
        system = on_values("mean_age", system)
    shape = system.state_shape
    return dataclasses.replace(
        system, A=A.modulus(), B=_abs_input(system.B, shape), C=_abs_output(system.C, shape)
    )


@singledispatch
def _without_gate(C: OutputMap) -> OutputMap:
    return C


@_without_gate.register
def _(C: InnerOutput) -> OutputMap:
    return C.with_arrays(C.c, None)


@singledispatch
def _abs_input(B: InputMap, shape: tuple[int, int, int]) -> InputMap:
    """Every token entry weighs the same, so one column carries them all."""
    return DenseInput(jnp.abs(B.matrix(shape)).sum(axis=2, keepdims=True))


@_abs_input.register
def _(B: OuterInput, shape: tuple[int, int, int]) -> InputMap:
    return dataclasses.replace(B, b=_abs(B.b), scale=_abs(B.scale))


@singledispatch
def _abs_output(C: OutputMap, shape: tuple[int, int, int]) -> OutputMap:
    return DenseOutput(jnp.abs(C.matrix(shape)), before_update=C.before_update)


@_abs_output.register
def _(C: InnerOutput, shape: tuple[int, int, int]) -> OutputMap:
    return dataclasses.replace(C, c=_abs(C.c), conjugate_pairs=False)


def _abs(x: Array | None) -> Array | None:
    return None if x is None else jnp.abs(x)


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
    # The output of a step that reads before the update shows the token of the step before.
    late = 0 if is_kernel else int(paper.C.before_update)  # type: ignore[union-attr]

    def relative(size: Array, mark: Array) -> Array:
        left = size / size[mark][None]  # beyond the end that of the last step, which is not seen
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
        return Retention(state, relative(output, mark + late), predicted)

    return jax.lax.map(follow, marks)


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
