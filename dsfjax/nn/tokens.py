"""Token ids as callers give them: lists, narrow integers, and what are no ids at all."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


def token_ids(owner: str, tokens: Any, vocab_size: int) -> Array:
    """The ids of one sequence, as an array of at least 32 bits.

    Args:
        owner: Who takes them, for messages.
        tokens: Integers (L,), L ≥ 1.
        vocab_size: Number of ids.

    Returns:
        Integer array (L,). Narrower integers become int32: not every id fits into them.

    Raises:
        ValueError: If they are not one sequence, or an id is not in [0, vocab_size). While tracing
            the ids are unknown; such an id then gets an embedding of NaN.
        TypeError: If they are not integers, such as text.

    Example:
        >>> token_ids("generate", [3, 5], 4)
        Traceback (most recent call last):
            ...
        ValueError: generate: expected token ids in [0, 4), got 5.
    """
    if isinstance(tokens, str | bytes):
        raise TypeError(f"{owner}: expected token ids, got text; encode it first.")
    ids = jnp.asarray(tokens)
    if ids.ndim != 1:
        remedy = "put it into a list" if ids.ndim == 0 else "for a batch use jax.vmap over it"
        raise ValueError(
            f"{owner}: expected one sequence of token ids (L,), got shape {ids.shape}; {remedy}."
        )
    if not ids.size:
        raise ValueError(f"{owner}: expected at least one token, got none.")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{owner}: expected token ids of an integer dtype, got {ids.dtype}.")
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)
    if not isinstance(ids, Tracer) and ids.is_fully_addressable:
        low, high = np.min(np.asarray(ids)), np.max(np.asarray(ids))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{owner}: expected token ids in [0, {vocab_size}), got {low if low < 0 else high}."
            )
    return ids
