"""Explicit dtype arithmetic, independent of JAX's promotion mode."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np


def state_dtype(*dtypes: Any) -> np.dtype:
    """The widest of the given dtypes, but at least float32; complex if any of them is.

    States and sums use it, so bfloat16 and float16 inputs accumulate in float32.

    Example:
        >>> state_dtype(jnp.bfloat16), state_dtype(jnp.float32, jnp.complex64)
        (dtype('float32'), dtype('complex64'))
    """
    result = np.dtype(np.float32)
    for dtype in dtypes:
        if jnp.issubdtype(dtype, jnp.complexfloating) or np.dtype(dtype) == np.float64:
            result = np.promote_types(result, np.dtype(dtype))
    return result


def product_dtype(a: Any, b: Any) -> np.dtype:
    """Dtype of a matrix product of two inputs: theirs if equal, else `state_dtype`."""
    return np.dtype(a) if np.dtype(a) == np.dtype(b) else state_dtype(a, b)


def real_dtype(dtype: Any) -> np.dtype:
    """The real counterpart of a dtype."""
    return np.dtype(jnp.finfo(dtype).dtype)
