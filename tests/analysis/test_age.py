"""Mean ages against weights that are multiplied out."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import mean_age
from dsfjax.core import DenseInput, DenseOutput, InnerOutput, OuterInput, System, to_dense
from dsfjax.engines import materialize
from tests import systems_zoo as zoo
from tests.analysis.cases import FAST, slow_unless
from tests.engine_runs import compiled
from tests.reference_loop import error

L = 9
age = compiled(mean_age, length=L)


def of_weights(w: np.ndarray) -> np.ndarray:
    """Mean of t − s with weights (…, t, s)."""
    t = np.arange(L)
    return (w * (t[:, None] - t)).sum(axis=-1) / w.sum(axis=-1)


def entrywise(system: System) -> np.ndarray:
    """|C_t| |A_t| ⋯ |A_{s+1}| |B_s| of a diagonal A summed over the tokens, (d_out, t, s)."""
    dense = to_dense(system, length=L)
    A, B, C = (np.abs(np.asarray(x)) for x in (dense.A, dense.B, dense.C))
    w = np.zeros((C.shape[1], L, L))
    for s in range(L):
        h = B[s].sum(axis=1)
        for t in range(s, L):
            h = A[t] @ h if t > s else h
            w[:, t, s] = C[t] @ h
    return w


@pytest.mark.parametrize(
    "name",
    slow_unless(
        {*FAST, "diagonal_per_channel", "complex_pairs"},
        ["scalar", "scalar_groups", "scalar_lti", "scalar_summed", "scalar_given"]
        + ["diagonal_per_state", "diagonal_per_channel", "diagonal_factored"]
        + ["diagonal_extremes", "complex_pairs"],
    ),
)
def test_diagonal_transitions(name: str) -> None:
    system = zoo.system(name, L)
    heads, _, p = system.state_shape
    assert isinstance(system.B, OuterInput)
    # The plain system on values: no value map, normaliser, gate or skip.
    plain = System(
        system.A,
        OuterInput(system.B.b, system.B.scale),
        InnerOutput(system.C.c),  # type: ignore[union-attr]
        reset=system.reset,
        state_shape=system.state_shape,
    )
    expected = of_weights(entrywise(plain)).reshape(heads, p, L).transpose(2, 0, 1)
    got = np.asarray(age(system))
    assert got.shape[2] in (1, p)
    assert error(np.broadcast_to(got, expected.shape), expected) < 1e-12


@pytest.mark.parametrize(
    "name",
    slow_unless(
        {"diagonal_gated", "dense"}, ["diagonal_gated", "scalar_summed", "low_rank", "dense"]
    ),
)
def test_weights_are_those_of_the_kernel(name: str) -> None:
    """One state per channel, positive features, and states that mix: |Φ| itself."""
    system = zoo.system(name, L)
    phi = np.abs(np.asarray(materialize(system)))
    expected = of_weights(phi.reshape(phi.shape[0], -1, L, L)).transpose(2, 0, 1)
    got = np.asarray(age(system))
    assert error(np.broadcast_to(got, expected.shape), expected) < 1e-12


def test_kernel_system() -> None:
    system = zoo.kernel_system(L)
    expected = of_weights(np.asarray(materialize(system))).T[:, :, None]
    assert error(age(system), expected) < 1e-12


def test_dense_maps_around_a_diagonal() -> None:
    system = zoo.system("complex_lti", L)
    assert isinstance(system.B, DenseInput) and isinstance(system.C, DenseOutput)
    expected = of_weights(entrywise(system)).T[:, None]
    assert error(age(system), expected) < 1e-12


def test_nothing_read_is_nan_and_a_reset_makes_young() -> None:
    system = zoo.system("scalar_no_reset", L)
    silent = System(
        system.A,
        OuterInput(jnp.ones((1, 1, zoo.N))),
        InnerOutput(jnp.ones((L, 1, zoo.N)).at[3].set(0)),
        reset=jnp.zeros(L, bool).at[6].set(True),
        state_shape=zoo.SHAPE,
    )
    got = np.asarray(age(silent))
    assert np.isnan(got[3]).all() and not np.isnan(np.delete(got, 3, axis=0)).any()
    np.testing.assert_allclose(got[[0, 6]], 0, atol=1e-14)
    assert (got[[1, 5, 7]] > 0).all()


def test_dense_maps_around_a_mixing_transition_weigh_tokens_as_a_whole() -> None:
    system = zoo.system("dense", L)
    C = DenseOutput(
        jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, system.num_states)))
    )
    system = System(system.A, system.B, C, state_shape=system.state_shape)
    weight = np.abs(np.asarray(materialize(system, full=True))).sum(axis=3)  # (L, d_out, L)
    distance = np.subtract.outer(np.arange(L), np.arange(L))[:, None]
    expected = (weight * distance).sum(axis=2) / weight.sum(axis=2)
    np.testing.assert_allclose(mean_age(system)[:, 0], expected, rtol=1e-12, atol=1e-14)
