"""Products of decays over intervals, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax.engines.decay import chunk_decays

SIZE = 6
compiled = jax.jit(chunk_decays)
compiled_jacobian = jax.jit(jax.jacrev(lambda log_a, reset: chunk_decays(log_a, reset).between))
decays = st.lists(st.sampled_from([0.0, -0.3, -2.0, -40.0, -np.inf]), min_size=SIZE, max_size=SIZE)
resets = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)


@settings(max_examples=25)
@given(log_a=decays, reset=resets)
def test_definition(log_a, reset):
    a = np.where(reset, 0, np.exp(log_a))
    got = compiled(jnp.asarray(log_a), jnp.asarray(reset))
    got = jax.device_get(got)
    for t in range(SIZE):
        for s in range(SIZE):
            product = np.prod(a[s + 1 : t + 1]) if s <= t else 0.0
            np.testing.assert_allclose(got.between[t, s], product, rtol=1e-13)
        np.testing.assert_allclose(got.from_start[t], np.prod(a[: t + 1]), rtol=1e-13)
        np.testing.assert_allclose(got.to_end[t], np.prod(a[t + 1 :]), rtol=1e-13)


@settings(max_examples=25)
@given(log_a=decays, reset=resets)
def test_gradients_are_finite_and_right(log_a, reset):
    """d/d log a_r of a product over an interval that holds r is the product itself."""
    log_a, reset = jnp.asarray(log_a), jnp.asarray(reset)
    jacobian = np.asarray(compiled_jacobian(log_a, reset))
    between = np.asarray(compiled(log_a, reset).between)
    for t in range(SIZE):
        for s in range(SIZE):
            expected = [between[t, s] if s < r <= t else 0.0 for r in range(SIZE)]
            np.testing.assert_allclose(jacobian[t, s], expected, rtol=1e-13)
