"""Every structure × method × length against a NumPy loop."""

import dataclasses

import jax.numpy as jnp
import pytest

from dsfjax import InnerOutput, OuterInput, Scalar, System
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import inputs, run_all

LENGTHS = (1, 2, 3, 7, 8, 63, 64, 65, 257)
# A single step only where it is a case of its own.
QUICK = {(name, 65) for name in zoo.MAIN} | {(name, 1) for name in ("scalar_summed", "low_rank")}
CASES = [
    pytest.param(name, length, marks=() if (name, length) in QUICK else pytest.mark.slow)
    for name in zoo.NAMES
    for length in LENGTHS
]


@pytest.mark.parametrize(("name", "length"), CASES)
def test_every_method_gives_the_values_of_the_loop(name, length):
    system, u, h0 = inputs(name, length)
    expected = reference.run(system, u, h0)
    for method, (y, h_last) in run_all(system, u, h0).items():
        assert (y.dtype, h_last.dtype) == (u.dtype, h0.dtype)
        assert reference.error(y, expected.y) < 1e-12, method
        assert reference.error(h_last, expected.h_last) < 1e-12, method


@pytest.mark.parametrize("over", ["n", "p"])
def test_readings_without_vectors_are_all_the_same(over):
    C = InnerOutput(rank=2, over=over)
    A = Scalar(jnp.log(jnp.full((1, 2), 0.5)))
    system = System(A, OuterInput(), C, state_shape=(2, 1, 1))
    u, h0 = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 1, 1))
    for method, (y, _) in run_all(system, u, h0).items():
        assert y.tolist() == [[1, 2, 1, 2], [3.5, 5, 3.5, 5]], method


@pytest.mark.parametrize("name", zoo.slow_unless(zoo.FEW))
def test_states_from_a_zero_state(name):
    system, u, h0 = inputs(name, 20)
    expected = reference.run(system, u)
    for method, out in run_all(system, u, jnp.zeros_like(h0), states=True).items():
        for x, y in zip(out, expected, strict=True):
            assert reference.error(x, y) < 1e-12, method


@pytest.mark.parametrize(
    "length", [20, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 70))]
)
@pytest.mark.parametrize("name", zoo.slow_unless(zoo.FEW, zoo.MAIN))
def test_reverse_keeps_documents_apart(name, length):
    system, u, h0 = inputs(name, length)
    expected = reference.run(system, u, h0, reverse=True)
    for method, out in run_all(system, u, h0, reverse=True, states=True).items():
        for x, y in zip(out, expected, strict=True):
            assert reference.error(x, y) < 1e-12, method


@pytest.mark.parametrize(
    "name",
    zoo.slow_unless(zoo.FEW, [name for name in zoo.MAIN if zoo.system(name, 2).reset is not None]),
)
def test_resets_at_every_step(name):
    system, u, h0 = inputs(name, 20)
    system = dataclasses.replace(system, reset=jnp.ones(20, bool))
    expected = reference.run(system, u)
    for method, out in run_all(system, u, h0, states=True).items():
        for x, y in zip(out, expected, strict=True):
            assert reference.error(x, y) < 1e-12, method
