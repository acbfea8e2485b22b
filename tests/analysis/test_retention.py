"""What is left of a token, against taking that token away."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import agreement, eigenvalues, normalizers, retention
from dsfjax.core import DenseOutput
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.analysis.cases import FAST, slow_unless
from tests.engine_runs import compiled

L, MARKS = 9, jnp.array([0, 4])
follow = compiled(retention)


def without(u: np.ndarray, s: int) -> np.ndarray:
    return np.where(np.arange(L)[:, None] == s, 0, u)


def relative(size: np.ndarray, s: int) -> np.ndarray:
    left = np.full(size.shape, np.nan)
    with np.errstate(invalid="ignore"):  # 0/0 of a trace that is cut before it is ever seen
        left[s:] = size[s:] / size[s]
    return left


@pytest.mark.parametrize(
    "name",
    slow_unless(
        {*FAST, "dense_maps"}, [*zoo.MAIN, "scalar_given", "dense_shared", "complex_pairs"]
    ),
)
def test_measured_by_intervention(name: str) -> None:
    """The whole sequence with and without the token, run by the reference loop."""
    system = zoo.system(name, L)
    heads, p = system.state_shape[0], system.state_shape[2]
    u = np.asarray(zoo.tokens(system, L))
    found = follow(system, jnp.asarray(u), MARKS)
    eta = np.exp(np.asarray(normalizers(system, length=L).log))
    # Several inner products are not sorted by head.
    apart = not isinstance(system.C, DenseOutput) and system.C.rank == 1
    groups = heads if apart else 1
    bare = dataclasses.replace(system, D=None)
    whole = reference.run(bare, u)
    for i, s in enumerate(MARKS.tolist()):
        less = reference.run(bare, without(u, s))
        trace = (whole.states - less.states)[..., :p] / eta[:, :, None, None]
        state = relative(np.linalg.norm(trace.reshape(L, heads, -1), axis=-1), s)
        output = np.linalg.norm((whole.y - less.y).reshape(L, groups, -1), axis=-1)
        np.testing.assert_allclose(found.state[i], state, rtol=1e-9, atol=1e-11)
        first = s + system.C.before_update  # the first output that the token is seen in
        np.testing.assert_allclose(found.output[i], relative(output, first), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "name", slow_unless(FAST, ["scalar", "scalar_summed", "scalar_given", "scalar_complex"])
)
def test_one_decay_per_head_predicts_the_state_exactly(name: str) -> None:
    system = zoo.system(name, L)
    found = follow(system, zoo.tokens(system, L), MARKS)
    np.testing.assert_allclose(found.predicted, found.state, rtol=1e-10, atol=1e-14)


def test_prediction_multiplies_eigenvalues() -> None:
    system = zoo.system("diagonal_extremes_full", L)
    values = np.abs(np.asarray(eigenvalues(system)))
    found = follow(system, zoo.tokens(system, L), MARKS)
    for i, s in enumerate(MARKS.tolist()):
        for t in range(s, L):
            product = np.prod(values[s + 1 : t + 1], axis=0)
            expected = np.sqrt((product**2).mean(axis=-1))
            np.testing.assert_allclose(found.predicted[i, t], expected, rtol=1e-12)


def test_kernel_system() -> None:
    system = zoo.kernel_system(L)
    u = np.asarray(zoo.tokens(system, L))
    found = follow(system, jnp.asarray(u), MARKS)
    assert found.state is None
    whole = reference.attention(system, u)[0]
    values = np.abs(np.asarray(eigenvalues(system)))[:, :, 0]
    for i, s in enumerate(MARKS.tolist()):
        trace = (whole - reference.attention(system, without(u, s))[0]).reshape(L, 4, -1)
        output = relative(np.linalg.norm(trace, axis=-1), s)
        np.testing.assert_allclose(found.output[i], output, rtol=1e-9, atol=1e-11)
        product = np.nancumprod(np.where(np.arange(L)[:, None] > s, values, 1), axis=0)
        seen = found.output[i] > 0  # after a reset nothing is left, and the ratio is undefined
        np.testing.assert_allclose(np.asarray(found.predicted[i])[seen], product[seen], rtol=1e-10)


def test_a_token_that_leaves_no_trace_is_nan() -> None:
    system = zoo.system("scalar", L)
    u = jnp.asarray(without(np.asarray(zoo.tokens(system, L)), 4))
    found = follow(system, u, MARKS)
    assert np.isnan(found.state[1]).all() and not np.isnan(found.state[0]).any()


def test_agreement_of_known_pairs() -> None:
    rng = np.random.default_rng(0)
    predicted = np.exp(-rng.exponential(size=(3, 40)))
    measured = 2 * predicted * np.exp(0.3 * rng.normal(size=predicted.shape))
    ratio = np.log(measured / predicted)
    measured[0, :5], predicted[1, :7] = np.nan, 1e-9
    valid = (measured >= 1e-6) & (predicted >= 1e-6)
    expected = (
        np.corrcoef(np.log(measured[valid]), np.log(predicted[valid]))[0, 1],
        np.exp(ratio[valid].mean()),
        np.exp(np.sqrt((ratio[valid] ** 2).mean())),
        valid.sum(),
    )
    got = agreement(jnp.asarray(measured), jnp.asarray(predicted))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_tokens_must_fit() -> None:
    system = zoo.system("scalar", L)
    with pytest.raises(ValueError, match="expected length 9"):
        retention(system, zoo.tokens(system, L - 1), MARKS)
