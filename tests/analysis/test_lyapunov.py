"""Lyapunov exponents against products of matrices that are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import eigenvalues, lyapunov_exponents, normalized
from dsfjax.core import Dense, DiagonalPlusLowRank, InnerOutput, OuterInput, System
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 23
exponents = compiled(lyapunov_exponents)


def starts(system: System) -> np.ndarray:
    start = np.zeros(L, bool) if system.reset is None else np.asarray(system.reset).copy()
    start[0] = True
    return start


@pytest.mark.parametrize("name", ["scalar_given", "diagonal_factored", "complex_per_state"])
def test_diagonal_transitions_are_exact_sums(name: str) -> None:
    system = zoo.system(name, L)
    values = np.abs(np.asarray(eigenvalues(system)))[~starts(system)]
    expected = -np.sort(-np.log(values).mean(axis=0), axis=-1)
    np.testing.assert_allclose(exponents(system), expected, rtol=1e-10)


def test_kernel_system() -> None:
    system = zoo.kernel_system(L, with_reset=False)
    values = np.asarray(eigenvalues(system))[1:]
    np.testing.assert_allclose(exponents(system), np.log(values).mean(axis=0), rtol=1e-10)


def test_a_decay_of_zero_is_minus_infinity() -> None:
    found = np.asarray(exponents(zoo.system("scalar_extremes", L)))
    assert np.isneginf(found).all()


@pytest.mark.parametrize("name", ["dense", "low_rank", "low_rank_constant", "dense_complex"])
def test_exponents_add_up_to_the_determinant(name: str) -> None:
    system = zoo.system(name, L)
    A = normalized(system).A
    assert isinstance(A, Dense | DiagonalPlusLowRank)
    matrices = np.asarray(A.matrix())
    matrices = np.broadcast_to(matrices, (L, *matrices.shape[1:]))[~starts(system)]
    expected = np.log(np.abs(np.linalg.det(matrices))).mean(axis=0)
    found = np.asarray(exponents(system))
    np.testing.assert_allclose(found.sum(axis=1), expected, rtol=1e-10)
    assert (np.diff(found, axis=1) <= 0).all()


def test_long_products_grow_at_the_largest_exponent() -> None:
    """Singular values of the product itself, over 400 steps, scaled as it grows."""
    rng = np.random.default_rng(0)
    steps, n = 400, 4
    matrices = rng.normal(size=(steps, 1, n, n)) / 2
    one = jnp.ones((1, 1, n))
    system = System(
        Dense(jnp.asarray(matrices)), OuterInput(one), InnerOutput(one), state_shape=(1, n, 1)
    )
    found = np.asarray(exponents(system))[0]
    product, log_size = np.eye(n), 0.0
    for matrix in matrices[1:, 0]:
        product = matrix @ product
        size = np.linalg.norm(product, 2)
        product, log_size = product / size, log_size + np.log(size)
    assert abs(found[0] - log_size / (steps - 1)) < 0.01
    assert found[0] - found[-1] > 0.1


def test_constant_matrix_has_the_moduli_of_its_eigenvalues() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(1, 3, 3))  # one for both heads
    one = jnp.ones((1, 1, 3))
    system = System(
        Dense(jnp.asarray(matrix)), OuterInput(one), InnerOutput(one), state_shape=(2, 3, 1)
    )
    expected = -np.sort(-np.log(np.abs(np.linalg.eigvals(matrix[0]))))
    found = np.asarray(lyapunov_exponents(system, length=1000))
    np.testing.assert_allclose(found, np.stack([expected, expected]), atol=0.01)
