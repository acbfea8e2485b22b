"""What the fused kernels of the delta rules do to their inputs before the recurrence."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import l2norm
from dsfjax.ops.batch import wide


def unit(*vectors: Array) -> tuple[Array, ...]:
    """Every array with its last axis at unit length."""
    return tuple(l2norm(x) for x in vectors)


def log_decay(
    g: Array,
    A_log: Array | None,
    dt_bias: Array | None,
    lower_bound: float | None = None,
) -> Array:
    r"""The log decay of a raw gate.

    It is −e^{A_log} softplus(g + bias), or with a lower bound ℓ < 0 ℓ σ(e^{A_log} (g + bias)),
    where the factor is 1 without A_log.

    Args:
        g: (T, H) or (T, H, K).
        A_log: (H,), or None.
        dt_bias: (H,) or (H·K,), or None.
        lower_bound: ℓ, or None.

    Returns:
        The array of the shape of g, at least float32.

    Raises:
        ValueError: If neither A_log nor a lower bound is given, or the bias has another size.
    """
    if A_log is None and lower_bound is None:
        raise ValueError(
            "use_gate_in_kernel: expected A_log, got None; give it, or a lower_bound if the op has "
            "one."
        )
    x = wide(g)
    if dt_bias is not None:
        size = math.prod(x.shape[1:])
        if dt_bias.size != size:
            raise ValueError(
                f"use_gate_in_kernel: expected dt_bias of {size} numbers, one for each "
                f"{'head' if x.ndim == 2 else 'head and key channel'} of g, got "
                f"{list(dt_bias.shape)}."
            )
        x = x + dt_bias.reshape((1, *x.shape[1:])).astype(x.dtype)
    rate = jnp.ones((), x.dtype) if A_log is None else jnp.exp(A_log.astype(x.dtype))
    rate = rate.reshape((1, -1) + (1,) * (x.ndim - 2))
    if lower_bound is None:
        return -rate * jax.nn.softplus(x)
    return lower_bound * jax.nn.sigmoid(rate * x)


def write_strength(beta: Array, use_beta_sigmoid: bool, allow_neg_eigval: bool) -> Array:
    """β, or σ(β), or 2 σ(β), at least float32."""
    if allow_neg_eigval and not use_beta_sigmoid:
        raise ValueError(
            "allow_neg_eigval: expected use_beta_sigmoid_in_kernel next to it, got False; it "
            "doubles that sigmoid."
        )
    beta = wide(beta)
    if not use_beta_sigmoid:
        return beta
    return jax.nn.sigmoid(beta) * (2 if allow_neg_eigval else 1)
