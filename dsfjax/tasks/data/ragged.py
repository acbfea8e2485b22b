"""Sequences of several lengths: one after the other on disk, padded on the device."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer, Shaped


def joined(parts: Sequence[np.ndarray], dtype: np.dtype | type) -> dict[str, np.ndarray]:
    """Sequences in one array, and where each begins.

    Args:
        parts: The sequences.
        dtype: Their dtype.

    Returns:
        ``flat``, all of them, and ``offsets``, where each begins and the last ends.
    """
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    flat = np.concatenate(parts) if parts else np.zeros(0)
    return {"flat": flat.astype(dtype, copy=False), "offsets": offsets}


def padded(
    flat: Shaped[np.ndarray, " all"],
    offsets: Integer[np.ndarray, " parts_and_one"],
    rows: Integer[np.ndarray, " rows"],
    size: int,
    *,
    end: int | None = None,
) -> tuple[Shaped[np.ndarray, "rows size"], Int[np.ndarray, " rows"]]:
    """Some of the sequences, cut to a size and padded on the right with zeros.

    Args:
        flat: All of them, one after the other.
        offsets: Where each begins, and the last ends.
        rows: Which of them.
        size: Steps of a row.
        end: What follows each, within the size; None for nothing.

    Returns:
        The rows, and their lengths as int32.

    Example:
        >>> rows, lengths = padded(
        ...     np.array([7, 8, 9, 5]), np.array([0, 3, 4]), np.array([1, 0]), 3, end=2
        ... )
        >>> rows.tolist(), lengths.tolist()
        ([[5, 2, 0], [7, 8, 2]], [2, 3])
    """
    most = size if end is None else size - 1
    starts, lengths = offsets[rows], np.minimum(np.diff(offsets)[rows], most)
    found = np.zeros((len(rows), size), flat.dtype)
    for row, start, length in zip(found, starts.tolist(), lengths.tolist(), strict=True):
        row[:length] = flat[start : start + length]
        if end is not None:
            row[length] = end
    return found, (lengths + (end is not None)).astype(np.int32)
