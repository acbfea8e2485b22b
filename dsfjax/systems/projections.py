"""Queries, keys and values: what the architectures have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import state_dtype
from dsfjax.systems.primitives import Init, affine, divide, projection


def init_qkv(
    key: Array,
    *,
    d_model: int,
    d_state: int,
    num_heads: int,
    num_groups: int | None = None,
    bias: bool,
    init: Init,
) -> dict[str, Any]:
    """Parameters W_q (H, n, d), W_k (G, n, d), W_v (G, p, d) and their biases (zero, or None)."""
    groups = num_heads if num_groups is None else num_groups
    p = d_model // num_heads
    keys = jax.random.split(key, 3)
    shapes = {"q": (num_heads, d_state), "k": (groups, d_state), "v": (groups, p)}
    params: dict[str, Any] = {}
    for k, (name, shape) in zip(keys, shapes.items(), strict=True):
        params[f"W_{name}"] = projection(k, (*shape, d_model), init)
        params[f"bias_{name}"] = jnp.zeros(shape) if bias else None
    return params


def project_qkv(params: Any, u: Array) -> tuple[Array, Array, Array]:
    """Q (L, H, n), k (L, G, n) and v (L, G, p) of the tokens."""
    return (
        affine(params.W_q, u, params.bias_q),
        affine(params.W_k, u, params.bias_k),
        affine(params.W_v, u, params.bias_v),
    )


def value_map(params: Any) -> Array:
    """W_v as (H·p, d)."""
    if getattr(params, "bias_v", None) is not None:
        raise ValueError(
            "system: expected values that are linear in the token, got a value path with a bias. "
            "Run assemble(params, signals) on values(signals)."
        )
    return params.W_v.reshape(-1, params.W_v.shape[-1])


def check_heads(name: str, d_model: int, num_heads: int) -> None:
    """Raise unless the heads divide the model width."""
    divide(name, d_model, num_heads, "d_model")


def maps(key: Array, init: Init, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Weights by name, from keys of their own: ``maps(key, init, W_q=(H, n, d), …)``."""
    keys = jax.random.split(key, len(shapes))
    return {
        name: projection(own, shape, init)
        for own, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def pairs(x: Array) -> Array:
    """Features 2i and 2i + 1 of (…, n) as one complex number, (…, n/2).

    Example:
        >>> pairs(jnp.array([1.0, 2.0])).tolist()
        [(1+2j)]
    """
    x = x.astype(state_dtype(x.dtype))
    return jax.lax.complex(x[..., 0::2], x[..., 1::2])
