"""Gates in the coordinates of their running maximum, against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.core import stabilized


@pytest.mark.parametrize("before", [None, 1.5])
def test_running_maximum_by_a_loop_and_no_nan_passes_a_reset(before: float | None) -> None:
    rng = np.random.default_rng(0)
    log_a, log_b = -np.abs(rng.standard_normal((9, 2))), 3 * rng.standard_normal((9, 2))
    log_b[:4] = np.nan  # padding, which the reset cuts off
    reset = np.arange(9) == 4
    start = None if before is None else jnp.full(2, before)
    found = jax.jit(lambda a, b, r: stabilized(a, b, reset=r, before=start))(log_a, log_b, reset)
    m = np.full(2, -np.inf)
    for t in range(4, 9):
        now = np.maximum(log_a[t] + m, log_b[t])
        np.testing.assert_allclose(found.log_max[t], now, rtol=1e-14)
        np.testing.assert_allclose(found.log_max_prev[t], m, rtol=1e-14)
        np.testing.assert_allclose(found.log_b[t], log_b[t] - now, rtol=1e-12, atol=1e-14)
        m = now
    assert np.isneginf(found.log_a[4]).all()


def test_what_is_carried_in_counts_at_the_first_step_alone() -> None:
    gates = jnp.array([[-1.0], [-1.0]]), jnp.array([[0.0], [-5.0]])
    found = stabilized(*gates, before=jnp.array([4.0]))
    assert found.log_max[:, 0].tolist() == [3.0, 2.0]
    # A reset at the first step forgets it, whatever it is.
    reset = jnp.array([True, False])
    found = stabilized(*gates, reset=reset, before=jnp.array([jnp.nan]))
    assert found.log_max[:, 0].tolist() == [0.0, -1.0]
