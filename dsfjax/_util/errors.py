"""How far two arrays are apart and may be, where references are computed, and who has TF32."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

# Largest normwise errors of values and gradients. In bfloat16 outputs, gradients and the operands
# of products are rounded to 8 bits, a relative error of 2^-8 each, while states and sums are
# float32. Four such roundings in a row are allowed, and eight in a backward pass. TF32 rounds the
# operands of products to 11 bits, and is allowed as many.
BOUNDS = {
    "float32": (2e-6, 1e-5),
    "bfloat16": (2.0**-6, 2.0**-5),
    "tf32": (2.0**-9, 2.0**-8),
    "float64": (1e-12, 1e-11),
}


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


def lacks(precision: str) -> str | None:
    """Why the default device cannot compute in a precision, or None.

    Args:
        precision: "float32", "bfloat16", "tf32" or "float64". Only TF32 depends on the device: an
            NVIDIA GPU of compute capability 8.0 or higher has it. JAX takes the name on any device,
            and computes in another precision where there is no TF32.

    Returns:
        The reason.

    Example:
        >>> lacks("bfloat16") is None
        True
    """
    device = jax.devices()[0]
    major, _, _ = str(getattr(device, "compute_capability", "")).partition(".")
    has = device.platform == "gpu" and major.isdigit() and int(major) >= 8
    return None if has or precision != "tf32" else f"no TF32 on this device ({device.device_kind})"
