"""How many steps a system has: the one rule."""

from __future__ import annotations

from typing import Any

from dsfjax.core.pytree import time_leaves


def common_length(owner: str, x: Any, length: int | None) -> int | None:
    """The number of steps of an object, from its arrays and what its author says.

    Args:
        owner: Name for the message.
        x: A dataclass of arrays with time axes.
        length: L as given, or None.

    Returns:
        The length as given; otherwise the common size above 1 of the time axes, and None if all of
        them are 1: nothing varies in time, and any number of steps fits.

    Raises:
        ValueError: If time axes are neither 1 nor all of one size, or not that of the length.
    """
    sizes = {leaf.shape[0] for leaf in time_leaves(x)} - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"{owner}: parts cover different numbers of steps {sorted(sizes)}; every time axis "
            "must be L, or 1 for what is constant in time."
        )
    if length is None:
        return next(iter(sizes), None)
    if length < 1 or not sizes <= {length}:
        raise ValueError(
            f"{owner}: expected time axes of length = {length} ≥ 1, or 1 for what is constant in "
            f"time, got {sorted(sizes) or length}."
        )
    return length


def steps(system: Any, length: int | None = None, *, owner: str = "steps") -> int:
    """The number of steps L of a system, the only rule for it.

    Args:
        system: A `System` or a `KernelSystem`.
        length: L for a time-invariant system, which fits any; 1 by default. For another system it
            must be its own length, or None.
        owner: The function that wants to know, for the message.

    Returns:
        L.

    Raises:
        ValueError: If ``length`` contradicts that of the system.

    Example:
        >>> import dsfjax, jax.numpy as jnp
        >>> A = dsfjax.Scalar(jnp.zeros((1, 1)))
        >>> parts = A, dsfjax.OuterInput(), dsfjax.InnerOutput()
        >>> lti = dsfjax.System(*parts, state_shape=(1, 1, 1))
        >>> one = dsfjax.System(*parts, state_shape=(1, 1, 1), length=1)
        >>> lti.length, steps(lti, 7), steps(one)
        (None, 7, 1)
    """
    own = system.length
    if own is None:
        own = 1 if length is None else length
    elif length is not None and length != own:
        raise ValueError(
            f"{owner}: expected length {own}, the number of steps of the system, got {length}. "
            "Only a time-invariant system fits any length."
        )
    if own < 1:
        raise ValueError(f"{owner}: expected a length of at least 1, got {own}.")
    if system.reset is not None and system.reset.shape != (own,):
        raise ValueError(
            f"{owner}: expected reset of shape ({own},), one per token, got {system.reset.shape}. "
            "Resets are never constant in time."
        )
    return own
