"""Reset masks: where the documents of a packed sequence begin."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int


def reset_from_segment_ids(
    segment_ids: Int[Array, " L"], previous: Int[Array, ""] | int | None = None
) -> Bool[Array, " L"]:
    """True at the first step of every segment.

    Args:
        segment_ids: (L,) integers; a change of value starts a segment.
        previous: Segment of the step before the first one, when the sequence continues a carried
            state. By default the first step starts a segment.

    Returns:
        Boolean mask (L,), the ``reset`` field of a `System`.

    Raises:
        ValueError: If ``segment_ids`` is not one sequence.

    Example:
        >>> reset_from_segment_ids(jnp.array([7, 7, 9, 9, 9, 7])).tolist()
        [True, False, True, False, False, True]
    """
    if segment_ids.ndim != 1:
        raise ValueError(
            f"reset_from_segment_ids: expected one sequence (L,), got {segment_ids.shape}. Use "
            "jax.vmap for a batch."
        )
    changed = segment_ids[1:] != segment_ids[:-1]
    first = jnp.array([True]) if previous is None else (segment_ids[:1] != previous)
    return jnp.concatenate([first, changed])


def reset_from_lengths(lengths: Int[Array, " K"], length: int) -> Bool[Array, " L"]:
    """True at the first step of each of K consecutive segments of the given lengths.

    Args:
        lengths: (K,) positive integers; steps after their sum belong to one more segment.
        length: L, the number of steps.

    Returns:
        Boolean mask (L,).

    Raises:
        ValueError: If ``lengths`` is not one-dimensional.

    Example:
        >>> reset_from_lengths(jnp.array([2, 3]), 6).tolist()
        [True, False, True, False, False, True]
    """
    if lengths.ndim != 1:
        raise ValueError(
            f"reset_from_lengths: expected lengths of shape (K,), got {lengths.shape}."
        )
    starts = jnp.concatenate(
        [jnp.zeros(1, lengths.dtype), jnp.cumsum(lengths, dtype=lengths.dtype)]
    )
    return (jnp.arange(length, dtype=lengths.dtype)[:, None] == starts[None, :]).any(axis=1)
