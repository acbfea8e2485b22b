"""Finite systems in place of the exponential kernel: errors measured, and bounds that hold."""

import functools
import itertools
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import KernelSystem, scan
from dsfjax.analysis import (
    elu_features,
    feature_error,
    finite_states,
    lagrange_bound,
    output_bound,
    positive_features,
    random_projection,
    truncation_error,
    truncation_rounding,
)
from dsfjax.core import feature_system, truncate_kernel
from tests import systems_zoo
from tests.reference_loop import error

L, H, M, P = 6, 2, 3, 2
ORDERS = (0, 2, 4, 8)
U = np.finfo(np.float64).eps / 2


@functools.partial(jax.jit, static_argnames="order")
def errors_and_bounds(q: Any, k: Any, u: Any, order: int) -> Any:
    found = truncation_error(KernelSystem(q, k, num_channels=P), u, order)
    epsilon = lagrange_bound(found.radius, order)
    bound = output_bound(found.radius, order, found.value_norm)
    return found, epsilon, bound, truncation_rounding(found.radius, order)


@hypothesis.settings(max_examples=600)
@hypothesis.given(
    st.sampled_from(ORDERS),
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 1.7),
    st.floats(-3.0, 3.0),
    st.sampled_from(["normal", "opposite", "equal"]),
)
def test_errors_stay_below_lagranges_bound(
    order: int, seed: int, spread: float, log_value: float, kind: str
) -> None:
    """Queries up to |qᵀk| ≈ 20; opposite keys make every score negative, where terms cancel."""
    rng = np.random.default_rng(seed)
    q = spread * rng.standard_normal((L, H, M))
    v = 10**log_value * rng.standard_normal((L, H * P))
    k = {"normal": spread * rng.standard_normal((L, H, M)), "opposite": -q, "equal": q}[kind]
    found, epsilon, bound, rounding = errors_and_bounds(q, k, v, order)
    found, epsilon, bound, rounding = jax.tree.map(np.asarray, (found, epsilon, bound, rounding))
    scores = np.tril(np.einsum("thm,shm->hts", q, k))
    np.testing.assert_allclose(found.radius, np.abs(scores).max(axis=2).T, rtol=1e-12, atol=1e-15)
    assert (found.kernel <= epsilon + rounding).all()
    amplified = 2 * np.exp(found.radius) * found.value_norm
    slack = amplified * rounding + 4 * (L + order) * U * found.value_norm
    # The bound needs ỹ to be a convex combination, so weights whose rounding is no larger than
    # the weights themselves.
    tame = rounding * np.exp(found.radius) < 1e-3
    assert tame.mean() > 0.1
    assert (found.output <= bound + 1.01 * slack)[tame].all()


def test_lagranges_bound_is_sharp_at_the_positive_end() -> None:
    """At x = R the remainder is within a factor e^R of its bound."""
    for order, radius in itertools.product((0, 2, 6), (0.1, 1.0, 3.0)):
        remainder = math.exp(radius) - sum(radius**r / math.factorial(r) for r in range(order + 1))
        bound = float(lagrange_bound(jnp.asarray(radius), order))
        assert math.exp(-radius) * bound <= remainder <= bound
    assert float(lagrange_bound(jnp.asarray(0.0), 2)) == 0


@functools.cache
def kernel() -> tuple[KernelSystem, jax.Array]:
    """Grouped heads, resets and a value map."""
    system = systems_zoo.kernel_system(L)
    return system, systems_zoo.tokens(system, L)


def outputs(system: Any, u: jax.Array) -> np.ndarray:
    return np.asarray(jax.jit(scan)(system, u)[0]).reshape(L, 4, -1)


@pytest.mark.parametrize("order", [0, 4])
def test_truncation_error_is_that_of_the_truncated_system(order: int) -> None:
    system, u = kernel()
    expected = outputs(system, u) - outputs(truncate_kernel(system, order), u)
    found = jax.jit(functools.partial(truncation_error, order=order))(system, u)
    assert error(found.output, np.linalg.norm(expected, axis=2)) < 1e-12


@pytest.mark.parametrize("features", [positive_features, elu_features])
def test_feature_error_is_that_of_the_feature_system(features: Any) -> None:
    system, u = kernel()
    w = random_projection(jax.random.key(1), 7, system.q.shape[-1])

    def phi(x: jax.Array) -> jax.Array:
        return features(x, w)

    finite = feature_system(system, phi)
    assert finite.state_shape == (4, 7, systems_zoo.P)
    expected = outputs(system, u) - outputs(finite, u)
    found = jax.jit(lambda s, u: feature_error(s, u, phi))(system, u)
    assert error(found.output, np.linalg.norm(expected, axis=2)) < 1e-12
    k = np.repeat(np.asarray(system.k), 2, axis=1)
    exact = np.exp(np.einsum("thm,shm->ths", system.q, k))
    approximate = np.einsum("thn,shn->ths", phi(system.q), np.repeat(phi(system.k), 2, axis=1))
    assert system.reset is not None
    segment = np.cumsum(system.reset)
    seen = np.tri(L, dtype=bool) & (segment[:, None] == segment[None])
    largest = np.where(seen[:, None], np.abs(exact - approximate), 0).max(axis=2)
    assert error(found.kernel, largest) < 1e-12


def test_positive_features_have_the_exponential_as_mean() -> None:
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(0.4 * rng.standard_normal((2, 5, 3)))
    exact = np.exp(np.sum(np.asarray(q) * np.asarray(k), axis=1))
    count, n = 20_000, 3
    deviations = {}
    for orthogonal in (True, False):
        w = random_projection(jax.random.key(2), count * n, 3, orthogonal=orthogonal)
        w = w.reshape(count, n, 3)
        draws = jax.vmap(lambda w: (positive_features(q, w) * positive_features(k, w)).sum(-1))(w)
        mean, std = np.asarray(draws).mean(axis=0), np.asarray(draws).std(axis=0)
        assert (np.abs(mean - exact) < 5 * std / math.sqrt(count)).all()
        deviations[orthogonal] = std
    square = np.sum((np.asarray(q) + np.asarray(k)) ** 2, axis=1)
    predicted = exact * np.sqrt((np.exp(square) - 1) / n)
    np.testing.assert_allclose(deviations[False], predicted, rtol=0.1)
    assert (deviations[True] < deviations[False]).all()


def test_rows_of_a_random_projection() -> None:
    w = np.asarray(random_projection(jax.random.key(0), 7, 3))
    gram = w[:3] @ w[:3].T
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-13)
    many = np.asarray(random_projection(jax.random.key(1), 30_000, 3))
    np.testing.assert_allclose(many.T @ many / len(many), np.eye(3), atol=0.03)
    np.testing.assert_allclose(many.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose((many**4).mean(axis=0), 3, rtol=0.1)


def test_elu_features_as_published() -> None:
    x = np.linspace(-3, 3, 7)
    expected = np.where(x > 0, x + 1, np.exp(x))
    np.testing.assert_allclose(elu_features(jnp.asarray(x)), expected, rtol=1e-15)


def test_lines_of_the_table() -> None:
    system, u = kernel()
    lines = finite_states(system, u, (2, 6), key=jax.random.key(0))
    assert [line.features for line in lines] == 2 * ["taylor", "positive", "elu"]
    assert [line.num_features for line in lines] == [10] * 3 + [84] * 3
    sizes = [4 * line.num_features * systems_zoo.P for line in lines]
    assert [line.state_size for line in lines] == sizes
    taylor = [line for line in lines if line.features == "taylor"]
    errors = jax.jit(truncation_error, static_argnames="order")
    for line in taylor:
        found = errors(system, u, order=line.order)
        assert line.output_error == pytest.approx(float(found.output.max()), rel=1e-12)
        assert line.kernel_error == pytest.approx(float(found.kernel.max()), rel=1e-12)
        assert line.radius == pytest.approx(float(found.radius.max()), rel=1e-14)
        assert line.kernel_error <= line.kernel_bound
        assert line.output_error <= line.output_bound
    for line in lines:
        assert math.isnan(line.kernel_error) == (line.features == "elu")
        assert math.isnan(line.kernel_bound) == (line.features != "taylor")
    assert taylor[1].kernel_error < taylor[0].kernel_error
    few = finite_states(system, u, (2,), key=jax.random.key(0), max_features=9)
    assert few[0] == lines[0]
    assert all(math.isnan(line.output_error) and line.num_features == 10 for line in few[1:])


@pytest.mark.parametrize("call", [truncation_error, finite_states])
def test_odd_orders_are_refused(call: Any) -> None:
    system, u = kernel()
    arguments = (3,) if call is truncation_error else ((2, 3),)
    keywords = {} if call is truncation_error else {"key": jax.random.key(0)}
    with pytest.raises(ValueError, match="even order, got 3.* use 4"):
        call(system, u, *arguments, **keywords)


def test_float32_stays_float32() -> None:
    system, u = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float32), kernel())
    errors = jax.jit(truncation_error, static_argnames="order")
    found = errors(system, u, order=2)
    assert {x.dtype for x in found} == {np.dtype(np.float32)}
    exact = errors(*kernel(), order=2)
    for got, expected in zip(found, exact, strict=True):
        assert error(got, expected) < 1e-5
