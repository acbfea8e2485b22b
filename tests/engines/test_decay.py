"""Sums of log decays over halves of halves, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax.engines.chunks.decay import Decays, between, block_sums

SIZE = 8
DECAYS = [0.0, 0.01, -0.3, -2.0, -40.0, -np.inf]


def products(log_a):
    return between(log_a)


compiled = jax.jit(products)
compiled_sums = jax.jit(
    lambda log_a: [(x.upto, x.before, x.after) for x in block_sums(log_a[:, None])]
)
compiled_jacobian = jax.jit(jax.jacrev(products))
decays = st.lists(st.sampled_from(DECAYS), min_size=SIZE, max_size=SIZE)


@settings(max_examples=25)
@given(log_a=decays)
def test_definition(log_a):
    got, levels = jax.device_get((compiled(jnp.asarray(log_a)), compiled_sums(jnp.asarray(log_a))))
    for t in range(SIZE):
        for s in range(-1, SIZE):
            product = np.exp(np.sum(log_a[s + 1 : t + 1])) if s <= t else 0.0
            np.testing.assert_allclose(got[t, s + 1], product, rtol=1e-13)
    for level, (upto, before, after) in enumerate(levels):
        size = 2**level
        assert upto.shape == (SIZE // size, size, 1)
        for t in range(SIZE):
            start, stop = t // size * size, t // size * size + size
            at = (t // size, t % size, 0)
            assert np.isclose(upto[at], np.sum(log_a[start : t + 1]), rtol=1e-13)
            assert np.isclose(before[at], np.sum(log_a[start:t]), rtol=1e-13)
            assert np.isclose(after[at], np.sum(log_a[t + 1 : stop]), rtol=1e-13)


@settings(max_examples=25)
@given(log_a=decays)
def test_gradients_are_finite_and_right(log_a):
    """d/d log a_r of a product over an interval that holds r is the product itself."""
    log_a = jnp.asarray(log_a)
    jacobian, value = np.asarray(compiled_jacobian(log_a)), np.asarray(compiled(log_a))
    for t in range(SIZE):
        for s in range(-1, SIZE):
            expected = [value[t, s + 1] if s < r <= t else 0.0 for r in range(SIZE)]
            np.testing.assert_allclose(jacobian[t, s + 1], expected, rtol=1e-13)


@pytest.mark.parametrize("size", [1, 4, 64, 256])
@pytest.mark.parametrize("turned", [False, True])
def test_long_chunks_and_complex_decays(size, turned):
    """Chunks above the size of one product are put together from blocks of it."""
    rng = np.random.default_rng(size)
    log_a = -rng.exponential(size=size) / 4 + 1j * turned * rng.uniform(-3, 3, size=size)
    log_a[size // 3] = -np.inf  # a reset, which no product crosses
    got = jax.device_get(jax.jit(between)(jnp.asarray(log_a if turned else log_a.real)))
    decay = np.exp(log_a)
    expected = np.zeros((size, size + 1), complex)
    for t in range(size):
        for s in range(-1, t + 1):
            expected[t, s + 1] = np.prod(decay[s + 1 : t + 1])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("states", [1, 3])
def test_decays_to_the_ends(states):
    """The decays from and to the ends of a chunk, of both forms."""
    log_a = -np.random.default_rng(0).exponential(size=(2, SIZE, states))
    decays, a = Decays.of(jnp.asarray(log_a)), np.exp(log_a)
    for t in range(SIZE):
        for found, part in (
            (decays.from_start(), a[:, : t + 1]),
            (decays.before(), a[:, :t]),
            (decays.to_end(), a[:, t + 1 :]),
        ):
            assert found.shape == a.shape
            np.testing.assert_allclose(found[:, t], part.prod(axis=1), rtol=1e-12)


def test_nan_is_not_lost():
    """The guard around an engine looks at what comes out: a NaN must be there."""
    found = np.asarray(between(jnp.asarray([-0.1, np.nan, -0.2, -0.3])))
    assert np.isnan(found[1:, :2]).all()
