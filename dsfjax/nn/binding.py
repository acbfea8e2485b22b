"""A module as a function of its parameters, for code that composes modules without Flax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def bind(make: Callable[[nnx.Rngs], M]) -> Callable[[dict[str, Any]], M]:
    """The module that ``make`` constructs, as a function of its parameters.

    Nothing is initialised: ``make`` is only traced.

    Args:
        make: ``make(rngs) -> module``.

    Returns:
        ``bound(params) -> module``, with ``params`` a nested dict of arrays by attribute name, as
        the parameters of a `Model` are. Differentiable.

    Raises:
        ValueError: If ``params`` lacks a parameter of the module or has another.

    Example:
        >>> import jax.numpy as jnp
        >>> from dsfjax.nn import GLU
        >>> glu = bind(lambda rngs: GLU(2, 1, rngs=rngs))
        >>> params = {"linear": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
        >>> glu(params)(jnp.array([[3.0, 0.0]])).tolist()
        [[1.5]]
    """
    graph, state = _abstract(make)
    names = jax.tree.structure(nnx.to_pure_dict(state))

    def bound(params: dict[str, Any]) -> M:
        if jax.tree.structure(params) != names:
            raise ValueError(
                f"bind: expected parameters {names}, got {jax.tree.structure(params)}."
            )
        return nnx.merge(graph, params)

    return bound


def shapes_of(make: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, Any]:
    """The parameters that `bind` expects, as `jax.ShapeDtypeStruct`.

    Args:
        make: As of `bind`.

    Returns:
        A nested dict by attribute name.

    Example:
        >>> from dsfjax.nn import GLU
        >>> shapes_of(lambda rngs: GLU(2, 1, rngs=rngs))["linear"]["kernel"].shape
        (2, 2)
    """
    return nnx.to_pure_dict(_abstract(make)[1])


def _abstract(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0)))))
