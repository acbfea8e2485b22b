"""Reset masks: where the documents of a packed sequence begin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Shaped

from dsfjax.core.dtypes import whole_numbers


def reset_from_segment_ids(
    segment_ids: Shaped[Array, " L"], previous: Int[Array, ""] | int | None = None
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
        TypeError: If they are no integers.

    Example:
        >>> reset_from_segment_ids(jnp.array([7, 7, 9, 9, 9, 7])).tolist()
        [True, False, True, False, False, True]
    """
    if segment_ids.ndim != 1:
        raise ValueError(
            f"reset_from_segment_ids: expected one sequence (L,), got {segment_ids.shape}. Use "
            "jax.vmap for a batch."
        )
    ids = whole_numbers("reset_from_segment_ids", "segment_ids", segment_ids)
    changed = ids[1:] != ids[:-1]
    first = jnp.array([True])
    if previous is not None:
        previous = whole_numbers("reset_from_segment_ids", "previous", previous)
        first = ids[:1] != previous.astype(ids.dtype)
    return jnp.concatenate([first, changed])


def starts(
    length: int,
    reset: Bool[Array, " L"] | None = None,
    continued: Bool[Array, ""] | bool = False,
) -> Bool[Array, " L"]:
    """True at the steps before which the state is zero: resets, and the first step of all.

    Args:
        length: L, the number of steps.
        reset: Boolean (L,) or None.
        continued: Whether a state is carried into the first step, which then is no start.

    Returns:
        Boolean mask (L,).

    Example:
        >>> starts(3).tolist(), starts(3, jnp.array([False, True, False]), continued=True).tolist()
        ([True, False, False], [False, True, False])
    """
    first = (jnp.arange(length) == 0) & ~jnp.asarray(continued)
    return first if reset is None else first | reset


def positions(
    length: int,
    reset: Bool[Array, " L"] | None = None,
    before: Int[Array, ""] | int = 0,
) -> Int[Array, " L"]:
    """The place of every step in its document, from 0 on.

    Args:
        length: L, the number of steps.
        reset: Boolean (L,) or None.
        before: Place of the first step, unless it starts a document: how many steps of its
            document came before.

    Returns:
        int32 (L,). The last one plus 1 is ``before`` of the steps that follow.

    Example:
        >>> positions(5, jnp.array([False, False, True, False, False]), before=7).tolist()
        [7, 8, 0, 1, 2]
    """
    index = jnp.arange(length, dtype=jnp.int32)
    continued = jnp.asarray(before, jnp.int32) + index
    if reset is None:
        return continued
    start = jax.lax.cummax(jnp.where(reset, index, -1))
    return jnp.where(start < 0, continued, index - start)


def reset_from_lengths(lengths: Shaped[Array, " K"], length: int) -> Bool[Array, " L"]:
    """True at the first step of each of K consecutive segments of the given lengths.

    Args:
        lengths: (K,) positive integers; steps after their sum belong to one more segment.
        length: L, the number of steps.

    Returns:
        Boolean mask (L,).

    Raises:
        ValueError: If ``lengths`` is not one-dimensional.
        TypeError: If they are no integers.

    Example:
        >>> reset_from_lengths(jnp.array([2, 3]), 6).tolist()
        [True, False, True, False, False, True]
    """
    if lengths.ndim != 1:
        raise ValueError(
            f"reset_from_lengths: expected lengths of shape (K,), got {lengths.shape}."
        )
    lengths = whole_numbers("reset_from_lengths", "lengths", lengths)
    ends = jnp.cumsum(lengths, dtype=lengths.dtype)
    first = jnp.concatenate([jnp.zeros(1, lengths.dtype), ends])
    return (jnp.arange(length, dtype=lengths.dtype)[:, None] == first[None, :]).any(axis=1)
