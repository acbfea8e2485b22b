"""Summaries of stretches of steps against the scan of all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    DenseInput,
    Diagonal,
    InnerOutput,
    OuterInput,
    System,
    combine,
    scan,
    slice_time,
    summarize,
)
from tests import systems_zoo as zoo
from tests.systems_zoo import system as zoo_system

FAST = ("scalar_summed", "low_rank")
SLOW = (
    "diagonal_factored",
    "scalar_constant",
    "diagonal_extremes",
    "complex_per_state",
    "dense_shared",
    "dense_maps",
)
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
CUTS = (0, 5, 6, 13)


def close(x, y):
    assert np.max(np.abs(x - y)) <= 1e-13 * np.max(np.abs(y))


@pytest.mark.parametrize("resets", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", NAMES)
def test_summaries_are_the_scan(name, resets):
    """Applied one after the other, or combined first in either order: the same last state."""
    system = zoo_system(name, CUTS[-1])
    if not resets:
        system = dataclasses.replace(system, reset=None)
    u, h0 = zoo.tokens(system, CUTS[-1]), zoo.state(system)
    expected = scan(system, u, h0, method="sequential")[1]
    parts = [
        summarize(slice_time(system, i, j), u[i:j]) for i, j in zip(CUTS, CUTS[1:], strict=False)
    ]
    h = h0
    for part in parts:
        h = part.apply(h)
    close(h, expected)
    a, b, c = parts
    close(combine(combine(a, b), c).apply(h0), expected)
    close(combine(a, combine(b, c)).apply(h0), expected)


def test_a_reset_ends_a_nan():
    system = zoo_system("scalar_no_reset", 4)
    system = dataclasses.replace(system, reset=jnp.array([False, False, True, False]))
    u = zoo.tokens(system, 4)
    after = summarize(system, u).apply(jnp.full(system.carried_shape, jnp.nan))
    close(after, scan(system, u)[1])


@pytest.mark.slow
def test_associative_scan_over_chunks():
    """The states at the boundaries are prefixes of summaries."""
    system = dataclasses.replace(zoo_system("diagonal_per_state", 12), reset=None)
    u = zoo.tokens(system, 12)
    states = scan(system, u, return_states=True)[2]
    parts = [summarize(slice_time(system, i, i + 3), u[i : i + 3]) for i in range(0, 12, 3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    prefixes = jax.lax.associative_scan(jax.vmap(combine), stacked)
    close(prefixes.Q, states[2::3])


def test_a_complex_decay_of_zero():
    """(−∞ + 0i) times a number of steps is −∞ + 0i, also between chunks."""
    log_a = jnp.full((1, 1, 2, 1), -jnp.inf, jnp.complex128)
    ones = jnp.ones((1, 1, 2), jnp.complex128)
    parts = Diagonal(log_a), OuterInput(ones), InnerOutput(ones)
    system = System(*parts, state_shape=(1, 2, 1))
    u = jnp.arange(1.0, 81.0)[:, None]
    close(
        summarize(system, u).apply(jnp.ones((1, 2, 1), jnp.complex128)), jnp.full((1, 2, 1), 80.0)
    )
    full = System(Diagonal(log_a), DenseInput(ones[0][..., None]), parts[2], state_shape=(1, 2, 1))
    for one in (system, full):
        close(scan(one, u, method="chunked")[0], 2 * u)
