"""The kernel view against the definitions: double sums, ranks, states."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import KernelSystem, scan
from dsfjax.analysis import definiteness, gram_matrix, positive_features, rkhs_norm
from dsfjax.core import truncate_kernel
from tests import systems_zoo
from tests.reference_loop import error

L = 7


def test_gram_matrix_is_positive_definite_for_distinct_points_only() -> None:
    x = np.random.default_rng(0).standard_normal((L, 3))
    gram = gram_matrix(jnp.asarray(x))
    assert error(gram, np.exp(x @ x.T)) < 1e-14
    found = definiteness(gram)
    expected = np.linalg.eigvalsh(np.exp(x @ x.T))
    np.testing.assert_allclose(found.smallest, expected[0], rtol=1e-8)
    np.testing.assert_allclose(found.largest, expected[-1], rtol=1e-12)
    assert bool(found.positive) and bool(found.semidefinite)
    twice = definiteness(gram_matrix(jnp.asarray(np.concatenate([x, x[:1]]))))
    assert not bool(twice.positive) and bool(twice.semidefinite)


@pytest.mark.parametrize("n", [3, L])
def test_features_have_at_most_their_number_of_dimensions(n: int) -> None:
    rng = np.random.default_rng(1)
    x, w = (jnp.asarray(0.5 * rng.standard_normal((k, 3))) for k in (L, n))
    gram = gram_matrix(x, lambda x: positive_features(x, w))
    phi = np.asarray(positive_features(x, w))
    assert error(gram, phi @ phi.T) < 1e-14
    assert np.linalg.matrix_rank(np.asarray(gram)) == n
    assert bool(definiteness(gram).positive) == (n == L)


def test_an_indefinite_matrix_is_seen() -> None:
    found = definiteness(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    assert float(found.smallest) == pytest.approx(-1)
    assert not bool(found.positive) and not bool(found.semidefinite)


@functools.cache
def case() -> tuple[KernelSystem, jax.Array]:
    system = systems_zoo.kernel_system(L)
    assert system.reset is not None
    reset = jnp.zeros(L, bool).at[3].set(True)
    system = KernelSystem(system.q, 0.2 * system.k, system.W, reset, num_channels=systems_zoo.P)
    return system, systems_zoo.tokens(system, L)


def test_norm_is_the_double_sum() -> None:
    system, u = case()
    k = np.repeat(np.asarray(system.k), 2, axis=1)
    v = (np.asarray(u) @ np.asarray(system.W).T).reshape(L, 4, -1)
    kappa = np.exp(np.einsum("shm,thm->hst", k, k)) * np.einsum("shp,thp->hst", v, v)
    expected = np.zeros((L, 4))
    for t in range(L):
        start = 3 if t >= 3 else 0
        expected[t] = np.sqrt(kappa[:, start : t + 1, start : t + 1].sum(axis=(1, 2)))
    assert error(jax.jit(rkhs_norm)(system, u), expected) < 1e-13


def test_norm_is_that_of_the_state_of_the_features() -> None:
    """‖h_t‖ of the Taylor system converges to the norm in the kernel's own space."""
    system, u = case()
    exact = np.asarray(jax.jit(rkhs_norm)(system, u))

    def states(order: int) -> Any:
        finite = truncate_kernel(system, order)
        h = jax.jit(functools.partial(scan, return_states=True))(finite, u)[2]
        return np.linalg.norm(h[..., :-1], axis=(2, 3))  # without the z of η

    errors = [error(states(order), exact) for order in (0, 2, 10)]
    assert errors[0] > 1e-2 > errors[1] > 1e-6
    assert errors[2] < 1e-13
