"""Sums of log decays over halves of halves, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax.engines.chunks.decay import between, block_sums

SIZE = 8
DECAYS = [0.0, 0.01, -0.3, -2.0, -40.0, -np.inf]


def products(log_a):
    return between(block_sums(log_a[:, None]))


compiled = jax.jit(products)
compiled_sums = jax.jit(lambda log_a: block_sums(log_a[:, None]))
compiled_jacobian = jax.jit(jax.jacrev(products))
decays = st.lists(st.sampled_from(DECAYS), min_size=SIZE, max_size=SIZE)


@settings(max_examples=25)
@given(log_a=decays)
def test_definition(log_a):
    got, levels = jax.device_get((compiled(jnp.asarray(log_a)), compiled_sums(jnp.asarray(log_a))))
    for t in range(SIZE):
        for s in range(SIZE):
            product = np.exp(np.sum(log_a[s + 1 : t + 1])) if s <= t else 0.0
            np.testing.assert_allclose(got[t, s], product, rtol=1e-13)
    for level, sums in enumerate(levels):
        size = 2**level
        assert sums.upto.shape == (SIZE // size, size, 1)
        for t in range(SIZE):
            start, stop = t // size * size, t // size * size + size
            at = (t // size, t % size, 0)
            assert np.isclose(sums.upto[at], np.sum(log_a[start : t + 1]), rtol=1e-13)
            assert np.isclose(sums.before[at], np.sum(log_a[start:t]), rtol=1e-13)
            assert np.isclose(sums.after[at], np.sum(log_a[t + 1 : stop]), rtol=1e-13)


@settings(max_examples=25)
@given(log_a=decays)
def test_gradients_are_finite_and_right(log_a):
    """d/d log a_r of a product over an interval that holds r is the product itself."""
    log_a = jnp.asarray(log_a)
    jacobian, value = np.asarray(compiled_jacobian(log_a)), np.asarray(compiled(log_a))
    for t in range(SIZE):
        for s in range(SIZE):
            expected = [value[t, s] if s < r <= t else 0.0 for r in range(SIZE)]
            np.testing.assert_allclose(jacobian[t, s], expected, rtol=1e-13)
