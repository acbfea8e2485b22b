"""Sums and series of systems, and cutting and joining in time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax import Diagonal, concat_time, parallel, series, slice_time
from dsfjax.core import flip_time
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 6
# Tokens of width 5; outputs of width 8 and of width 6.
WIDE = ["scalar", "scalar_summed", "diagonal_factored", "dense_complex", "low_rank"]
NARROW = ["dense_maps", "dense_output", "complex_lti"]


PAIRS = [(x, y) for x in WIDE for y in WIDE[:3]] + [(x, y) for x in NARROW for y in NARROW]
# Every structure on either side once; the other pairs run with the slow tests.
PARALLEL = {
    *zip(WIDE, [*WIDE[2::-1], *WIDE[:2]], strict=True),
    *zip(NARROW, NARROW[::-1], strict=True),
}
SECOND = ("scalar_lti", "dense_complex", "scalar_summed", "complex_pairs")
SERIES = {*zip(WIDE + NARROW, 2 * SECOND, strict=True)}


def marks(pair, quick):
    return () if pair in quick else pytest.mark.slow


@pytest.mark.parametrize(
    ("a", "b"), [pytest.param(*pair, marks=marks(pair, PARALLEL)) for pair in PAIRS]
)
def test_parallel_is_the_sum(a, b):
    first, second = zoo.system(a, L), zoo.system(b, L, seed=1)
    u = zoo.tokens(first, L)
    both = compiled(parallel)(first, second)
    assert not both.is_complex
    expected = reference.run(first, u).y + reference.run(second, u).y
    assert reference.error(reference.run(both, u).y, expected) < 1e-12


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(*pair, marks=marks(pair, SERIES))
        for pair in ((a, b) for b in SECOND for a in WIDE + NARROW)
    ],
)
def test_series_is_one_after_the_other(a, b):
    first, second = zoo.system(a, L), zoo.system(b, L, seed=1)
    if first.output_width != second.token_width:
        second = with_tokens_of_width(second, first.output_width)
    u = zoo.tokens(first, L)
    expected = reference.run(second, reference.run(first, u).y).y
    assert reference.error(reference.run(compiled(series)(first, second), u).y, expected) < 1e-12


def with_tokens_of_width(system, width):
    """Another value map; a skip from the token has to go with it."""
    heads, _, p = system.state_shape
    W = jnp.cos(jnp.arange(heads * p * width, dtype=float)).reshape(heads * p, width)
    return dataclasses.replace(system, B=dataclasses.replace(system.B, W=W), D=None)


@pytest.mark.parametrize("compose", [parallel, series])
def test_widths_and_lengths_must_fit(compose):
    wide, narrow = zoo.system("scalar", L), zoo.system("dense_output", L)
    with pytest.raises(ValueError, match=rf"{compose.__name__}: expected .*width"):
        compose(narrow, wide)
    square = zoo.system("scalar_lti", 1)
    long = dataclasses.replace(square, reset=jnp.zeros(L, bool))
    with pytest.raises(ValueError, match=rf"{compose.__name__}: expected systems of one length"):
        compose(long, dataclasses.replace(square, reset=jnp.zeros(L + 1, bool)))


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, L - 1), max_size=3), name=st.sampled_from(zoo.NAMES))
def test_slices_join_to_the_whole(cuts, name):
    system = zoo.system(name, L)
    edges = [0, *sorted(cuts), L]
    parts = [slice_time(system, a, b) for a, b in zip(edges, edges[1:], strict=False)]
    assert [p.length for p in parts] == [b - a for a, b in zip(edges, edges[1:], strict=False)]
    whole = concat_time(*parts)
    assert whole.length == L
    assert type(whole.A) is type(system.A) and whole.state_shape == system.state_shape
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(system), strict=True):
        np.testing.assert_array_equal(a, b)


def test_join_writes_out_constants_that_differ():
    a, b = zoo.system("scalar_constant", 3), zoo.system("scalar_constant", 4, seed=1)
    b = dataclasses.replace(b, B=dataclasses.replace(b.B, W=a.B.W))  # type: ignore[union-attr]
    joined = concat_time(a, b)
    u = zoo.tokens(joined, 7)
    assert joined.A.log_a.shape == (7, 2)  # type: ignore[union-attr]
    first = reference.run(a, u[:3])
    second = reference.run(dataclasses.replace(b, D=b.D), u[3:], first.h_last)
    expected = np.concatenate([first.y, second.y])
    assert reference.error(reference.run(joined, u).y, expected) < 1e-12


def test_join_refuses_what_has_no_time_axis_and_differs():
    a, b = zoo.system("diagonal_factored", 3), zoo.system("diagonal_factored", 3, seed=1)
    with pytest.raises(ValueError, match=r"Factored.rate has no time axis"):
        concat_time(a, b)
    assert isinstance(b.A, Diagonal)
    with pytest.raises(ValueError, match=r"OuterInput.W has no time axis"):
        concat_time(a, dataclasses.replace(b, A=a.A))


def test_join_refuses_other_structures():
    with pytest.raises(ValueError, match="expected systems of one structure"):
        concat_time(zoo.system("scalar", 3), zoo.system("diagonal_full", 3))
    with pytest.raises(ValueError, match="at least one system"):
        concat_time()


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (2, 2), (3, 2), (0, L + 1)])
def test_slices_stay_inside(start, stop):
    with pytest.raises(ValueError, match=rf"0 ≤ start < stop ≤ {L}, got {start}, {stop}"):
        slice_time(zoo.system("scalar", L), start, stop)


@pytest.mark.parametrize("name", zoo.EVERY)
def test_flip_twice(name):
    """Only a reset at the first step is lost: nothing stands before it in either direction."""
    system = zoo.system(name, L)
    again = flip_time(flip_time(system))
    if system.reset is not None:
        system = dataclasses.replace(system, reset=system.reset.at[0].set(False))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(system), strict=True):
        np.testing.assert_array_equal(a, b)


@given(reset=st.lists(st.booleans(), min_size=L, max_size=L))
def test_flip_keeps_documents(reset):
    system = dataclasses.replace(zoo.system("scalar", L), reset=jnp.array(reset))
    flipped = flip_time(system).reset
    assert flipped is not None
    document = np.cumsum(reset)
    for t in range(1, L):
        assert bool(flipped[L - t]) == (document[t] != document[t - 1])


def test_kernel_systems():
    system = zoo.kernel_system(L)
    parts = slice_time(system, 0, 2), slice_time(system, 2, L)
    whole = concat_time(*parts)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(system), strict=True):
        np.testing.assert_array_equal(a, b)
