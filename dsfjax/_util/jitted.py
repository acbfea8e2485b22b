"""Compile a public function as a whole, without changing how it is called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.tree_util import Partial

F = TypeVar("F", bound=Callable[..., Any])


def jitted(*static: str, functions: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Compile a function once for every shape and every value of its static arguments.

    A function of an analysis is dozens of small operations. Called eagerly, each of them would be
    compiled for itself; traced into a larger program, all of them would be traced again at every
    call. The signature, the docstring and the error messages are unchanged.

    Args:
        *static: Names of arguments that are values of Python. A list or an array in the place of a
            tuple becomes one.
        functions: Names of arguments that are functions, or None. Each function is a program of its
            own; a `jax.tree_util.Partial` of a function and arrays is one for all their values.

    Returns:
        A decorator.

    Example:
        >>> import jax.numpy as jnp
        >>> @jitted("power")
        ... def raised(x, power=2):
        ...     return x**power
        >>> raised(jnp.arange(3.0), power=3).tolist()
        [0.0, 1.0, 8.0]
    """

    def decorate(f: F) -> F:
        signature = inspect.signature(f)
        run = jax.jit(f, static_argnames=static)

        @functools.wraps(f)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments
            for name in static:
                if name in given:
                    given[name] = _hashable(given[name])
            for name in functions:
                if callable(given.get(name)) and not isinstance(given[name], Partial):
                    given[name] = Partial(given[name])
            return run(*bound.args, **bound.kwargs)

        return cast(F, call)

    return decorate


def _hashable(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        return tuple(value)
    except TypeError:
        return value
