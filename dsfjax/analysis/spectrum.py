r"""Eigenvalues of the normalised transition: the numbers that say what a state keeps.

The paper's transition is :math:`Λ_t = (η_{t-1}/η_t) A_t`. Its eigenvalues follow from the structure
of A without ever forming an N×N matrix, and each of them stands for as many states as share it.

Over many tokens they are a distribution that adds up over sequences. What matters about a decay is
:math:`\log |λ|`, minus the inverse of its time constant in steps, over many orders of magnitude.
The default bins are therefore geometric in :math:`|\log |λ||`, on both sides of |λ| = 1: four per
factor of ten between time constants of 0.01 and 100,000 steps.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import has_finite_state, normalizers
from dsfjax.core import KernelSystem, System, steps
from dsfjax.core.dtypes import state_dtype


class LogEigenvalues(NamedTuple):
    """Eigenvalues λ = exp(log_modulus + i phase), real arrays (L, H, k).

    Attributes:
        log_modulus: log |λ|; −∞ for a zero.
        phase: Angle in (−π, π], 0 or π for real eigenvalues.
    """

    log_modulus: Array
    phase: Array


@jitted("length")
def eigenvalues(
    system: System | KernelSystem, *, length: int | None = None
) -> Inexact[Array, "L H k"]:
    r"""Distinct eigenvalues of the normalised transition, per step and head.

    .. math:: Λ_t = \frac{η_{t-1}}{η_t} A_t, \qquad λ \in \operatorname{spec} Λ_t

    with the ratio 1 where there is no normaliser. How many are distinct by structure:

    =========================  ===============================================  ===================
    A                          k                                                each stands for
    =========================  ===============================================  ===================
    `Scalar`                   1                                                n·p states
    `Diagonal`                 n, p or n·p (row-major), as the decay varies     p, n or 1 states
    `DiagonalPlusLowRank`      n, in the order of the eigensolver               p states
    `Dense`                    n, in the order of the eigensolver               p states
    your `Transition`          n, in the order of the eigensolver               p states
    `KernelSystem`             1: its decay, times the ratio of normalisers     the whole past
    =========================  ===============================================  ===================

    The first step and every reset step have no η before them: NaN where there is a normaliser.
    Where there is none, Λ_t is A_t, and 0 at a reset step, as in `to_dense`.

    Args:
        system: A system of one sequence; batches, seeds and layers come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time (one step otherwise).

    Returns:
        (L, H, k) in the dtype of the state: real for real `Scalar` and `Diagonal` and for a
        `KernelSystem`, complex for complex ones and always for `DiagonalPlusLowRank` and `Dense`.

    Raises:
        ValueError: If ``length`` contradicts the length of the system.

    Numerics:
        Decays and normalisers are combined as logarithms, log-normalisers of a `KernelSystem`
        are streamed: O(L H) memory, O(L² H m) work. `Scalar` and `Diagonal` cost O(L H k),
        a normaliser that is summed one `scan` with one value channel, the other structures an
        eigensolve of n×n per head and step, O(L H n³). Nothing bounds the ratio of normalisers by
        1, so moduli above 1 are no error.

    References:
        Rickenbach et al. (2025), arXiv:2510.09379. Sieber et al. (2024), arXiv:2405.15731.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5, 0.25]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(2, 1, 3))
        >>> eigenvalues(s, length=2)[:, :, 0].tolist()
        [[0.5, 0.25], [0.5, 0.25]]
    """
    log_values, negative = _log_values("eigenvalues", system, length)
    # exp of a NaN that is a constant of the program is any number where LLVM optimises.
    nan = jnp.isnan(log_values)
    values = jnp.where(nan, jnp.nan, jnp.exp(jnp.where(nan, 0, log_values)))
    return values if negative is None else jnp.where(negative, -values, values)


@jitted("length")
def log_eigenvalues(system: System | KernelSystem, *, length: int | None = None) -> LogEigenvalues:
    """The `eigenvalues` as logarithms of moduli and phases, which neither under- nor overflow.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time (one step otherwise).

    Returns:
        `LogEigenvalues`, real arrays (L, H, k); NaN where `eigenvalues` are.

    Raises:
        ValueError: If ``length`` contradicts the length of the system.

    Numerics:
        As `eigenvalues`. A decay of e^{−300} is 0 in float32; its logarithm here is −300.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.array([[-300.0]]))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> log_eigenvalues(s).log_modulus.item()
        -300.0
    """
    log_values, negative = _log_values("log_eigenvalues", system, length)
    log_modulus = log_values.real
    if jnp.iscomplexobj(log_values):
        phase = log_values.imag
        if negative is not None:
            phase = phase + jnp.where(negative, jnp.asarray(math.pi, phase.dtype), 0)
        phase = math.pi - jnp.mod(math.pi - phase, 2 * math.pi)
    else:
        phase = jnp.zeros_like(log_modulus)
        if negative is not None:
            phase = jnp.where(negative, jnp.asarray(math.pi, phase.dtype), phase)
    return LogEigenvalues(log_modulus, jnp.where(jnp.isnan(log_modulus), jnp.nan, phase))


def are_positive(system: System | KernelSystem) -> bool:
    """Whether all eigenvalues are real and not negative, by the structure of the system."""
    if not has_finite_state(system):
        return True
    summed = system.eta is not None and system.eta.num_channels > 0
    return system.A.is_positive and not system.is_complex and not summed


def carried_log_moduli(
    system: System | KernelSystem, *, length: int | None = None
) -> Inexact[Array, "L H k"]:
    """Log |λ| of what is carried into every step: −∞ at the first step and at resets."""
    log_modulus = log_eigenvalues(system, length=length).log_modulus
    return jnp.where(starts(system, log_modulus.shape[0])[:, None, None], -jnp.inf, log_modulus)


def starts(system: System | KernelSystem, steps: int) -> Array:
    """Boolean (L,): steps before which there is no state, the first one and resets."""
    first = jnp.arange(steps, dtype=jnp.int32) == 0
    return first if system.reset is None else first | system.reset


def _of_weights(owner: str, kernel: KernelSystem) -> Array | None:
    """Log decays of the weights of attention (L, H, 1), or None where they do not decay."""
    if kernel.key_transition is not None:
        raise ValueError(
            f"{owner}: expected a kernel whose weights decay by numbers, got a KernelSystem whose "
            "keys are moved by a transition: its state has no eigenvalues. Take the "
            "eigenvalues of system.transition."
        )
    if kernel.weight_log_decay is None:
        return None
    decay = kernel.weight_log_decay.astype(kernel.dtype)
    return jnp.broadcast_to(decay, (kernel.length, kernel.num_heads))[..., None]


def _log_values(
    owner: str, system: System | KernelSystem, length: int | None
) -> tuple[Array, Array | None]:
    """Logarithms of the eigenvalues (L, H, k), and where their sign is flipped."""
    length = steps(system, length, owner=owner)
    log_values, negative = None, None
    if has_finite_state(system):
        log_values, negative = _of_transition(system, length)
        if system.eta is None:
            if system.reset is not None:
                zero = jnp.asarray(-jnp.inf, log_values.dtype)
                log_values = jnp.where(system.reset[:, None, None], zero, log_values)
            return log_values, negative
    elif isinstance(system, KernelSystem):
        log_values = _of_weights(owner, system)
    log_eta, sign = normalizers(system, length=length)
    ratio = (log_eta[:-1] - log_eta[1:])[:, :, None]
    if log_values is not None:
        ratio = log_values[1:] + ratio.astype(log_values.dtype)
    nan = jnp.full((1, *ratio.shape[1:]), jnp.nan, ratio.dtype)
    log_values = jnp.concatenate([nan, ratio])
    if system.reset is not None:
        log_values = jnp.where(system.reset[:, None, None], nan, log_values)
    if sign is None:
        return log_values, negative
    flipped = jnp.concatenate([jnp.zeros_like(sign[:1]), sign[:-1] * sign[1:]]) < 0
    flipped = flipped[:, :, None]
    return log_values, flipped if negative is None else flipped != negative


def _of_transition(system: System, steps: int) -> tuple[Array, Array | None]:
    """Logarithms of the eigenvalues of A, (L, H, k); log 0 is -inf; and where they are negative."""
    log_values, negative = system.A.log_eigenvalues()
    dtype = state_dtype(log_values.dtype, system.dtype)
    shape = (steps, system.num_heads, log_values.shape[-1])
    if negative is not None:
        negative = jnp.broadcast_to(negative, shape)
    return jnp.broadcast_to(log_values.astype(dtype), shape), negative


_SIZES = np.logspace(-5, 2, 29)
LOG_MODULUS_EDGES: tuple[float, ...] = (*(-_SIZES[::-1]).tolist(), *_SIZES.tolist())
NUM_PHASE_BINS = 36
_COMPARED_AT_ONCE = 1024
_AT_ONCE = 2**16  # eigenvalues, so that what is made of them stays in a cache


class Spectrum(NamedTuple):
    """Shares and extremes of the eigenvalues of some tokens; leading axes as the function says.

    Steps where eigenvalues are undefined (`eigenvalues`) do not count.

    Attributes:
        modulus: Share of log |λ| below the first edge, between neighbouring edges (the lower one
            included) and from the last edge on, (…, E + 1).
        phase: Share in each of the bins of equal width over [−π, π), (…, F); π counts as −π.
        mean: Mean of log |λ| over the non-zero eigenvalues.
        minimum: Smallest log |λ|; −∞ if one is zero.
        maximum: Largest log |λ|.
        zero: Share of eigenvalues that are exactly zero.
        growing: Share with |λ| > 1.
        weight: How many eigenvalues were counted.
    """

    modulus: Array
    phase: Array
    mean: Array
    minimum: Array
    maximum: Array
    zero: Array
    growing: Array
    weight: Array


@jitted("length", "edges")
def spectrum(
    system: System | KernelSystem,
    *,
    length: int | None = None,
    edges: tuple[float, ...] = LOG_MODULUS_EDGES,
) -> Spectrum:
    """The distribution of the `eigenvalues` of one sequence over its tokens, per head.

    Args:
        system: A system of one sequence. For a batch and the layers of a model, apply this to one
            sequence after the other (`dsfjax.nn.collect_systems`) and `merge` the results.
        length: L, needed only if nothing in the system varies in time (one step otherwise).
        edges: Increasing bin edges of log |λ|.

    Returns:
        `Spectrum` with leading axis (H,), in the real dtype of the state.

    Raises:
        ValueError: If ``edges`` do not increase, or ``length`` contradicts that of the system.

    Numerics:
        That of `eigenvalues`, then O(L H k E) work. Logarithms throughout: decays that
        underflow to 0 are told apart, and only those of exactly 0 count as zero.

    References:
        Rickenbach et al. (2025), arXiv:2510.09379.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5], [0.5], [0.0], [1.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> found = spectrum(s, edges=(-1.0, 0.0, 1.0))
        >>> found.modulus[0].tolist(), found.zero.item(), found.growing.item()
        ([0.25, 0.5, 0.25, 0.0], 0.25, 0.25)
    """
    if not all(a < b for a, b in zip(edges, edges[1:], strict=False)) or not edges:
        raise ValueError(f"spectrum: expected increasing bin edges, got {edges}.")
    values = log_eigenvalues(system, length=length)
    read = partial(_of_steps, positive=are_positive(system), edges=edges)
    steps, heads, k = values.log_modulus.shape
    size = max(1, _AT_ONCE // (heads * k))
    if size >= steps:
        return read(values)
    count = -(-steps // size)
    padding = ((0, count * size - steps), (0, 0), (0, 0))

    def cut(x: Array) -> Array:
        return jnp.pad(x, padding, constant_values=jnp.nan).reshape(count, size, heads, k)

    return merge(jax.lax.map(read, LogEigenvalues(*map(cut, values))))


def _of_steps(values: LogEigenvalues, *, positive: bool, edges: tuple[float, ...]) -> Spectrum:
    """The distribution over all the steps of (L, H, k) at once."""
    x, angle = (jnp.moveaxis(v, 1, 0).reshape(v.shape[1], -1) for v in values)
    defined, zero = ~jnp.isnan(x), jnp.isneginf(x)
    weight = defined.sum(axis=1).astype(x.dtype)
    from_edge = _count_from(x, jnp.asarray(edges, x.dtype))
    at_least = jnp.concatenate(
        [defined.sum(axis=1)[None], from_edge, jnp.zeros_like(from_edge[:1])]
    )
    modulus = (at_least[:-1] - at_least[1:]).T.astype(x.dtype) / weight[:, None]
    if positive:
        phases = jnp.zeros((x.shape[0], NUM_PHASE_BINS), x.dtype).at[:, NUM_PHASE_BINS // 2].set(1)
    else:
        turns = jnp.floor((angle + math.pi) * (NUM_PHASE_BINS / (2 * math.pi)))
        turns = jnp.mod(turns, NUM_PHASE_BINS).astype(jnp.int32)
        counts = count_per_head(turns, defined, NUM_PHASE_BINS)
        phases = counts.astype(x.dtype) / weight[:, None]

    def mean(v: Array, where: Array) -> Array:
        return jnp.sum(jnp.where(where, v, 0), axis=1) / jnp.sum(where, axis=1).astype(v.dtype)

    return Spectrum(
        modulus=modulus,
        phase=phases,
        mean=mean(x, defined & ~zero),
        minimum=jnp.nanmin(x, axis=1),
        maximum=jnp.nanmax(x, axis=1),
        zero=mean(zero.astype(x.dtype), defined),
        growing=mean((x > 0).astype(x.dtype), defined),
        weight=weight,
    )


def _count_from(x: Array, edges: Array) -> Array:
    """How many numbers of each row of (H, M) are at least as large as each edge, (E, H)."""
    # Comparisons with all edges take less time than a search and a scatter, and counts of many
    # places less than sums: a block of numbers stays close while it is compared.
    heads, count = x.shape
    block = max(1, _COMPARED_AT_ONCE // heads)
    x = jnp.pad(x, ((0, 0), (0, -count % block)), constant_values=jnp.nan)
    blocks = jnp.moveaxis(x.reshape(heads, -1, block), 1, 0)

    def compare(counts: Array, values: Array) -> tuple[Array, None]:
        return counts + (values[None] >= edges[:, None, None]).astype(jnp.int32), None

    counts = jnp.zeros((edges.size, heads, block), jnp.int32)
    return jax.lax.scan(compare, counts, blocks)[0].sum(axis=-1)


def count_per_head(index: Array, counted: Array, length: int) -> Array:
    """How often every index in [0, length) occurs in each row of (H, M) integers, (H, length)."""
    heads = index.shape[0]
    row = (length + 1) * jnp.arange(heads, dtype=index.dtype)[:, None]
    flat = jnp.where(counted, index, length) + row  # what is not counted goes to a last column
    counts = jnp.bincount(flat.reshape(-1), length=heads * (length + 1))
    return counts.reshape(heads, -1)[:, :length]


@jitted("axis")
def merge(spectra: Spectrum, axis: int = 0) -> Spectrum:
    """One distribution from several: of a batch, of the heads, of seeds.

    Args:
        spectra: `Spectrum` with the parts along a leading axis.
        axis: That axis, counted from the front.

    Returns:
        `Spectrum` without the axis, every eigenvalue counting the same.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5, 1.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(2, 1, 1))
        >>> merge(spectrum(s)).growing.item()
        0.5
    """

    def average(x: Array, weight: Array) -> Array:
        weight = weight.reshape(*weight.shape, *[1] * (x.ndim - weight.ndim))
        return jnp.sum(jnp.where(weight > 0, x, 0) * weight, axis) / jnp.sum(weight, axis)

    weight = spectra.weight
    finite = jnp.where(weight > 0, weight * (1 - spectra.zero), 0)
    return Spectrum(
        modulus=average(spectra.modulus, weight),
        phase=average(spectra.phase, weight),
        mean=average(spectra.mean, finite),
        minimum=jnp.nanmin(spectra.minimum, axis),
        maximum=jnp.nanmax(spectra.maximum, axis),
        zero=average(spectra.zero, weight),
        growing=average(spectra.growing, weight),
        weight=weight.sum(axis),
    )


@jitted("q", "edges")
def quantile(
    spectra: Spectrum, q: float, *, edges: tuple[float, ...] = LOG_MODULUS_EDGES
) -> Float[Array, ...]:
    """The log |λ| below which a share q of the eigenvalues lies, to the width of a bin.

    Args:
        spectra: Of `spectrum` or `merge`.
        q: In [0, 1].
        edges: The bin edges it was made with.

    Returns:
        log |λ|, with the leading axes of ``spectra``; linear within a bin, and within the extremes.

    Raises:
        ValueError: If ``edges`` do not fit the shares, or q is outside [0, 1].
    """
    if len(edges) + 1 != spectra.modulus.shape[-1] or not 0 <= q <= 1:
        raise ValueError(
            f"quantile: expected {spectra.modulus.shape[-1] - 1} edges and q in [0, 1], got "
            f"{len(edges)} edges and q = {q}."
        )
    shape = spectra.minimum.shape
    low, high = spectra.minimum[..., None], spectra.maximum[..., None]
    inner = jnp.broadcast_to(jnp.asarray(edges, spectra.mean.dtype), (*shape, len(edges)))
    knots = jnp.concatenate([low, jnp.clip(inner, low, high), high], axis=-1)
    below = jnp.cumsum(spectra.modulus, axis=-1)
    i = jnp.minimum(jnp.sum(below < q, axis=-1, keepdims=True), len(edges))
    take = jnp.take_along_axis
    share, before = take(spectra.modulus, i, -1), take(below, i, -1) - take(spectra.modulus, i, -1)
    left, right = take(knots, i, -1), take(knots, i + 1, -1)
    part = jnp.where(share > 0, (q - before) / share, 0)
    # In the bin of the zeros the left end is −∞.
    value = jnp.where(jnp.isneginf(left), left, left + part * (right - left))
    return jnp.where(part >= 1, right, value)[..., 0]


class Outside(NamedTuple):
    """Eigenvalues outside an interval, per head; arrays (H,).

    Attributes:
        below: Share with |λ| below the lower bound.
        above: Share with |λ| above the upper bound.
        minimum: The smallest |λ|.
        maximum: The largest |λ|.
    """

    below: Array
    above: Array
    minimum: Array
    maximum: Array


@jitted("low", "high", "tolerance", "length")
def outside(
    system: System | KernelSystem,
    low: float = 0.0,
    high: float = 1.0,
    *,
    tolerance: float = 1e-6,
    length: int | None = None,
) -> Outside:
    """How many eigenvalues of the normalised transition leave an interval of moduli.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        low: Lower bound of |λ|.
        high: Upper bound of |λ|; ``math.inf`` for none.
        tolerance: Relative, for rounding: bounds are closed and this much wider.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        `Outside`; steps at which eigenvalues are undefined do not count.

    Raises:
        ValueError: Unless 0 ≤ low ≤ high.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5], [1.5], [0.5], [0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> found = outside(s)
        >>> found.above.item(), found.maximum.item()
        (0.25, 1.5)
    """
    if not 0 <= low <= high:
        raise ValueError(f"outside: expected 0 <= low <= high, got {low} and {high}.")
    log_modulus = log_eigenvalues(system, length=length).log_modulus
    counted = ~jnp.isnan(log_modulus)
    bottom = math.log(low) - tolerance if low > 0 else -math.inf
    top = math.log(high) + tolerance if high > 0 else -math.inf
    axes = (0, 2)

    def share(condition: Array) -> Array:
        total = counted.sum(axis=axes).astype(log_modulus.dtype)
        return jnp.sum(condition & counted, axis=axes).astype(log_modulus.dtype) / total

    return Outside(
        share(log_modulus < bottom),
        share(log_modulus > top),
        jnp.exp(jnp.nanmin(log_modulus, axis=axes)),
        jnp.exp(jnp.nanmax(log_modulus, axis=axes)),
    )
