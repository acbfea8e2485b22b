"""Float32 and bfloat16: what is summed where, and what strong decays may cost."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Diagonal, Scalar
from dsfjax.engines.chunks.decay import between
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_checks import cast, compiled_pull_back
from tests.engine_runs import inputs, methods, run_all

SINGLE = ("scalar_groups", "diagonal_per_state", "diagonal_factored", "complex_per_state", "dense")


@pytest.mark.parametrize("name", zoo.slow_unless(["low_rank"], [*SINGLE, "low_rank"]))
def test_float32(name):
    """Values to a few roundings; the state has the dtype of the system."""
    system, u, h0 = inputs(name, 65)
    low = cast((system, u, h0), jnp.float32)
    expected = reference.run(*cast(low, jnp.float64))
    for method, (y, h_last) in run_all(*low).items():
        assert y.dtype == jnp.float32
        assert h_last.dtype == low[2].dtype
        assert reference.error(y, expected.y) < 4e-6, method
        assert reference.error(h_last, expected.h_last) < 4e-6, method


def strong(shape: tuple[int, ...]) -> np.ndarray:
    """Log decays of −80 at half of the steps, mild ones at the others."""
    rng = np.random.default_rng(1)
    mild = -0.1 * rng.exponential(size=shape)
    return np.where(rng.random(shape) < 0.5, -80.0, mild).astype(np.float32)


STRONG = ("scalar_no_reset", "diagonal_per_state", "diagonal_full")


@pytest.mark.parametrize("name", zoo.slow_unless(["diagonal_per_state"], STRONG))
@pytest.mark.parametrize("length", [65, pytest.param(200, marks=pytest.mark.slow)])
def test_strong_decays_lose_no_digits(name, length):
    """The cumulative logarithm reaches thousands; neighbours differ by tenths."""
    system, u, h0 = inputs(name, length)
    system = dataclasses.replace(system, reset=None)
    assert isinstance(system.A, Scalar | Diagonal)
    A = type(system.A)(jnp.asarray(strong(system.A.log_a.shape)))
    low = cast((dataclasses.replace(system, A=A), u, h0), jnp.float32)
    expected = reference.run(*cast(low, jnp.float64))
    for method, (y, h_last) in run_all(*low).items():
        assert reference.error(y, expected.y) < 2e-6, method
        assert reference.error(h_last, expected.h_last) < 2e-6, method


def test_products_of_strong_decays():
    """Every product of a chunk has the accuracy of a float32, however large the sums are."""
    log_a = jnp.asarray(strong((64,)))
    exact = np.asarray(log_a, np.float64)
    got = np.asarray(between(log_a), np.float64)
    for t in range(64):
        for s in range(-1, t + 1):
            product = np.exp(exact[s + 1 : t + 1].sum())
            assert abs(got[t, s + 1] - product) <= 1e-5 * product + 1e-37


HALF = ("scalar", "scalar_summed", "diagonal_full", "dense", "dense_maps")


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar_summed"], HALF))
def test_bfloat16_inputs_have_float32_states(name):
    system, u, h0 = inputs(name, 65)
    system, u = cast((system, u), jnp.bfloat16)
    h0 = h0.astype(jnp.float32)
    wide = cast((system, u, h0), jnp.float64)
    expected = reference.run(*wide)
    for method, (y, h_last) in run_all(system, u, h0).items():
        assert (y.dtype, h_last.dtype) == (jnp.bfloat16, jnp.float32), method
        assert reference.error(y.astype(jnp.float64), expected.y) < 1e-2, method
        assert reference.error(h_last, expected.h_last) < 1e-2, method


def test_bfloat16_tokens_of_a_float32_system():
    """Many additions of a number that a bfloat16 sum would swallow."""
    system = zoo.system("scalar_constant", 257)
    system = dataclasses.replace(system, A=Scalar(jnp.zeros((1, 2))), reset=None, D=None)
    system, u = cast((system, jnp.ones((257, zoo.D))), jnp.float32)
    expected = reference.run(cast(system, jnp.float64), u.astype(jnp.float64))
    h0 = jnp.zeros(system.carried_shape, jnp.float32)
    for method, (y, h_last) in run_all(system, u.astype(jnp.bfloat16), h0).items():
        assert (y.dtype, h_last.dtype) == (jnp.bfloat16, jnp.float32)
        assert reference.error(h_last, expected.h_last) < 1e-5, method


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar"], ["scalar", "diagonal_full"]))
def test_a_wider_initial_state_widens_nothing(name):
    system, u, h0 = inputs(name, 5)
    system, u = cast((system, u), jnp.float32)
    for method, (y, h_last) in run_all(system, u, h0).items():
        assert (y.dtype, h_last.dtype) == (jnp.float32, jnp.float32), method


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.slow_unless(["scalar"], ["scalar", "diagonal_per_state"]))
def test_gradients_keep_their_dtype(name):
    system, u, h0 = cast(inputs(name, 65), jnp.float32)
    bar = jnp.ones((65, system.output_width), jnp.float32), jnp.ones_like(h0)
    for method in methods(system):
        gradients = compiled_pull_back(system, u, h0, bar, method=method).gradients
        assert {x.dtype for x in gradients} == {jnp.dtype(jnp.float32)}, method
