"""Pairs of entries of a vector, each turned by an angle of its own."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def rotate(x: Array, angle: Array, neighbours: bool) -> Array:
    """Turn pairs of entries (…, N) by (…, S): neighbours, or those N/2 apart; the rest stays."""
    n, pairs = x.shape[-1], angle.shape[-1]
    ends = jnp.arange(pairs)
    a, b = (2 * ends, 2 * ends + 1) if neighbours else (ends, ends + n // 2)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., a], x[..., b]
    return x.at[..., a].set(first * cos - second * sin).at[..., b].set(first * sin + second * cos)
