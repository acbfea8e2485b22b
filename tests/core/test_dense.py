"""The paper's matrices: one loop over them gives what the structured system gives."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    InnerOutput,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    materialize,
    parallel,
    scan,
    series,
    to_dense,
)
from dsfjax.analysis import eigenvalues
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 6


@pytest.mark.parametrize("name", zoo.EVERY)
def test_densify(name):
    system = zoo.system(name, L)
    dense = compiled(to_dense, length=L)(system)
    u = zoo.tokens(system, L)
    assert dense.is_complex == system.is_complex
    assert (dense.eta, dense.reset) == (None, None)
    assert reference.error(reference.run(dense, u).y, reference.run(system, u).y) < 1e-12


def test_negative_normalizer():
    """A summed η changes its sign; matrices, series and parallel run what `scan` runs."""
    b = jnp.array([1.0, 1.0, -3.0, 2.5, 1.0])[:, None, None]
    parts = Scalar(jnp.zeros((1, 1))), OuterInput(b), InnerOutput()
    system = System(*parts, eta=SummedNormalizer(), state_shape=(1, 1, 1))
    u = jnp.arange(1.0, 6.0)[:, None]
    expected = reference.run(system, u).y
    assert reference.error(reference.run(to_dense(system), u).y, expected) < 1e-12
    both = reference.run(parallel(system, system), u).y
    assert reference.error(both, 2 * expected) < 1e-12
    twice = reference.run(series(system, system), u).y
    assert reference.error(twice, reference.run(system, expected).y) < 1e-12


def test_a_mask_of_resets_is_never_constant():
    system = dataclasses.replace(zoo.system("scalar_lti", 1), reset=jnp.array([True]))
    for call in (to_dense, materialize, eigenvalues):
        with pytest.raises(ValueError, match=rf"{call.__name__}: expected reset of shape \(3,\)"):
            call(system, length=3)
    with pytest.raises(ValueError, match="expected tokens u of shape"):
        scan(zoo.kernel_system(1), zoo.tokens(zoo.kernel_system(1), 5))


@pytest.mark.parametrize("name", ["scalar_given", "scalar_summed", "diagonal_summed"])
def test_the_state_is_divided_by_the_normaliser(name):
    """η is that of the loop: the states of the dense system are h_t / η_t."""
    system = zoo.system(name, L)
    u = zoo.tokens(system, L)
    heads, n, p = system.state_shape
    states = reference.run(system, u).states
    if name == "scalar_given":
        eta = np.exp(np.asarray(system.eta.log_eta))  # type: ignore[union-attr]
    else:
        c = np.asarray(system.C.c)  # type: ignore[union-attr]
        c = np.repeat(c, heads // c.shape[1], axis=1)
        eta = np.einsum("thn,thn->th", c, states[..., p])
    expected = states[..., :p] / eta[:, :, None, None]
    got = reference.run(to_dense(system), u).states
    assert reference.error(got, expected.reshape(L, 1, heads * n * p, 1)) < 1e-12


@pytest.mark.parametrize("name", ["scalar", "scalar_given", "dense"])
def test_steps_that_forget_have_a_zero_transition(name):
    system = zoo.system(name, 30)
    A = np.asarray(to_dense(system).A)
    reset = np.asarray(system.reset)
    assert reset.any()
    assert np.all(A[reset] == 0)
    assert (np.all(A[0] == 0)) == (system.eta is not None or bool(reset[0]))
    assert np.all(np.abs(A[~reset][1:]).max(axis=(1, 2)) > 0)


def test_order_of_states_is_row_major():
    """N flattens (H, n, p): the decay of state (h, i, j) stands at (h n + i) p + j."""
    system = zoo.system("diagonal_full", L)
    A = np.asarray(to_dense(system).A)
    decay = np.where(np.asarray(system.reset)[:, None], 0, np.exp(system.A.log_a.reshape(L, -1)))  # type: ignore[union-attr]
    assert reference.error(np.einsum("tii->ti", A), decay) < 1e-15
