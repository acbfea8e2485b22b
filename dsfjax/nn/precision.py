"""In which numbers a model computes. Parameters stay what they are: float32 master weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree


class Precision(NamedTuple):
    """A policy of numbers.

    Parameters, their gradients and the state of the optimiser are float32 in all of them (float64
    with ``jax_enable_x64``); so are the states of a recurrence, its sums, and the logits.

    Attributes:
        compute: Type of activations and of the operands of matrix products; None for that of the
            parameters.
        matmul: JAX's name for how products of float32 are computed.
    """

    compute: str | None
    matmul: str


POLICIES = {
    "float32": Precision(None, "highest"),
    "bfloat16": Precision("bfloat16", "default"),
    # "high" is TF32 on a GPU, three passes of bfloat16 on a TPU, and float32 on a CPU.
    "tf32": Precision(None, "high"),
}
"""Name to policy. ``ModelConfig.precision`` is one of these names."""


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
