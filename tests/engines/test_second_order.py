"""Gradients of gradients, and forward mode: right, or refused with the way to get it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from dsfjax import System, scan
from tests import reference_loop as reference
from tests.engine_checks import cut_length, report
from tests.engine_runs import COMPILE_FAST, differentiable, inputs, methods, names_of_leaves

FAST = ("scalar",)
SLOW = (
    "low_rank",
    "diagonal_per_state",
    "diagonal_factored",
    "scalar_summed",
    "diagonal_full",
    "diagonal_gated",
    "complex_per_state",
    "complex_lti",
    "dense_maps",
    "dense",
)
Example = tuple[System, Array, Array]
MARKED = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def loss(example: Example, method: str) -> Array:
    """A real number that is not linear in y and h_last."""
    y, h = scan(*example, method=method)
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(h).real)


def directions(arrays: list[Array]) -> list[Array]:
    return [jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype) for x in arrays]


@partial(jax.jit, static_argnames="method", compiler_options=COMPILE_FAST)
def grad_of_grad(example: Example, *, method: str) -> list[Array]:
    """The gradient of the derivative along one direction, reverse over reverse."""
    arrays, rebuild = differentiable(example)

    def along(x: list[Array]) -> Array:
        gradient = jax.grad(lambda x: loss(rebuild(x), method))(x)
        pairs = zip(gradient, directions(arrays), strict=True)
        return jnp.sum(jnp.stack([jnp.sum(g * v).real for g, v in pairs]))

    return jax.grad(along)(arrays)


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_grad_of_grad(name, long):
    """Within a chunk, and over several."""
    example = inputs(name, cut_length(name) if long else 9)
    expected = grad_of_grad(example, method="sequential")
    paths, found = names_of_leaves(example), []
    for method in methods(example[0]):
        got = grad_of_grad(example, method=method)
        for path, x, y in zip(paths, got, expected, strict=True):
            if not (error := reference.error(x, y)) < 1e-9:
                found.append(f"{method}, {path}: {error:.1e}")
    report(found)


def refused_or_equal(f: Any, expected: list[Array], name: str) -> list[str]:
    """Whether f raises an error that names "sequential", or gives what is expected."""
    try:
        got = jax.tree.leaves(f())
    except (TypeError, ValueError) as error:
        return [] if "sequential" in str(error) else [f"{name}: {str(error)[:120]}"]
    errors = [reference.error(x, y) for x, y in zip(got, expected, strict=True)]
    return [] if max(errors) < 1e-9 else [f"{name}: {max(errors):.1e}"]


def jvp(example: Example, *, method: str) -> Any:
    arrays, rebuild = differentiable(example)
    run = partial(scan, method=method)
    return jax.jvp(lambda x: run(*rebuild(x)), (arrays,), (directions(arrays),))[1]


def linearize(example: Example, *, method: str) -> Any:
    arrays, rebuild = differentiable(example)
    run = partial(scan, method=method)
    return jax.linearize(lambda x: run(*rebuild(x)), arrays)[1](directions(arrays))


def hessian_vector(example: Example, *, method: str) -> Any:
    arrays, rebuild = differentiable(example)
    gradient = jax.grad(lambda x: loss(rebuild(x), method))
    return jax.jvp(gradient, (arrays,), (directions(arrays),))[1]


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize(
    "derivative",
    [jvp, *(pytest.param(f, marks=pytest.mark.slow) for f in (linearize, hessian_vector))],
)
def test_forward_mode_is_right_or_names_sequential(name, derivative):
    """Derivatives of the outputs, and of the gradient (a Hessian times a vector)."""
    example, found = inputs(name, cut_length(name)), []
    compiled = jax.jit(derivative, static_argnames="method", compiler_options=COMPILE_FAST)
    expected = jax.tree.leaves(compiled(example, method="sequential"))
    assert all(np.all(np.isfinite(x)) for x in expected) and np.any(expected[0] != 0)
    for method in methods(example[0]):
        if method != "sequential":
            found += refused_or_equal(partial(compiled, example, method=method), expected, method)
    report(found)
