"""The monoid of affine maps: composition is associative and acts as the maps in turn."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax.engines.associative import Affine, compose

STRUCTURES = {
    "diagonal": ((2, 3, 1), None),
    "dense": (None, (2, 3, 3)),
    "diagonal and matrix": ((2, 3, 1), (2, 3, 3)),
    "scalar and matrix": ((2, 1, 1), (2, 3, 3)),
}


def maps(seed: int, structure: str, number: int):
    rng = np.random.default_rng(seed)

    def draw(shape) -> Any:
        return None if shape is None else jnp.asarray(rng.normal(size=(1, *shape)))

    diagonal, matrix = STRUCTURES[structure]
    return [Affine(draw(diagonal), draw(matrix), draw((2, 3, 4))) for _ in range(number)]


def matrix(m: Affine):
    diagonal = 0 if m.diagonal is None else np.asarray(m.diagonal) * np.eye(3)
    return diagonal + (0 if m.matrix is None else np.asarray(m.matrix))


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_associativity(structure, seed):
    f, g, h = maps(seed, structure, 3)
    left = compose(compose(f, g), h)
    right = compose(f, compose(g, h))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), left, right)


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_composition_does_one_map_and_then_the_other(structure, seed):
    early, late = maps(seed, structure, 2)
    x = np.random.default_rng(seed + 1).normal(size=(1, 2, 3, 4))
    both = compose(early, late)
    in_turn = matrix(late) @ (matrix(early) @ x + np.asarray(early.f)) + np.asarray(late.f)
    np.testing.assert_allclose(
        matrix(both) @ x + np.asarray(both.f), in_turn, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        both.linear(jnp.asarray(x)) + both.f, in_turn, rtol=1e-12, atol=1e-12
    )
