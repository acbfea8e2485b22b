"""How far two arrays are apart, and the device on which references are computed."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np


def normwise(value: Any, expected: Any) -> float:
    """The error max |value − expected| / max |expected|; infinite where anything is NaN.

    Args:
        value: An array.
        expected: An array of the same shape.

    Returns:
        The error; the deviation itself where the expected values are all 0.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> normwise([1.0, 2.5], [1.0, 2.0]), normwise([float("nan")], [1.0])
        (0.25, inf)
    """
    value, expected = np.asarray(value), np.asarray(expected)
    if value.shape != expected.shape:
        raise ValueError(f"normwise: expected shape {expected.shape}, got {value.shape}.")
    if value.dtype.name == "bfloat16":  # NumPy has no arithmetic between it and others
        value = value.astype(np.float32)
    deviation, size = np.abs(value - expected).max(), np.abs(expected).max()
    error = float(deviation / size if size else deviation)
    return math.inf if math.isnan(error) else error


def host() -> Any:
    """The device of the reference: a CPU, on which JAX has float64 whatever else it runs on.

    Returns:
        The first CPU device.

    Raises:
        RuntimeError: If JAX was started without its CPU backend.

    Example:
        >>> host().platform
        'cpu'
    """
    try:
        return jax.devices("cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "the reference in float64 needs JAX's CPU backend in addition to the device, which "
            "JAX_PLATFORMS leaves out; unset it, or add cpu to it."
        ) from error
