"""Where gradients come from and where they are collected."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from dsfjax import System, scan
from dsfjax.core.pytree import map_time
from tests import reference_loop as reference
from tests.engine_checks import compiled_pull_back, cotangents, cut_length, report, wrong
from tests.engine_runs import COMPILE_FAST, differentiable, inputs, methods, names_of_leaves

FAST = ("scalar", "diagonal_per_state", "diagonal_factored", "low_rank")
SLOW = (
    "scalar_summed_decay",
    "diagonal_full",
    "diagonal_gated",
    "complex_per_state",
    "complex_lti",
    "dense_maps",
    "dense",
)
MARKED = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", MARKED)
def test_of_outputs_alone_and_of_the_last_state_alone(name):
    """With zeros for the other."""
    system, u, h0 = inputs(name, cut_length(name))
    y_bar, h_bar = cotangents(system, u, h0)
    zero_y, zero_h = jnp.zeros_like(y_bar), jnp.zeros_like(h_bar)
    found = wrong("y alone", system, u, h0, (y_bar, zero_h))
    found += wrong("h_last alone", system, u, h0, (zero_y, h_bar))
    found += wrong("one output alone", system, u, h0, (zero_y.at[len(u) // 2, 0].set(1), zero_h))
    found += wrong("neither", system, u, h0, (zero_y, zero_h))
    report(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x == "scalar" else pytest.mark.slow) for x in FAST + SLOW],
)
@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_of_a_function_that_drops_the_other(name, part):
    """The engine is told nothing of the other result."""
    system, u, h0 = inputs(name, cut_length(name))
    bars = cotangents(system, u, h0)
    both = tuple(x if i == part else jnp.zeros_like(x) for i, x in enumerate(bars))
    exact = compiled_pull_back(system, u, h0, both, method="sequential").gradients
    arrays, rebuild = differentiable((system, u, h0))

    @partial(jax.jit, static_argnames="method", compiler_options=COMPILE_FAST)
    def gradients(x: list[Array], *, method: str) -> list[Array]:
        return jax.vjp(lambda x: scan(*rebuild(x), method=method)[part], x)[1](bars[part])[0]

    for method in methods(system):
        for x, y in zip(gradients(arrays, method=method), exact, strict=True):
            assert reference.error(x, y) < 1e-9, method


CONSTANT = (
    "scalar_constant",
    "diagonal_per_state_constant",
    "low_rank_constant",
    "scalar_lti",
    "complex_pairs",
    "complex_lti",
    "dense_shared",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x == "scalar_constant" else pytest.mark.slow) for x in CONSTANT],
)
def test_what_is_constant_in_time_collects_the_sum(name):
    """Gradients of shape (1, …) are those of the repeated array, summed over the steps."""
    length = cut_length(name)
    system, u, h0 = inputs(name, length)

    def repeat(x: Array) -> Array:
        return jnp.repeat(x, length, axis=0) if x.shape[0] == 1 else x

    repeated: System = map_time(repeat, system)
    bar, found = cotangents(system, u, h0), []
    spread = compiled_pull_back(repeated, u, h0, bar, method="sequential").gradients
    arrays, _ = differentiable((system, u, h0))
    expected: list[Any] = [
        x.sum(axis=0, keepdims=True) if like.shape[0] == 1 and x.shape[0] == length else x
        for x, like in zip(spread, arrays, strict=True)
    ]
    assert any(x.shape != y.shape for x, y in zip(spread, expected, strict=True))
    for method in methods(system):
        got = compiled_pull_back(system, u, h0, bar, method=method).gradients
        paths = names_of_leaves((system, u, h0))
        for path, x, y in zip(paths, got, expected, strict=True):
            if not (error := reference.error(x, y)) < 1e-9:
                found.append(f"{method}, {path}: {error:.1e}")
    report(found)
