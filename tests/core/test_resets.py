"""Reset masks of packed sequences."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax import reset_from_lengths, reset_from_segment_ids


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5), spare=st.integers(0, 3))
def test_lengths_and_ids_describe_the_same_documents(lengths, spare):
    length = sum(lengths) + spare
    sizes = [*lengths, spare] if spare else lengths
    ids = np.repeat(np.arange(len(sizes)), sizes)
    from_ids = reset_from_segment_ids(jnp.asarray(ids))
    from_lengths = reset_from_lengths(jnp.asarray(lengths), length)
    starts = np.zeros(length, bool)
    starts[np.cumsum([0, *sizes[:-1]])] = True
    np.testing.assert_array_equal(from_ids, starts)
    np.testing.assert_array_equal(from_lengths, starts)


@settings(max_examples=25)
@given(
    ids=st.lists(st.integers(0, 2), min_size=2, max_size=8),
    cut=st.integers(1, 7),
)
def test_a_cut_sequence_continues_its_segment(ids, cut):
    cut = min(cut, len(ids) - 1)
    whole = reset_from_segment_ids(jnp.asarray(ids))
    rest = reset_from_segment_ids(jnp.asarray(ids[cut:]), previous=ids[cut - 1])
    np.testing.assert_array_equal(rest, whole[cut:])


def test_documents_cut_off_at_the_end():
    assert reset_from_lengths(jnp.array([2, 9]), 4).tolist() == [True, False, True, False]


def test_one_sequence_only():
    with pytest.raises((ValueError, TypeError)):
        reset_from_segment_ids(jnp.zeros((2, 3), int))
    with pytest.raises((ValueError, TypeError)):
        reset_from_lengths(jnp.zeros((2, 3), int), 4)
