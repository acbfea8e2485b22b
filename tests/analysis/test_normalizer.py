"""The paper's coordinates against the un-normalised run and the written-out matrices."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import normalized, normalizers
from dsfjax.core import InnerOutput, OuterInput, Scalar, SummedNormalizer, System, to_dense
from dsfjax.engines import materialize
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.analysis.cases import slow_unless

L = 9
WITH_ETA = (
    "scalar_summed",
    "scalar_summed_decay",
    "scalar_given",
    "diagonal_summed",
    "diagonal_given",
    "low_rank_constant",
    "dense_shared",
)


@pytest.mark.parametrize(
    "name", slow_unless({"scalar_summed", "diagonal_given", "low_rank_constant"}, WITH_ETA)
)
def test_same_outputs_and_the_papers_matrices(name: str) -> None:
    system = zoo.system(name, L)
    paper, u = normalized(system), zoo.tokens(system, L)
    assert paper.eta is None
    plain, moved = reference.run(system, u), reference.run(paper, u)
    assert reference.error(moved.y, plain.y) < 1e-12
    eta = np.exp(np.asarray(normalizers(system).log))
    states = plain.states[..., : system.state_shape[2]] / eta[:, :, None, None]
    assert reference.error(moved.states, states) < 1e-12
    expected, got = to_dense(system), to_dense(paper)
    assert reference.error(got.B, expected.B) < 1e-12
    A, Λ = (np.asarray(s.A)[1:] for s in (got, expected))
    assert reference.error(A, Λ) < 1e-12


@pytest.mark.parametrize("name", ["scalar", "complex_lti", "dense"])
def test_without_a_normaliser_nothing_changes(name: str) -> None:
    system = zoo.system(name, L)
    assert normalized(system) is system
    found = normalizers(system, length=L)
    np.testing.assert_array_equal(found.log, np.zeros((L, system.state_shape[0])))
    assert found.sign is None


def test_kernel_system() -> None:
    system = zoo.kernel_system(L)
    phi = np.asarray(materialize(system))
    t = np.arange(L)
    score = np.einsum("thm,thm->th", system.q, np.repeat(np.asarray(system.k), 2, axis=1))
    got = np.exp(np.asarray(normalizers(system).log))
    np.testing.assert_allclose(np.exp(score) / got, phi[:, t, t].T, rtol=1e-12)


def test_negative_normalisers_keep_their_sign() -> None:
    eta = np.array([1.0, -2.0, 4.0, 3.0])
    system = System(
        Scalar(jnp.zeros((1, 1))),
        OuterInput(jnp.asarray(np.diff(eta, prepend=0.0))[:, None, None]),
        InnerOutput(jnp.ones((1, 1, 1))),
        eta=SummedNormalizer(),
        state_shape=(1, 1, 1),
    )
    found = normalizers(system)
    assert found.sign is not None
    np.testing.assert_allclose(np.asarray(found.sign * jnp.exp(found.log))[:, 0], eta, rtol=1e-14)
    u = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1)))
    expected, got = reference.run(system, u), reference.run(normalized(system), u)
    assert reference.error(got.y, expected.y) < 1e-14


def test_wrong_length_is_refused() -> None:
    system = zoo.system("scalar_given", L)
    with pytest.raises(ValueError, match=f"normalizers: expected length {L}"):
        normalizers(system, length=L + 1)
    with pytest.raises(ValueError, match=f"expected length {L}"):
        normalized(dataclasses.replace(system, D=None), length=2)
