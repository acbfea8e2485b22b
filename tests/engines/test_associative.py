"""The monoid of affine maps: composition is associative and acts as the maps in turn."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax.engines.associative import compose

ACTIONS = {"diagonal": (jnp.multiply, (2, 3, 1)), "dense": (jnp.matmul, (2, 3, 3))}


def maps(seed: int, structure: str, number: int):
    rng = np.random.default_rng(seed)
    shape = ACTIONS[structure][1]
    return [
        (jnp.asarray(rng.normal(size=(1, *shape))), jnp.asarray(rng.normal(size=(1, 2, 3, 4))))
        for _ in range(number)
    ]


@pytest.mark.parametrize("structure", ACTIONS)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_associativity(structure, seed):
    then = partial(compose, dense=structure == "dense")
    f, g, h = maps(seed, structure, 3)
    left = then(then(f, g), h)
    right = then(f, then(g, h))
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("structure", ACTIONS)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_composition_does_one_map_and_then_the_other(structure, seed):
    act = ACTIONS[structure][0]
    early, late = maps(seed, structure, 2)
    x = jnp.asarray(np.random.default_rng(seed + 1).normal(size=(1, 2, 3, 4)))
    A, f = compose(early, late, dense=structure == "dense")
    in_turn = act(late[0], act(early[0], x) + early[1]) + late[1]
    np.testing.assert_allclose(act(A, x) + f, in_turn, rtol=1e-12, atol=1e-12)
