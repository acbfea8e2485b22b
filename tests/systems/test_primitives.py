"""Scalar functions at the ends of their range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.systems.primitives import affine, elu1, inverse_softplus, log_softplus

ENDS = np.array([-700.0, -40.0, -30.0, -29.9, -1.0, 0.0, 1.0, 40.0, 700.0])


def test_elu1_stays_positive() -> None:
    reference = np.where(ENDS > 0, ENDS + 1, np.exp(np.minimum(ENDS, 0)))
    np.testing.assert_allclose(elu1(jnp.asarray(ENDS)), reference, rtol=1e-15)
    slope = jax.vmap(jax.grad(elu1))(jnp.asarray(ENDS))
    np.testing.assert_allclose(slope, np.exp(np.minimum(ENDS, 0)), rtol=1e-15)


def test_log_softplus_has_no_log_of_zero() -> None:
    softplus = np.logaddexp(0, ENDS)
    np.testing.assert_allclose(log_softplus(jnp.asarray(ENDS)), np.log(softplus), rtol=1e-14)
    slope = jax.vmap(jax.grad(log_softplus))(jnp.asarray(ENDS))
    reference = 1 / (1 + np.exp(-np.maximum(ENDS, -700))) / softplus
    np.testing.assert_allclose(slope, reference, rtol=1e-12)
    far = jnp.asarray(-1e4)
    assert log_softplus(far) == -1e4 and jax.grad(log_softplus)(far) == 1


def test_inverse_softplus() -> None:
    x = np.array([1e-12, 1e-3, 0.7, 5.0, 300.0])
    np.testing.assert_allclose(np.logaddexp(0, inverse_softplus(jnp.asarray(x))), x, rtol=1e-9)


@pytest.mark.parametrize(("wide", "dtype"), [(False, jnp.bfloat16), (True, jnp.float32)])
def test_affine_keeps_or_widens_the_dtype(wide: bool, dtype: type) -> None:
    key_w, key_u = jax.random.split(jax.random.key(0))
    W = jax.random.normal(key_w, (2, 3, 4), jnp.float32)
    u = jax.random.normal(key_u, (5, 4)).astype(jnp.bfloat16)
    bias = jnp.ones((2, 3), jnp.float32)
    y = affine(W, u, bias, wide=wide)
    assert y.dtype == dtype and y.shape == (5, 2, 3)
    exact = np.einsum("hod,ld->lho", W, np.asarray(u, np.float64)) + 1
    assert np.abs(np.asarray(y, np.float64) - exact).max() < (1e-6 if wide else 5e-2)
