"""In which numbers a model computes: `dsfjax.Precision` for all that surrounds the recurrence.

Parameters, their gradients and the state of the optimiser keep their type, as do the states of a
recurrence and the logits: float32, or float64 with ``jax_enable_x64``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from dsfjax.core import Precision


def products(policy: Precision) -> str:
    """JAX's name for how the linear maps of a model multiply.

    Example:
        >>> [products(Precision.named(name)) for name in ("float32", "bfloat16", "tf32")]
        ['highest', 'default', 'high']
    """
    return policy.products(policy.compute or "float32")


def computed(policy: Precision, params: PyTree, keep: PyTree) -> PyTree:
    """Parameters as a forward pass reads them. The gradient to them has their own type.

    Args:
        policy: The policy.
        params: The parameters.
        keep: Of each leaf, whether it keeps its type: what sets the decays of a state does, as 8
            bits of a decay near 1 would be another memory.

    Returns:
        Their values in the type of computation.
    """
    if policy.compute is None:
        return params
    dtype = jnp.dtype(policy.compute)
    return jax.tree.map(lambda leaf, kept: leaf if kept else leaf.astype(dtype), params, keep)


def as_input(policy: Precision, tokens: Any) -> Any:
    """Inputs that are values, in the type of computation; token ids as they are."""
    floating = isinstance(tokens, Array) and jnp.issubdtype(tokens.dtype, jnp.floating)
    return tokens.astype(policy.compute) if floating and policy.compute else tokens
