r"""The distribution of eigenvalues over tokens, in log space, as something that adds up.

What matters about a decay is :math:`\log |λ|`, minus the inverse of its time constant in steps,
over many orders of magnitude. The default bins are therefore geometric in :math:`|\log |λ||`, on
both sides of |λ| = 1: four per factor of ten between time constants of 0.01 and 100,000 steps.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsfjax.analysis.spectra import LogEigenvalues, are_positive, log_eigenvalues
from dsfjax.core import KernelSystem, System

_SIZES = np.logspace(-5, 2, 29)
LOG_MODULUS_EDGES: tuple[float, ...] = (*(-_SIZES[::-1]).tolist(), *_SIZES.tolist())
NUM_PHASE_BINS = 36
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
        That of `eigenvalues`, then O(L H k log E) work. Logarithms throughout: decays that
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
    bins = jnp.searchsorted(
        jnp.asarray(edges, x.dtype), x.reshape(-1), side="right", method="scan_unrolled"
    )

    def shares(index: Array, count: int) -> Array:
        return count_per_head(index, defined, count).astype(x.dtype) / weight[:, None]

    if positive:
        phases = jnp.zeros((x.shape[0], NUM_PHASE_BINS), x.dtype).at[:, NUM_PHASE_BINS // 2].set(1)
    else:
        turns = jnp.floor((angle + math.pi) * (NUM_PHASE_BINS / (2 * math.pi)))
        turns = jnp.mod(turns, NUM_PHASE_BINS).astype(jnp.int32)
        phases = shares(turns, NUM_PHASE_BINS)

    def mean(v: Array, where: Array) -> Array:
        return jnp.sum(jnp.where(where, v, 0), axis=1) / jnp.sum(where, axis=1).astype(v.dtype)

    return Spectrum(
        modulus=shares(bins.reshape(x.shape), len(edges) + 1),
        phase=phases,
        mean=mean(x, defined & ~zero),
        minimum=jnp.nanmin(x, axis=1),
        maximum=jnp.nanmax(x, axis=1),
        zero=mean(zero.astype(x.dtype), defined),
        growing=mean((x > 0).astype(x.dtype), defined),
        weight=weight,
    )


def count_per_head(index: Array, counted: Array, length: int) -> Array:
    """How often every index in [0, length) occurs in each row of (H, M) integers, (H, length)."""
    heads = index.shape[0]
    row = (length + 1) * jnp.arange(heads, dtype=index.dtype)[:, None]
    flat = jnp.where(counted, index, length) + row  # what is not counted goes to a last column
    counts = jnp.bincount(flat.reshape(-1), length=heads * (length + 1))
    return counts.reshape(heads, -1)[:, :length]


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
