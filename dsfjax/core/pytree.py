"""Immutable pytree dataclasses whose fields know whether they vary in time.

Every part of a `System` is a frozen dataclass registered with JAX. Three kinds of fields exist:

* arrays with a leading time axis ``T`` (the default), where ``T`` is the number of steps or 1 for
  a quantity that is constant in time;
* `constant` arrays, which have no time axis (a value map, the rates of a factored decay);
* `static` Python values, which are part of the pytree structure.

Unflattening never runs ``__init__``: JAX transformations put tracers, ``None`` and sentinels into
the leaves, and a constructor that validates shapes would reject them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

T = TypeVar("T")


def constant(**kwargs: Any) -> Any:
    """Declare an array field of a `dsfjax.pytree` class that has no time axis."""
    return dataclasses.field(metadata={"time": False}, **kwargs)


def static(**kwargs: Any) -> Any:
    """Declare a field of a `dsfjax.pytree` class that is a Python value, part of the structure."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(constant, static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and register it as a JAX pytree.

    Use it for a part of a `System` of your own: a subclass of `dsfjax.Transition`, for example.
    Annotated fields are arrays with a leading time axis, unless `constant` or `static` marks them.

    Example:
        >>> import jax, dsfjax
        >>> @dsfjax.pytree
        ... class Pair:
        ...     moving: jax.Array  # (T, 2)
        ...     fixed: jax.Array = dsfjax.constant()
        ...     name: str = dsfjax.static(default="pair")
        >>> len(jax.tree.leaves(Pair(jax.numpy.ones((3, 2)), jax.numpy.ones(2))))
        2
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static"))
    aux = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children = tuple((jax.tree_util.GetAttrKey(k), getattr(x, k)) for k in leaves)
        return children, tuple(getattr(x, k) for k in aux)

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(x, k) for k in leaves), tuple(getattr(x, k) for k in aux)

    def unflatten(aux_data: Any, children: Any) -> Any:
        x = object.__new__(cls)
        for name, value in zip(leaves + aux, tuple(children) + tuple(aux_data), strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    if "__repr__" not in cls.__dict__:
        cls.__repr__ = _repr  # type: ignore[method-assign]
    return cls


def map_time(f: Callable[[Any], Any], x: Any) -> Any:
    """Apply ``f`` to every array of ``x`` that has a time axis; keep the others.

    Args:
        f: Function of one array with leading time axis.
        x: A pytree dataclass of this package, an array with a time axis, or ``None``.

    Returns:
        The same structure, built without running constructors.
    """
    if x is None:
        return None
    if not dataclasses.is_dataclass(x):
        return f(x)
    new = object.__new__(type(x))
    for field in dataclasses.fields(x):
        value = getattr(x, field.name)
        timeless = field.metadata.get("static") or field.metadata.get("time") is False
        object.__setattr__(new, field.name, value if timeless else map_time(f, value))
    return new


def time_leaves(x: Any) -> list[Any]:
    """All arrays of ``x`` that have a time axis, in field order."""
    found: list[Any] = []

    def visit(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_time(visit, x)
    return found


class Partition(NamedTuple):
    """How a pytree is put together from its real and complex leaves and the others; hashable.

    Attributes:
        structure: Of the pytree.
        is_inexact: Per leaf, whether it is real or complex (and thus differentiable).
    """

    structure: Any
    is_inexact: tuple[bool, ...]

    @classmethod
    def of(cls, tree: Any) -> tuple[Partition, list[Any], list[Any]]:
        """The partition of a pytree, its real and complex leaves, and the others."""
        leaves, structure = jax.tree.flatten(tree)
        flags = tuple(jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves)
        inexact = [x for x, flag in zip(leaves, flags, strict=True) if flag]
        others = [x for x, flag in zip(leaves, flags, strict=True) if not flag]
        return cls(structure, flags), inexact, others

    def join(self, inexact: list[Any], others: list[Any]) -> Any:
        """The pytree with these leaves."""
        first, second = iter(inexact), iter(others)
        return self.structure.unflatten(
            [next(first if flag else second) for flag in self.is_inexact]
        )


def _repr(x: Any) -> str:
    def show(v: Any) -> str:
        return (
            f"{v.dtype}{list(v.shape)}" if hasattr(v, "dtype") and hasattr(v, "shape") else str(v)
        )

    body = ", ".join(f"{f.name}={show(getattr(x, f.name))}" for f in dataclasses.fields(x))
    return f"{type(x).__name__}({body})"
