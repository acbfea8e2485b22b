"""Several processes that run one program: one of them, the *primary*, has the files.

Every process calls the same functions in the same order. What only the primary can know, as what
a folder holds, it tells the others.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def is_primary() -> bool:
    """Whether this process has the files; true where there is no other."""
    return jax.process_index() == 0


def agree(find: Callable[[], Any]) -> Any:
    """What the primary finds, in every process.

    Args:
        find: Called in the primary only; gives JSON data.

    Returns:
        What it gave.

    Raises:
        Exception: In the primary what ``find`` raised; a ``ValueError`` with its message in the
            others, which would else wait for it forever.

    Examples:
        >>> agree(lambda: {"step": 3})
        {'step': 3}
    """
    if jax.process_count() == 1:
        return find()
    found, error = {}, None
    if is_primary():
        try:
            found = {"value": find()}
        except Exception as caught:
            found, error = {"error": str(caught)}, caught
    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # The others send nothing, in as many bytes.
    text = text if is_primary() else np.zeros(size, np.uint8)
    found = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
    if error is not None:
        raise error
    if "error" in found:
        raise ValueError(found["error"])
    return found["value"]


def share(tree: PyTree | None, template: PyTree) -> PyTree:
    """The primary's arrays, in every process.

    Args:
        tree: NumPy arrays in the primary, anything elsewhere.
        template: Their shapes and dtypes.

    Returns:
        The arrays.
    """
    if jax.process_count() == 1:
        return tree
    if not is_primary():
        tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))
