"""Systems as pytrees: built back from any leaves, mapped over, differentiated, printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import scan, slice_time
from dsfjax.core.pytree import map_time, time_leaves
from tests import reference_loop as reference
from tests import systems_zoo as zoo


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("leaf", [None, object(), 0.0], ids=lambda x: type(x).__name__)
def test_unflatten_never_validates(name, leaf):
    system = zoo.system(name, 3)
    leaves, structure = jax.tree.flatten(system)
    built = jax.tree.unflatten(structure, [leaf] * len(leaves))
    assert type(built.A) is type(system.A)
    fields = jax.tree.leaves(built.A, is_leaf=lambda x: x is leaf)
    assert all(x is leaf for x in fields)
    absent = jax.tree.leaves(system.A, is_leaf=lambda x: x is None) if leaf is None else []
    assert len(fields) == max(len(jax.tree.leaves(system.A)), len(absent))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_round_trip(name):
    system = zoo.system(name, 3)
    leaves, structure = jax.tree.flatten(system)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    assert again.state_shape == system.state_shape
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))


def test_static_fields_are_structure():
    real, pairs = (zoo.system(name, 3) for name in ("complex_per_state", "complex_pairs"))
    assert jax.tree.structure(real) != jax.tree.structure(pairs)
    assert not any(isinstance(x, bool) for x in jax.tree.leaves(pairs))


def test_paths_are_field_names():
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(zoo.system("scalar", 3))
    ]
    assert paths == [".A.log_a", ".B.b", ".B.scale", ".B.W", ".C.c", ".C.gate", ".D.d", ".reset"]


def test_immutable():
    with pytest.raises(AttributeError):
        zoo.system("scalar", 3).reset = None  # type: ignore[misc]


def test_repr_shows_shapes_and_not_values():
    text = repr(zoo.system("scalar", 3))
    assert "A=Scalar(log_a=float64[3, 2], sign=None)" in text
    assert "state_shape=(2, 3, 4)" in text
    assert "[[" not in text


def test_map_time_leaves_constants_alone():
    system = zoo.system("diagonal_factored", 3)
    cut = map_time(lambda x: x[:1], system)
    assert cut.A.log_a.rate is system.A.log_a.rate  # type: ignore[union-attr]
    assert cut.B.W is system.B.W  # type: ignore[union-attr]
    assert {x.shape[0] for x in time_leaves(cut)} == {1}
    assert slice_time(system, 0, 1).length == 1


@pytest.mark.parametrize("name", ["scalar_summed", "diagonal_factored", "dense", "low_rank"])
def test_vmap_over_systems(name):
    systems = [zoo.system(name, 5, seed) for seed in range(3)]
    tokens = [zoo.tokens(s, 5, seed) for seed, s in enumerate(systems)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *systems)
    y, _ = jax.jit(jax.vmap(scan))(stacked, jnp.stack(tokens))
    for i, (system, u) in enumerate(zip(systems, tokens, strict=True)):
        assert reference.error(y[i], reference.run(system, u).y) < 1e-12


def test_gradients_are_systems():
    system = zoo.system("scalar", 4)
    u = zoo.tokens(system, 4)
    loss = jax.jit(lambda s: jnp.sum(scan(s, u)[0]))
    gradient = jax.grad(loss, allow_int=True)(system)
    assert jax.tree.structure(gradient) == jax.tree.structure(system)
    assert np.any(gradient.A.log_a != 0)
