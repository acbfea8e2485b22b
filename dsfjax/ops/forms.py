"""Shapes of arguments as their annotations name them, and what is said of one that does not fit."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GROUPED = {"HV": "H", "HQ": "H", "H": "G"}
"""Axes of heads of which several share one of another axis: multiples of it."""


class Form(NamedTuple):
    """What an argument may be.

    Attributes:
        shapes: Names of the axes of an array, a tuple for each shape that it may have; "_" is of
            any size, a number is that size.
        parts: Forms of the arrays where it may be a tuple of several.
        known: Whether its numbers may be known while tracing: then NumPy's arrays stay what they
            are, since JAX's are traced.
    """

    shapes: tuple[tuple[str, ...], ...] = ()
    parts: tuple[Form, ...] = ()
    known: bool = False

    @classmethod
    def of(cls, hint: Any) -> Form:
        """The form that an annotation tells."""
        unions = types.UnionType, typing.Union
        options = typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,)
        if any(typing.get_origin(x) is Sequence for x in options):
            return cls(known=True)  # numbers of which the shape is not all that matters
        arrays = [x for x in options if isinstance(getattr(x, "dim_str", None), str)]
        shapes = dict.fromkeys(tuple(x.dim_str.split()) for x in arrays)
        tuples = [typing.get_args(x) for x in options if typing.get_origin(x) is tuple]
        parts = tuple(map(cls.of, tuples[0])) if tuples else ()
        parts = parts if any(part.shapes for part in parts) else ()
        return cls(tuple(shapes), parts, any(x.array_type is np.ndarray for x in arrays))

    def __str__(self) -> str:
        shapes = [f"[{', '.join(dims)}]" for dims in self.shapes]
        if self.parts:
            shapes.append(f"({', '.join(map(str, self.parts))})")
        return " or ".join(shapes)

    def taken(self, x: Any) -> Any:
        """An argument as ops take it: JAX's arrays for NumPy's, a tuple for a list of arrays."""
        x = tuple(x) if self.parts and isinstance(x, list) else x
        if self.known:
            return x
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, x)


def check(owner: str, forms: Mapping[str, Form], arguments: Mapping[str, Any]) -> None:
    """Check that arguments have their forms, where axes of the same name have the same size.

    Raises:
        ValueError: If one has not, if heads cannot be shared evenly, or if there is no step.
    """
    sizes: dict[str, int] = {}
    for name, form in forms.items():
        _fit(owner, name, form, arguments.get(name), sizes)
    for many, few in GROUPED.items():
        if many in sizes and few in sizes and (not sizes[few] or sizes[many] % sizes[few]):
            raise ValueError(
                f"{owner}: expected {many} to be a multiple of {few}, whose heads are shared "
                f"evenly, got {many} = {sizes[many]} and {few} = {sizes[few]}."
            )
    if sizes.get("T") == 0:
        raise ValueError(
            f"{owner}: expected T >= 1 steps, got T = 0; leave the call out: there are no outputs, "
            "and states stay what they are."
        )


def _fit(owner: str, name: str, form: Form, x: Any, sizes: dict[str, int]) -> None:
    """Check one argument next to the sizes that are known, and add its own."""
    if x is None or not (form.shapes or form.parts):
        return
    if isinstance(x, tuple | list):
        if len(x) == len(form.parts):
            for i, (part, y) in enumerate(zip(form.parts, x, strict=True)):
                _fit(owner, f"{name}[{i}]", part, y, sizes)
            return
        got = f"a sequence of {len(x)}"
    else:
        shape = jnp.shape(x)
        for dims in form.shapes:
            found = _sized(dims, shape, sizes)
            if found is not None:
                sizes.update(found)
                return
        got = str(list(shape))
    used = [dim for dims in form.shapes for dim in dims if dim in sizes]
    given = ", ".join(f"{dim} = {sizes[dim]}" for dim in dict.fromkeys(used))
    in_time = any(dims[:2] == ("B", "T") for dims in form.shapes)
    raise ValueError(
        f"{owner}: expected {name} of shape {form}{f' with {given}' if given else ''}, got {got}."
        f"{' Axes are batch, time, heads, channels.' if in_time else ''}"
    )


def _sized(
    dims: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> dict[str, int] | None:
    """The sizes that a shape gives to axes, or None if it does not fit."""
    if len(shape) != len(dims):
        return None
    found: dict[str, int] = {}
    for dim, n in zip(dims, shape, strict=True):
        known = int(dim) if dim.isdigit() else sizes.get(dim, found.get(dim, n))
        if dim != "_" and n != known:
            return None
        if dim != "_" and not dim.isdigit():
            found[dim] = n
    return found
