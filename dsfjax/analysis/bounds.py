"""Bounds on |λ| that hold by construction, checked against the eigenvalues of real tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from dsfjax.analysis.spectra import log_eigenvalues
from dsfjax.core import KernelSystem, System


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
