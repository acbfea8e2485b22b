"""Rows brought to one size: RMS norm, and layer norm, which subtracts their mean before.

What is one number per row, such as a mean, is found and spread by products with ones, whose
gradients are such products again: sums and broadcasts are slower on CPUs (`rows`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.rows import inner, scaled_rows


def rms_norm(
    x: Float[Array, "*rows m"],
    weight: Float[Array, "... m"] | None,
    eps: float,
    *,
    plus_one: bool = False,
) -> Float[Array, "*rows m"]:
    r"""RMS norm of the last axis, x / √(mean x² + ε), times the weight or 1 + weight.

    Weights are of every feature, or of every head and feature. Computed in float32 at least, and
    given in the dtype of x.

    References:
        Zhang & Sennrich (2019), arXiv:1910.07467.

    Example:
        >>> rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0]), 0.0).tolist()
        [1.0, -2.0]
    """
    wide = x.astype(state_dtype(x.dtype))
    y = scaled_rows(wide, jax.lax.rsqrt(inner(wide, wide) / x.shape[-1] + eps))
    if weight is not None:
        scale = weight.astype(y.dtype)
        y = y * jnp.broadcast_to(1 + scale if plus_one else scale, y.shape)
    return y.astype(x.dtype)


def layer_norm(
    x: Float[Array, "*rows m"],
    weight: Float[Array, "... m"] | None,
    bias: Float[Array, "... m"] | None,
    eps: float,
) -> Float[Array, "*rows m"]:
    r"""Layer norm of the last axis, (x − mean x) / √(var x + ε), times the weight, plus the bias.

    Weight and bias are of every feature, or of every head and feature. Computed in float32 at
    least, and given in the dtype of x.

    References:
        Ba et al. (2016), arXiv:1607.06450.

    Example:
        >>> layer_norm(jnp.array([5.0, 3.0]), None, jnp.array([0.0, 1.0]), 0.0).tolist()
        [1.0, 0.0]
    """
    wide = x.astype(state_dtype(x.dtype))
    ones = jnp.ones((wide.shape[-1], 1), wide.dtype)
    mean = jnp.matmul(wide, ones, precision="highest") / wide.shape[-1]
    y = rms_norm(wide - jnp.matmul(mean, ones.T, precision="highest"), weight, eps)
    y = y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
    return y.astype(x.dtype)
