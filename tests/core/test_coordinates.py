"""Changes of coordinates leave the input–output map alone (and are what they say)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfjax import Diagonal, Factored, Scalar, pad_state, rescale, to_dense
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.draw import Draw
from tests.engine_runs import compiled

L = 5


@pytest.mark.parametrize("per_head", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", zoo.EVERY)
def test_rescale_keeps_outputs(name, per_head):
    system = zoo.system(name, L)
    heads = system.state_shape[0]
    log_t = Draw("log_t", L, 0).normal(*((L, heads) if per_head else (L,)))
    u, h0 = zoo.tokens(system, L), zoo.state(system)
    new = compiled(rescale)(system, log_t)
    expected, got = reference.run(system, u, h0), reference.run(new, u, h0)
    assert type(new.A) is type(system.A)
    assert reference.error(got.y, expected.y) < 1e-12
    scale = np.exp(np.broadcast_to(np.reshape(log_t, (L, -1)), (L, heads)))[:, :, None, None]
    assert reference.error(got.states, scale * expected.states) < 1e-12


@pytest.mark.parametrize("name", zoo.slow_unless({*zoo.FEW, "scalar_given", "dense_maps"}))
def test_rescale_transforms_the_paper_matrices(name):
    """Λ̃_t = T_t Λ_t T_{t−1}⁻¹ and B̃_t = T_t B_t, also where a normaliser is folded in."""
    system = zoo.system(name, L)
    log_t, dense = Draw("log_t", L, 0).normal(L), compiled(to_dense, length=L)
    old, new = (dense(s) for s in (system, compiled(rescale)(system, log_t)))
    t = np.exp(np.asarray(log_t))[:, None, None]
    before = np.concatenate([np.ones((1, 1, 1)), t[:-1]])
    assert reference.error(new.A, t / before * np.asarray(old.A)) < 1e-12
    assert reference.error(new.B, t * np.asarray(old.B)) < 1e-12
    read = before if system.C.before_update else t
    assert reference.error(new.C, np.asarray(old.C) / read) < 1e-12


@settings(max_examples=30)
@given(log_t=st.lists(st.floats(-20, 20), min_size=L, max_size=L))
def test_rescale_and_back(log_t):
    system = zoo.system("scalar_groups", L)
    log_t = np.asarray(log_t)
    there = rescale(system, jnp.asarray(log_t))
    back = rescale(there, jnp.asarray(-log_t))
    u = zoo.tokens(system, L)
    assert reference.error(reference.run(back, u).y, reference.run(system, u).y) < 1e-11
    assert isinstance(back.A, Scalar) and isinstance(system.A, Scalar)
    np.testing.assert_allclose(back.A.log_a, system.A.log_a, rtol=1e-12, atol=1e-12)


def test_rescale_refuses_other_shapes():
    system = zoo.system("scalar", L)
    draw = Draw("log_t", L, 0)
    for shape in [(L + 1,), (L, 3)]:
        with pytest.raises((ValueError, TypeError)):
            rescale(system, draw.normal(*shape))
    with pytest.raises(ValueError, match=r"expected log_t of shape \(5,\) or \(5, 2\), got \(6,\)"):
        rescale(system, draw.normal(L + 1))


PADDABLE = [name for name in zoo.NAMES if "over_channels" not in name]


@pytest.mark.parametrize("more", [*(pytest.param(x, marks=pytest.mark.slow) for x in (0, 1)), 4])
@pytest.mark.parametrize("name", zoo.slow_unless({*zoo.FEW, "complex_pairs"}, PADDABLE))
def test_lemma_2(name, more):
    """A larger state expansion can represent what a smaller one does; the new states stay 0."""
    system = zoo.system(name, L)
    heads, n, p = system.state_shape
    new = compiled(pad_state, n=n + more)(system)
    u = zoo.tokens(system, L)
    expected, got = reference.run(system, u), reference.run(new, u)
    assert type(new.A) is type(system.A)
    assert new.state_shape == (heads, n + more, p)
    assert reference.error(got.y, expected.y) < 1e-12
    assert reference.error(got.states[:, :, :n], expected.states) < 1e-12
    assert np.all(got.states[:, :, n:] == 0)


def test_padding_keeps_factors():
    new = pad_state(zoo.system("diagonal_factored", L), 7)
    assert isinstance(new.A, Diagonal)
    assert isinstance(new.A.log_a, Factored)


def test_padding_cannot_shrink():
    with pytest.raises(ValueError, match=r"expected n ≥ 3.*got 2"):
        pad_state(zoo.system("scalar", L), 2)


def test_padding_is_refused_where_outputs_are_states():
    system = zoo.system("over_channels", L)
    with pytest.raises(ValueError, match="one output per state"):
        pad_state(system, 5)
