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
    module = nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))
    graph, state = nnx.split(module)
    names = jax.tree.structure(nnx.to_pure_dict(state))

    def bound(params: dict[str, Any]) -> M:
        if jax.tree.structure(params) != names:
            raise ValueError(
                f"bind: expected parameters {names}, got {jax.tree.structure(params)}."
            )
        return nnx.merge(graph, params)

    return bound
