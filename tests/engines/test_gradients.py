"""Gradients: all methods against the sequential engine, and against differences."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax import Array
from jax.test_util import check_jvp, check_vjp

from dsfjax import System, scan
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import (
    COMPILE_FAST,
    differentiable,
    inputs,
    methods,
    names_of_leaves,
    pull_back_all,
    run_all,
)

LENGTHS = (1, 2, 3, 7, 8, 63, 64, 65, 257)


SLOW = pytest.mark.slow


def quick(name: str) -> int:
    """The length that the quick tests take: over a chunk's end for one case of every engine."""
    over = ("scalar", "scalar_summed", "diagonal_per_state", "complex_per_state", "low_rank")
    return 65 if name in over else 7


CASES = [
    *(pytest.param(x, n, marks=() if n == quick(x) else SLOW) for x in zoo.MAIN for n in LENGTHS),
    *(pytest.param(x, n, marks=SLOW) for x in zoo.NAMES if x not in zoo.MAIN for n in LENGTHS),
]


def cotangents(system: System, length: int, h0: Array) -> dict[str, Any]:
    y_bar = np.cos(np.arange(length * system.output_width)).reshape(length, -1)
    h_bar = np.sin(1 + np.arange(h0.size)).reshape(h0.shape).astype(h0.dtype)
    return {method: (y_bar, h_bar) for method in methods(system)}


def assert_equal_gradients(gradients: dict, paths: list[str]) -> None:
    for method, gradient in gradients.items():
        for path, x, y in zip(paths, gradient, gradients["sequential"], strict=True):
            assert np.all(np.isfinite(x)), (method, path)
            assert reference.error(x, y) < 1e-9, (method, path)


@pytest.mark.parametrize(("name", "length"), CASES)
def test_every_method_has_the_gradients_of_sequential(name, length):
    system, u, h0 = inputs(name, length)
    gradients = pull_back_all(system, u, h0, cotangents(system, length, h0))
    assert_equal_gradients(gradients, names_of_leaves((system, u, h0)))


@pytest.mark.parametrize("name", ["scalar", "diagonal_full", "dense", "low_rank"])
def test_in_reverse(name):
    system, u, h0 = inputs(name, 20)
    gradients = pull_back_all(system, u, h0, cotangents(system, 20, h0), reverse=True)
    assert_equal_gradients(gradients, names_of_leaves((system, u, h0)))


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in ("scalar", "low_rank") else SLOW) for x in zoo.NAMES]
)
def test_differences(name):
    """Reverse mode through every method, forward mode through sequential."""
    arrays, rebuild = differentiable(inputs(name, 7))
    for method in methods(rebuild(arrays)[0]):

        def run(x, method=method):
            return run_all(*rebuild(x))[method]

        def with_pullback(x, method=method, run=run):
            zero = jax.tree.map(np.zeros_like, run_all(*rebuild(x)))
            return run(x), lambda bar: (pull_back_all(*rebuild(x), zero | {method: bar})[method],)

        check_vjp(run, with_pullback, (arrays,))

    def run_sequential(x):
        return scan(*rebuild(x), method="sequential")

    @partial(jax.jit, compiler_options=COMPILE_FAST)
    def with_tangent(x, tangent):
        return jax.jvp(run_sequential, x, tangent)

    check_jvp(lambda x: run_all(*rebuild(x))["sequential"], with_tangent, (arrays,))


@pytest.mark.parametrize("name", ["scalar_extremes", "diagonal_extremes", "diagonal_extremes_full"])
def test_the_gradient_to_a_zero_decay_is_zero(name):
    """d exp(log a) / d log a = a, and the state that it multiplies is finite."""
    system, u, h0 = inputs(name, 8)
    zero = np.isneginf(differentiable(system)[0][0])
    assert zero.any()
    for method, gradient in pull_back_all(system, u, h0, cotangents(system, 8, h0)).items():
        assert np.all(gradient[0][zero] == 0), method
        assert np.any(gradient[0][~zero] != 0), method
