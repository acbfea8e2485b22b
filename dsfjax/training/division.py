"""A batch that is divided over devices, each of which computes its part of the examples.

Inside ``jax.shard_map`` the devices of a member are an axis of the mesh; ``axis_name`` is None
where a member has one device, and nothing here does anything then.
"""

from typing import TypeVar

import jax
from jaxtyping import Array, PyTree

T = TypeVar("T", bound=PyTree)


def own(examples: Array, axis_name: str | None) -> Array:
    """This device's part of what has an entry per example.

    Args:
        examples: Entries along the first axis, as many as the devices divide.
        axis_name: The axis of the devices, or None.

    Returns:
        The part.

    Examples:
        >>> own(jax.numpy.arange(4), None).tolist()
        [0, 1, 2, 3]
    """
    if axis_name is None:
        return examples
    size = len(examples) // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(examples, jax.lax.axis_index(axis_name) * size, size)


def total(parts: T, axis_name: str | None) -> T:
    """The sum of the parts of all devices, on each of them.

    Args:
        parts: Arrays.
        axis_name: The axis of the devices, or None.

    Returns:
        The sums.
    """
    return parts if axis_name is None else jax.lax.psum(parts, axis_name)
