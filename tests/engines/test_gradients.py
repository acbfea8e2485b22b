"""Gradients: all methods against the sequential engine, and against differences."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_jvp, check_vjp

from dsfjax import InnerOutput, OuterInput, Scalar, System, scan, select
from dsfjax.core.composition import flip_time
from dsfjax.engines.chunked import Chunked
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_checks import compiled_pull_back, cotangents
from tests.engine_runs import (
    COMPILE_FAST,
    differentiable,
    inputs,
    methods,
    names_of_leaves,
    run_all,
)

LENGTHS = (1, 2, 3, 7, 8, 63, 64, 65, 257)
# The quick tests take one structure per chunk algorithm, over a chunk's end: the length, and so the
# program, is that of the other files of gradients. JAX differentiates a normaliser and a gate: one
# structure each, within a chunk; so has a transition that heads share.
OVER = ("scalar", "diagonal_per_state", "diagonal_factored", "complex_per_state", "low_rank")
QUICK = dict.fromkeys(OVER, 65) | dict.fromkeys(("scalar_summed", "diagonal_full", "dense"), 7)
QUICK = QUICK | {"dense_shared": 3}
SLOW = pytest.mark.slow
CASES = [
    pytest.param(name, length, marks=() if QUICK.get(name) == length else SLOW)  # pyright: ignore[reportArgumentType]
    for name in zoo.NAMES
    for length in LENGTHS
]


def assert_gradients_of_sequential(name: str, length: int, *, reverse: bool = False) -> None:
    """And the values of the loop, which come with them."""
    example = inputs(name, length)
    run = partial(compiled_pull_back, reverse=True) if reverse else compiled_pull_back
    bar, paths = cotangents(*example), names_of_leaves(example)
    expected = reference.run(*example, reverse=reverse)
    exact = run(*example, bar, method="sequential").gradients
    # A gradient may be 0 but for rounding, as that of c where only one token is weighed; such a one
    # is small on the scale of the others.
    rounding = 1e-14 * max(np.abs(y).max(initial=0) for y in exact)
    for method in methods(example[0]):
        got = run(*example, bar, method=method)
        assert reference.error(got.y, expected.y) < 1e-12, method
        assert reference.error(got.h_last, expected.h_last) < 1e-12, method
        for path, x, y in zip(paths, got.gradients, exact, strict=True):
            assert np.all(np.isfinite(x)), (method, path)
            is_zero = np.abs(y).max(initial=0) < rounding and np.abs(x).max(initial=0) < rounding
            assert is_zero or reference.error(x, y) < 1e-9, (method, path)


@pytest.mark.parametrize(("name", "length"), CASES)
def test_every_method_has_the_gradients_of_sequential(name, length):
    assert_gradients_of_sequential(name, length)


@pytest.mark.parametrize(
    "name",
    [
        *("scalar", "diagonal_per_state", "diagonal_full", "low_rank"),
        pytest.param("diagonal_ranked", marks=pytest.mark.slow),
    ],
)
def test_states_and_cotangents_cross_chunks_and_segments(name):
    """Without the resets, after which nothing is left to cross: four chunks in two segments."""
    system, u, h0 = inputs(name, 13)
    system = dataclasses.replace(system, reset=None)
    bar, paths = cotangents(system, u, h0), names_of_leaves((system, u, h0))
    chosen, _ = select(system, 13)
    assert isinstance(chosen, Chunked)
    engine = dataclasses.replace(chosen, chunk=4, segment=8)
    expected = reference.run(system, u, h0)
    exact = compiled_pull_back(system, u, h0, bar, method="sequential").gradients
    got = compiled_pull_back(system, u, h0, bar, method=engine)
    assert reference.error(got.y, expected.y) < 1e-12
    assert reference.error(got.h_last, expected.h_last) < 1e-12
    for path, x, y in zip(paths, got.gradients, exact, strict=True):
        assert reference.error(x, y) < 1e-9, path


@pytest.mark.parametrize(
    "name", zoo.slow_unless([], ["scalar", "diagonal_full", "dense", "low_rank"])
)
def test_in_reverse(name):
    assert_gradients_of_sequential(name, 20, reverse=True)


def test_in_reverse_is_flipped_in_time():
    """Gradients to tokens and initial state, of the method that has a backward pass of its own."""
    system, u, h0 = inputs("scalar", 7)
    y_bar, h_bar = cotangents(system, u, h0)
    *_, (*_, d_u, d_h0) = compiled_pull_back(
        system, u, h0, (y_bar, h_bar), method="chunked", reverse=True
    )
    flipped = flip_time(system)
    *_, (*_, e_u, e_h0) = compiled_pull_back(
        flipped, u[::-1], h0, (y_bar[::-1], h_bar), method="sequential"
    )
    assert reference.error(d_u, e_u[::-1]) < 1e-12 and reference.error(d_h0, e_h0) < 1e-12


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar"]))
def test_differences(name):
    """Reverse mode through every method, forward mode through sequential."""
    arrays, rebuild = differentiable(inputs(name, 7))
    for method in methods(rebuild(arrays)[0]):

        def run(x, method=method):
            return run_all(*rebuild(x))[method]

        def with_pullback(x, method=method, run=run):
            pull = partial(compiled_pull_back, *rebuild(x), method=method)
            return run(x), lambda bar: (pull(bar).gradients,)

        check_vjp(run, with_pullback, (arrays,))

    def run_sequential(x):
        return scan(*rebuild(x), method="sequential")

    @partial(jax.jit, compiler_options=COMPILE_FAST)
    def with_tangent(x, tangent):
        return jax.jvp(run_sequential, x, tangent)

    check_jvp(lambda x: run_all(*rebuild(x))["sequential"], with_tangent, (arrays,))


EXTREMES = ("scalar_extremes", "diagonal_extremes", "diagonal_extremes_full")


@pytest.mark.parametrize("name", zoo.slow_unless(EXTREMES[:1], EXTREMES))
def test_the_gradient_to_a_zero_decay_is_zero(name):
    """d exp(log a) / d log a = a, and the state that it multiplies is finite."""
    example = inputs(name, 65)
    zero = np.isneginf(differentiable(example)[0][0])
    assert zero.any()
    for method in methods(example[0]):
        got = compiled_pull_back(*example, cotangents(*example), method=method)
        gradient = np.asarray(got.gradients[0])
        assert np.all(gradient[zero] == 0), method
        assert np.any(gradient[~zero] != 0), method


@pytest.mark.slow
def test_a_batch_of_outputs_of_higher_rank_in_float32() -> None:
    """Written as a sum, its gradient to the decays ends the process on a CPU with jax 0.10."""
    rng = np.random.default_rng(0)
    k = jnp.asarray(rng.standard_normal((2, 20, 2, 4)), jnp.float32)

    def run(k: Any, method: str) -> Any:
        C = InnerOutput(jnp.stack([k, 2 * k], axis=1), rank=2)
        A, shape = Scalar(-jnp.abs(k[..., 0])), (2, 4, 4)
        system = System(A, OuterInput(k), C, state_shape=shape, length=20)
        return scan(system, k.reshape(20, -1), method=method)[0]

    @jax.jit
    def slopes(k: Any) -> Any:
        return [
            jax.grad(lambda k, m=m: jnp.sin(jax.vmap(partial(run, method=m))(k)).sum())(k)
            for m in ("chunked", "sequential")
        ]

    found, expected = slopes(k)
    assert found.dtype == jnp.float32
    assert reference.error(found, expected) < 1e-5
