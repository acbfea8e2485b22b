"""A step of a sequence as an argument."""

from __future__ import annotations

import numpy as np
from jax.core import Tracer
from jaxtyping import Array

Number = Array | float | int


def checked_step(owner: str, step: Number, length: int) -> Number:
    """A step of a sequence, checked where it is known.

    Args:
        owner: Who asks, for the message.
        step: The step, which may be traced.
        length: L.

    Returns:
        The step.

    Raises:
        ValueError: If there is no such step.

    Example:
        >>> checked_step("scale_write", 4, 4)
        Traceback (most recent call last):
            ...
        ValueError: scale_write: expected a step from 0 to 3, got 4.
    """
    if isinstance(step, Tracer):
        return step
    known = np.asarray(step)
    if known.shape or known.dtype.kind not in "iu" or not 0 <= known < length:
        raise ValueError(f"{owner}: expected a step from 0 to {length - 1}, got {step}.")
    return step
