"""The WY form: its inverse by itself, and chunks whose blocks of it have more than two steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.engines.chunks.wy import unit_lower_inverse
from tests import systems_zoo as zoo
from tests.engine_runs import compiled_scan
from tests.reference_loop import error

SIZES = (1, 2, 3, 4, 5, 8, 20, 32)


def strictly_lower(size: int) -> np.ndarray:
    return np.tril(np.random.default_rng(size).normal(size=(2, size, size)), -1) / 2


def test_inverse_and_its_derivative_are_those_of_numpy() -> None:
    T = [strictly_lower(size) for size in SIZES]
    dT = [strictly_lower(size)[::-1] for size in SIZES]

    @jax.jit
    def run(T, dT):
        return [
            jax.jvp(lambda x: unit_lower_inverse(x, "highest"), (x,), (dx,))
            for x, dx in zip(T, dT, strict=True)
        ]

    for x, dx, (value, tangent) in zip(T, dT, run(T, dT), strict=True):
        inverse = np.linalg.inv(np.eye(x.shape[-1]) + x)
        np.testing.assert_allclose(value, inverse, atol=1e-12)
        np.testing.assert_allclose(tangent, -inverse @ dx @ inverse, atol=1e-11)


@pytest.mark.parametrize("length", [3, 65])
def test_chunks_of_a_delta_rule_give_the_values_of_the_loop(length: int) -> None:
    """Rank 1: in structures of rank 2 a block of four rows has two steps, and T² = 0 there."""
    system = zoo.system("low_rank_delta", length)
    u, h0 = zoo.tokens(system, length), zoo.state(system)
    by_step, by_chunk = (
        compiled_scan(system, jnp.asarray(u), h0, method=method)
        for method in ("sequential", "chunked")
    )
    for found, expected in zip(by_chunk, by_step, strict=True):
        assert error(found, expected) < 1e-12
