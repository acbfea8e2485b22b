"""Lemma 1 as a constructor, and Taylor features, against sums written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import GivenNormalizer, KernelSystem, SummedNormalizer, scan
from dsfjax.core import feature_system, separable_system, taylor_features, truncate_kernel
from tests.reference_loop import error

L, H, G, N, P, D = 11, 4, 2, 3, 2, 5


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([*shape, seed]).standard_normal(shape)


def quadratic(weights: np.ndarray, eta: np.ndarray, v: np.ndarray) -> np.ndarray:
    """y[t, h] = Σ_{s ≤ t} weights[h, t, s] v[s, h] / η[t, h]."""
    lower = np.tril(np.ones((L, L)))
    return np.einsum("hts,shp->thp", weights * lower, v) / eta[:, :, None]


@pytest.mark.parametrize("normalizer", ["none", "given", "summed"])
def test_separable_system_is_the_quadratic_sum(normalizer: str) -> None:
    phi, psi = np.exp(normal(L, H, N)), np.exp(normal(L, G, N, seed=1))
    W, u, log_eta = normal(H * P, D), normal(L, D), normal(L, H)
    weights = np.einsum("thn,shn->hts", phi, np.repeat(psi, H // G, axis=1))
    eta = {
        "none": np.ones((L, H)),
        "given": np.exp(log_eta),
        "summed": np.tril(weights).sum(axis=2).T,
    }[normalizer]
    part = {
        "none": None,
        "given": GivenNormalizer(jnp.asarray(log_eta)),
        "summed": SummedNormalizer(),
    }[normalizer]
    system = separable_system(
        jnp.asarray(phi), jnp.asarray(psi), part, num_channels=P, W=jnp.asarray(W)
    )
    y = jax.jit(scan)(system, jnp.asarray(u))[0].reshape(L, H, P)
    assert error(y, quadratic(weights, eta, (u @ W.T).reshape(L, H, P))) < 1e-14


@pytest.mark.parametrize("symmetric", [True, False])
def test_taylor_features_are_the_truncated_exponential(symmetric: bool) -> None:
    q, k = normal(5, 3), normal(5, 3, seed=1)
    for order in (0, 1, 3, 4):
        phi, psi = (taylor_features(jnp.asarray(x), order, symmetric=symmetric) for x in (q, k))
        n = math.comb(3 + order, order) if symmetric else sum(3**r for r in range(order + 1))
        assert phi.shape == (5, n)
        x = np.sum(q * k, axis=1)
        kernel = sum(x**r / math.factorial(r) for r in range(order + 1))
        assert error(np.sum(np.asarray(phi) * np.asarray(psi), axis=1), kernel) < 1e-14


def test_truncated_kernel_keeps_groups_value_map_and_resets() -> None:
    q, k, W, u = normal(L, H, N), normal(L, G, N, seed=1), normal(H * P, D), normal(L, D)
    reset = np.arange(L) == 4
    arrays = (jnp.asarray(x) for x in (q, k, W))
    kernel = KernelSystem(*arrays, reset=jnp.asarray(reset), num_channels=P)
    system = truncate_kernel(kernel, 2)
    x = np.einsum("thn,shn->hts", q, np.repeat(k, H // G, axis=1))
    segment = np.cumsum(reset)
    weights = (1 + x + x**2 / 2) * (segment[:, None] == segment[None])
    eta = np.tril(weights).sum(axis=2).T
    y = jax.jit(scan)(system, jnp.asarray(u))[0].reshape(L, H, P)
    assert error(y, quadratic(weights, eta, (u @ W.T).reshape(L, H, P))) < 1e-13


def test_two_feature_maps() -> None:
    kernel = KernelSystem(
        jnp.asarray(normal(L, H, N)), jnp.asarray(normal(L, G, N)), num_channels=P
    )
    system = feature_system(kernel, jnp.exp, jnp.cosh)
    expected = separable_system(
        jnp.exp(kernel.q), jnp.cosh(kernel.k), SummedNormalizer(), num_channels=P
    )
    for got, wanted in zip(jax.tree.leaves(system), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("order", "remedy"), [(3, 4), (-1, 0), (-2, 0)])
def test_orders_that_can_vanish_are_refused(order: int, remedy: int) -> None:
    kernel = KernelSystem(jnp.ones((3, 1, 2)), jnp.ones((3, 1, 2)), num_channels=1)
    with pytest.raises(ValueError, match=f"even order, got {order}.* use {remedy}"):
        truncate_kernel(kernel, order)
