"""Explicit dtype arithmetic, independent of JAX's promotion mode.

One rule for numbers that come from outside (`real_numbers`, `floating`, `whole_numbers`): integers
and booleans become real numbers of the dtype of the state, and nothing that would lose a part of a
number in silence is taken.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


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


def real_numbers(owner: str, name: str, x: Any, *dtypes: Any) -> Array:
    """Real floating-point numbers: integers and booleans are promoted, other dtypes refused.

    Args:
        owner: Who asks, for the message.
        name: Of the argument, for the message.
        x: An array.
        dtypes: Dtypes that the numbers meet: integers take the real part of their `state_dtype`.

    Raises:
        TypeError: For complex numbers and whatever else is not real.

    Example:
        >>> real_numbers("scan", "tokens u", jnp.arange(3), jnp.bfloat16).dtype
        dtype('float32')
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(real_dtype(state_dtype(*dtypes)))
    what = (
        "Pass its real part, or real and imaginary parts as channels of their own."
        if jnp.issubdtype(x.dtype, jnp.complexfloating)
        else "Convert it first."
    )
    raise TypeError(f"{owner}: expected {name} of real numbers, got dtype {x.dtype}. {what}")


def floating(tree: Any, *dtypes: Any) -> Any:
    """A tree whose integers and booleans have become real numbers, but for fields named sign."""
    dtype = real_dtype(state_dtype(*dtypes, *(x.dtype for x in jax.tree.leaves(tree))))

    def promote(path: Any, x: Any) -> Any:
        kept = jnp.issubdtype(x.dtype, jnp.inexact) or getattr(path[-1], "name", "") == "sign"
        return x if kept else jnp.asarray(x).astype(dtype)

    return jax.tree_util.tree_map_with_path(promote, tree)


def whole_numbers(owner: str, name: str, x: Any) -> Array:
    """Integers of at least 32 bits, whose sums do not wrap at 256.

    Raises:
        TypeError: For anything but integers.

    Example:
        >>> whole_numbers("reset_from_lengths", "lengths", jnp.array([200], jnp.uint8)).dtype
        dtype('int32')
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{owner}: expected {name} of integers, got dtype {x.dtype}.")
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)
