"""Which devices an array varies over, inside `jax.shard_map`.

There the type of an array says over which axes of the mesh its values differ, and a loop must carry
arrays of one type. Outside of `jax.shard_map` nothing here does anything.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

T = TypeVar("T")


def vary_alike(tree: T) -> T:
    """Let all arrays vary over the devices that any of them varies over."""
    axes: set[str] = set().union(*(_axes(x) for x in jax.tree.leaves(tree)))
    return jax.tree.map(lambda x: _vary(x, axes), tree)


def zeros_as(like: Array, shape: tuple[int, ...], dtype: Any = None, fill: float = 0) -> Array:
    """Zeros, or another constant, that vary over the same devices as ``like``."""
    return _vary(jnp.full(shape, fill, like.dtype if dtype is None else dtype), _axes(like))


def _axes(x: Array) -> set[str]:
    return set(jax.typeof(x).manual_axis_type.varying)


def _vary(x: Array, axes: set[str]) -> Array:
    missing = tuple(sorted(axes - _axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
