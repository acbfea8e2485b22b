"""Programs of the self check: lowered here, compiled elsewhere, run here, in any precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.errors import host
from dsfjax.core import Precision
from dsfjax.core.policy import DEFAULT


class Program:
    """A program; what goes wrong on its way is raised when it is called."""

    def __init__(self, lower: Callable[[], Any]) -> None:
        self._stage, self._error = None, None
        self._reach(lower)

    def _reach(self, stage: Callable[[], Any]) -> None:
        try:
            self._stage = stage()
        except Exception as error:
            self._error = error

    def compile(self, **options: Any) -> None:
        """Compile it, with options of the compiler."""
        if self._error is None:
            self._reach(lambda: self._stage.compile(options or None))  # type: ignore[union-attr]

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        if self._error is not None:
            raise self._error
        return self._stage(*arguments)  # type: ignore[misc]


def lowered(function: Any, *arguments: Any) -> Program:
    """A jitted function lowered for arguments, or what went wrong."""
    return Program(lambda: function.lower(*arguments))


@contextlib.contextmanager
def float64_on_host() -> Iterator[None]:
    """Float64 on the host."""
    with jax.enable_x64(True), jax.default_device(host()):
        yield


def input_dtype(precision: str) -> str:
    """Dtype to which the inputs are rounded."""
    return precision if precision == "float64" else policy_of(precision).compute or "float32"


def policy_of(precision: str) -> Precision:
    """The policy of a precision."""
    return DEFAULT if precision == "float64" else Precision.named(precision)


def parted(tree: Any) -> tuple[dict[int, Array], dict[int, Array]]:
    """The real and complex leaves, and the others, by number."""
    leaves = dict(enumerate(jax.tree.leaves(tree)))
    arrays = {i: x for i, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    return arrays, {i: x for i, x in leaves.items() if i not in arrays}


def as_arrays(tree: Any) -> Any:
    """The leaves as arrays of JAX."""
    return jax.tree.map(jnp.asarray, tree)


def widened(tree: Any) -> Any:
    """The leaves in float64 or complex128, those of other kinds as they are."""

    def cast(x: Any) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.asarray(x)
        return jnp.asarray(x, jnp.complex128 if np.iscomplexobj(x) else jnp.float64)

    return jax.tree.map(cast, tree)
