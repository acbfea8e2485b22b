r"""Functions of queries and keys: unit length, and Taylor features of the exponential kernel."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.rows import inner, scaled_rows


def l2norm(x: Array, eps: float = 1e-6) -> Array:
    r"""The vector x / √(Σ x² + ε) along the last axis.

    Args:
        x: Vectors (…, m).
        eps: ε > 0, inside the root, as in the public kernels of the delta rule. With it a vector of
            zeros (padding) stays zero, with a gradient of at most 1/√ε.

    Returns:
        Vectors (…, m) in the dtype of x; sums are at least float32.

    Example:
        >>> l2norm(jnp.array([3.0, 4.0]), eps=0.0).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    wide = x.astype(state_dtype(x.dtype))
    return scaled_rows(wide, jax.lax.rsqrt(inner(wide, wide) + eps)).astype(x.dtype)


def taylor_features(x: Array, order: int, *, symmetric: bool = True) -> Array:
    r"""φ with φ(q)ᵀφ(k) = Σ_{r ≤ P} (qᵀk)^r / r!, from (…, m) to (…, n).

    Args:
        x: Queries or keys, (…, m).
        order: P ≥ 0.
        symmetric: Merge equal monomials, weighted by the root of their multiplicity.

    Returns:
        Features (…, n) in the dtype of x, n = binom(m + P, P) or Σ_{r ≤ P} m^r.

    Numerics:
        O(n P) work per point. The rounding error of φ(q)ᵀφ(k) is relative to φ(|q|)ᵀφ(|k|), which
        exceeds |qᵀk| where terms cancel.

    Example:
        >>> q, k = jnp.array([1.0, 2.0]), jnp.array([0.5, -0.5])
        >>> x = float(q @ k)
        >>> features = [taylor_features(z, 2) for z in (q, k)]
        >>> 1 + x + x**2 / 2, round(float(features[0] @ features[1]), 4)
        (0.625, 0.625)
    """
    m = x.shape[-1]
    features = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
    for r in range(1, order + 1):
        monomials = (
            list(itertools.combinations_with_replacement(range(m), r))
            if symmetric
            else list(itertools.product(range(m), repeat=r))
        )
        # A merged monomial stands for r!/Π(multiplicities!) equal ones; each carries 1/r!.
        weights = [
            1 / math.prod(math.factorial(k) for k in Counter(i).values())
            if symmetric
            else 1 / math.factorial(r)
            for i in monomials
        ]
        powers = jnp.prod(x[..., np.array(monomials)], axis=-1)
        scale = jnp.asarray(np.sqrt(weights), x.dtype)
        features.append(powers * scale.reshape((1,) * (x.ndim - 1) + (-1,)))
    return jnp.concatenate(features, axis=-1)


def check_even_order(owner: str, order: int) -> None:
    """Raise unless the order is even and not negative."""
    if order < 0 or order % 2:
        raise ValueError(
            f"{owner}: expected an even order, got {order}. Odd truncations of the exponential "
            f"take negative values, so η could vanish; use {max(order, 0) + max(order, 0) % 2}."
        )
