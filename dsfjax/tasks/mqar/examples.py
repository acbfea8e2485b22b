"""What both generators make: sequences, and where which value is asked for."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from dsfjax.tasks.protocol import Example

IGNORED = -100
"""Dense label of a position that is not a query."""


def labels(batch: Example) -> Int32[Array, "*batch l"]:
    """Dense labels: the target at each query position, :data:`IGNORED` elsewhere.

    Args:
        batch: One sequence or a batch of them.

    Returns:
        Shape of ``batch.inputs``, int32.

    Examples:
        >>> import jax.numpy as jnp
        >>> one = Example(jnp.array([1, 7, 0, 1]), jnp.array([3]), jnp.array([7]))
        >>> labels(one).tolist()
        [-100, -100, -100, 7]
    """
    empty = jnp.full(batch.inputs.shape, IGNORED, jnp.int32)
    return jnp.put_along_axis(empty, batch.query_positions, batch.targets, axis=-1, inplace=False)


def from_labels(
    inputs: Int[np.ndarray | Array, "*batch l"], labels: Int[np.ndarray | Array, "*batch l"]
) -> Example:
    """Turn sequences with dense labels, such as the reference examples, into a :class:`Example`.

    Runs on the host: the number of queries is read from the labels.

    Args:
        inputs: Tokens, pairs first, ``(..., L)``.
        labels: Target at each query position and :data:`IGNORED` elsewhere, ``(..., L)``.

    Returns:
        The same sequences, int32, with query ``j`` that of pair ``j``.

    Raises:
        ValueError: If the shapes differ, the sequences have no or unequal numbers of queries, or
            queries and targets are not those of the pairs.

    Examples:
        >>> inputs, labels = np.array([[1, 7, 2, 9, 2, 0, 1, 0]]), np.full((1, 8), -100)
        >>> labels[0, [4, 6]] = 9, 7
        >>> from_labels(inputs, labels).query_positions.tolist()
        [[6, 4]]
    """
    tokens, dense = np.asarray(inputs), np.asarray(labels)
    if tokens.shape != dense.shape or tokens.ndim == 0:
        raise ValueError(
            f"from_labels: expected inputs and labels of one shape (..., L), got {tokens.shape} "
            f"and {dense.shape}."
        )
    asked = dense != IGNORED
    counts = np.unique(asked.sum(axis=-1))
    if counts.size != 1 or counts[0] == 0:
        raise ValueError(
            "from_labels: expected the same number of queries, at least one, in every sequence, "
            f"got {counts.tolist()}. Split the sequences by their number of queries first."
        )
    n = int(counts[0])
    in_time = np.nonzero(asked)[-1].reshape(*dense.shape[:-1], n)
    keys, values = tokens[..., : 2 * n : 2], tokens[..., 1 : 2 * n : 2]
    queries = np.take_along_axis(tokens, in_time, axis=-1)
    # Both are the same distinct tokens, so sorting matches each key with its query.
    by_key, by_query = np.argsort(keys, axis=-1), np.argsort(queries, axis=-1)
    positions = np.empty(in_time.shape, np.int32)
    np.put_along_axis(positions, by_key, np.take_along_axis(in_time, by_query, -1), axis=-1)
    asked_keys, targets = (np.take_along_axis(x, positions, axis=-1) for x in (tokens, dense))
    if not (np.array_equal(asked_keys, keys) and np.array_equal(targets, values)):
        raise ValueError(
            f"from_labels: expected {n} pairs first, then each key once with the label of its "
            "value, got other tokens or labels. Check that inputs and labels belong together."
        )
    return Example(*(jnp.asarray(x, jnp.int32) for x in (tokens, positions, targets)))
