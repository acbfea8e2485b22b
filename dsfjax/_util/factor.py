"""Matrix factorisations that cannot wait for each other."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array


def one_by_one(factor: Callable[[Array], Any], x: Array) -> Any:
    """A factorisation of each of many matrices.

    XLA's CPU client hands the matrices of one batch to its threads, and a thread that has begun a
    batch waits for the others. Two batches that do not depend on each other can so take both
    threads of a machine with two cores, and wait for ever for one that is free. A factorisation of
    one matrix needs no other thread; so on a CPU they come one after the other.

    Args:
        factor: Such as ``jnp.linalg.eigh``, of one matrix or many.
        x: Matrices (..., n, m).

    Returns:
        What ``factor(x)`` gives.

    Example:
        >>> import jax.numpy as jnp
        >>> one_by_one(jnp.linalg.eigvalsh, jnp.stack([jnp.eye(2), 3 * jnp.eye(2)])).tolist()
        [[1.0, 1.0], [3.0, 3.0]]
    """
    if jax.default_backend() != "cpu" or x.ndim == 2:
        return factor(x)
    found = jax.lax.map(factor, x.reshape(-1, *x.shape[-2:]))
    return jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:-2], *leaf.shape[1:]), found)
