"""Horizons by multiplying moduli in a loop, and survival curves by hand."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import (
    count_horizons,
    eigenvalues,
    half_life,
    horizons,
    lyapunov_exponents,
    survival,
)
from dsfjax.analysis.horizon import HorizonCounts
from dsfjax.core import InnerOutput, KernelSystem, OuterInput, Scalar, System
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L, EPSILON = 23, 0.1
find = compiled(partial(horizons, epsilon=EPSILON), length=L)
values_of = compiled(eigenvalues, length=L)
NAMES = (
    "scalar_lti",
    "scalar_extremes",
    "scalar_given",
    "diagonal_factored",
    "complex_per_state",
    "low_rank",
    "kernel",
)


def build(name: str) -> System | KernelSystem:
    return zoo.kernel_system(L) if name == "kernel" else zoo.system(name, L)


def moduli(system: System | KernelSystem) -> np.ndarray:
    """|λ| of what is carried into every step, (L, H, k), sorted where the states mix."""
    values = np.abs(np.asarray(values_of(system)))
    values[np.isnan(values)] = 0
    if isinstance(system, System) and not hasattr(system.A, "log_decay"):
        values = np.sort(values, axis=-1)
    return values


def in_a_loop(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps, censored = np.zeros(values.shape, int), np.ones(values.shape, bool)
    for s, h, k in np.ndindex(values.shape):
        product = 1.0
        for t in range(s + 1, L):
            product *= values[t, h, k]
            steps[s, h, k] += 1
            if product < EPSILON:
                censored[s, h, k] = False
                break
    return steps, censored


@pytest.mark.parametrize(
    "name", zoo.slow_unless({"scalar_lti", "diagonal_factored", "low_rank", "kernel"}, NAMES)
)
def test_against_a_loop(name: str) -> None:
    system = build(name)
    found = find(system)
    steps, censored = in_a_loop(moduli(system))
    np.testing.assert_array_equal(found.steps, steps)
    np.testing.assert_array_equal(found.censored, censored)
    assert not censored.all()


def test_first_passage_counts_where_the_product_grows_again() -> None:
    """0.5 · 0.1 is below ε, though 0.5 · 0.1 · 10 is not."""
    one = jnp.ones((1, 1, 1))
    decays = jnp.array([1.0, 0.5, 0.1, 10.0, 3.0, 2.0])[:, None]
    system = System(
        Scalar(jnp.log(decays)), OuterInput(one), InnerOutput(one), state_shape=(1, 1, 1)
    )
    found = horizons(system, 0.09)
    assert found.steps[:, 0, 0].tolist() == [2, 4, 3, 2, 1, 0]
    assert found.censored[:, 0, 0].tolist() == [False, True, True, True, True, True]


def test_many_columns_are_done_in_parts() -> None:
    rng = np.random.default_rng(0)
    one = jnp.ones((1, 1, 1))
    log_a = jnp.asarray(-rng.exponential(size=(L, 300)))
    system = System(Scalar(log_a), OuterInput(one), InnerOutput(one), state_shape=(300, 1, 1))
    found = find(system)
    steps, censored = in_a_loop(np.exp(np.asarray(log_a))[:, :, None])
    np.testing.assert_array_equal(found.steps, steps)
    np.testing.assert_array_equal(found.censored, censored)


def test_counts_are_the_distribution() -> None:
    found = find(build("diagonal_factored"))
    counts = count_horizons(found)
    for head in range(zoo.H):
        ends = np.asarray(found.steps[:, head])[~np.asarray(found.censored[:, head])]
        cut = np.asarray(found.steps[:, head])[np.asarray(found.censored[:, head])]
        total = len(ends) + len(cut)
        for got, expected in ((counts.ended, ends), (counts.censored, cut)):
            expected = np.bincount(expected, minlength=L) / total
            np.testing.assert_allclose(got[head], expected, rtol=1e-14)


def test_survival_of_a_constant_decay_is_a_step_in_spite_of_censoring() -> None:
    """All horizons are 4, though the last three tokens see less: no curve through their ends."""
    one = jnp.ones((1, 1, 1))
    A = Scalar(jnp.log(jnp.full((1, 1), 0.5)))
    system = System(A, OuterInput(one), InnerOutput(one), state_shape=(1, 1, 1))
    S = survival(count_horizons(horizons(system, 0.1, length=L)))[0]
    np.testing.assert_allclose(S[:6], [1, 1, 1, 1, 0, 0], atol=1e-14)


def test_kaplan_and_meier_by_hand() -> None:
    """Ten products: 2 end at 1, 3 are cut off at 1, 2 end at 2, 3 are cut off at 3."""
    counts = HorizonCounts(jnp.array([0, 0.2, 0.2, 0]), jnp.array([0, 0.3, 0, 0.3]))
    expected = [1.0, 0.8, 0.8 * (1 - 2 / 5), 0.8 * (1 - 2 / 5)]
    np.testing.assert_allclose(survival(counts), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "name",
    zoo.slow_unless(
        {"diagonal_full", "kernel"}, ["scalar_extremes", "diagonal_full", "low_rank", "kernel"]
    ),
)
def test_half_life_is_that_of_the_geometric_mean(name: str) -> None:
    system = build(name)
    values = moduli(system)
    start = np.zeros(L, bool) if system.reset is None else np.asarray(system.reset).copy()
    start[0] = True
    with np.errstate(divide="ignore"):
        mean = np.log(values[~start]).mean(axis=0)
        expected = np.where(mean < 0, np.log(0.5) / mean, np.inf)
    np.testing.assert_allclose(half_life(system), expected, rtol=1e-10)


def test_epsilon_is_checked() -> None:
    with pytest.raises(ValueError, match="expected epsilon in"):
        horizons(build("scalar_given"), 1.0)


def test_half_life_of_what_is_constant_needs_no_length() -> None:
    A = Scalar(jnp.log(jnp.array([[0.5]])))
    system = System(A, OuterInput(), InnerOutput(), state_shape=(1, 1, 1))
    np.testing.assert_allclose(half_life(system), [[1.0]], rtol=1e-12)
    np.testing.assert_allclose(lyapunov_exponents(system), [[np.log(0.5)]], rtol=1e-12)
    one = System(A, OuterInput(), InnerOutput(), state_shape=(1, 1, 1), length=1)
    assert np.isnan(half_life(one)).all()
