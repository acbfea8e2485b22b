"""Hankel singular values of a whole state, against those of its dense matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax.analysis import effective_dimension, state_use


def test_those_of_the_dense_system() -> None:
    rng = np.random.default_rng(0)
    L, H, n, p = 7, 2, 3, 2
    system = dsfjax.System(
        dsfjax.Diagonal(jnp.asarray(np.log(rng.uniform(0.3, 1.0, (L, H, n, 1))))),
        dsfjax.OuterInput(jnp.asarray(rng.standard_normal((L, H, n)))),
        dsfjax.InnerOutput(jnp.asarray(rng.standard_normal((L, H, n)))),
        state_shape=(H, n, p),
    )
    dense = dsfjax.to_dense(system)
    A, B, C = (np.asarray(x) for x in (dense.A, dense.B, dense.C))
    at, N = 3, H * n * p
    P, Q = np.zeros((N, N)), np.zeros((N, N))
    for t in range(at + 1):
        P = A[t] @ P @ A[t].T + B[t] @ B[t].T
    for t in reversed(range(at, L)):
        Q = C[t].T @ C[t] + (A[t + 1].T @ Q @ A[t + 1] if t + 1 < L else 0)
    expected = np.sort(np.sqrt(np.maximum(np.linalg.eigvals(P @ Q).real, 0)))[::-1]
    found = state_use(system)
    assert found.shape == (N,)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
    assert effective_dimension(found**2).rank <= N


def test_a_system_that_is_constant_in_time_needs_a_length() -> None:
    A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
    s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
    first, last = state_use(s, at=0, length=2), state_use(s, at=1, length=2)
    np.testing.assert_allclose(first, [np.sqrt(1.25)] * 2)
    np.testing.assert_allclose(last, [np.sqrt(1.25)] * 2)


def test_a_kernel_system_has_no_state_to_use() -> None:
    q = jnp.ones((3, 1, 2))
    with pytest.raises(ValueError, match="no finite state"):
        state_use(dsfjax.KernelSystem(q, q, num_channels=1))
