"""A sequence may be cut anywhere: carrying the state over the cut changes nothing."""

import jax.numpy as jnp
import pytest

from dsfjax import slice_time, step
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled_step, inputs, methods, run_all

CUTS = {8: range(1, 8), 65: (1, 64), 257: (64, 100, 256)}


def assert_cut_changes_nothing(name: str, length: int, cut: int) -> None:
    system, u, h0 = inputs(name, length)
    expected = reference.run(system, u, h0)
    for method in methods(system):
        y_1, h = run_all(slice_time(system, 0, cut), u[:cut], h0)[method]
        y_2, h = run_all(slice_time(system, cut, length), u[cut:], h)[method]
        assert reference.error(jnp.concatenate([y_1, y_2]), expected.y) < 1e-12, method
        assert reference.error(h, expected.h_last) < 1e-12, method


@pytest.mark.parametrize(
    "length", [65, *(pytest.param(x, marks=pytest.mark.slow) for x in (8, 257))]
)
@pytest.mark.parametrize(
    "name", zoo.slow_unless(["scalar_summed"], ["scalar_summed", "diagonal_per_state", "dense"])
)
def test_cut_anywhere(name, length):
    for cut in CUTS[length]:
        assert_cut_changes_nothing(name, length, cut)


@pytest.mark.parametrize("name", zoo.slow_unless(zoo.FEW))
def test_cut_of_every_structure(name):
    assert_cut_changes_nothing(name, 6, 3)


@pytest.mark.parametrize("cut", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_cut_in_reverse(cut):
    """The later part comes first; a reset at the cut separates the two."""
    system, u, h0 = inputs("scalar", 6)
    expected = reference.run(system, u, h0, reverse=True)
    y_2, h = run_all(slice_time(system, cut, 6), u[cut:], h0, reverse=True)["chunked"]
    assert system.reset is not None
    h = jnp.where(system.reset[cut], 0, h)
    y_1, h = run_all(slice_time(system, 0, cut), u[:cut], h, reverse=True)["chunked"]
    assert reference.error(jnp.concatenate([y_1, y_2]), expected.y) < 1e-12
    assert reference.error(h, expected.h_last) < 1e-12


@pytest.mark.parametrize("name", zoo.EVERY)
def test_step_by_step(name):
    """Decoding: the constant-memory step is `scan` cut after every token."""
    system, u, h = inputs(name, 4)
    expected = reference.run(system, u, h)
    for t in range(4):
        y, h_new = compiled_step(slice_time(system, t, t + 1), u[t], h)
        assert (y.dtype, h_new.dtype, h_new.shape) == (u.dtype, h.dtype, h.shape)
        assert reference.error(y, expected.y[t]) < 1e-12
        assert reference.error(h_new, expected.states[t]) < 1e-12
        h = h_new


def test_the_state_of_no_past_is_zero():
    system, u, h0 = inputs("scalar_summed", 5)
    zero = jnp.zeros_like(h0)
    first = slice_time(system, 0, 1)
    assert reference.error(step(first, u[0], None)[0], step(first, u[0], zero)[0]) == 0
