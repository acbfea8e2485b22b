"""Balanced truncation: exact where nothing is lost, and within its bound where something is."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import materialize, scan
from dsfjax.analysis import balanced_truncation, gain
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    InnerOutput,
    OuterInput,
    System,
    ValueSkip,
    pad_state,
)
from tests import systems_zoo as zoo
from tests.analysis.cases import slow_unless
from tests.engine_runs import compiled
from tests.reference_loop import error, run

L = 9


def reduce(system: System, order: int, length: int | None = None):
    return compiled(partial(balanced_truncation, order=order, length=length))(system)


def as_matrix(system: System, length: int) -> np.ndarray:
    """Φ on values (on tokens, if a map is dense) as one matrix (L·d_out, L·d), without skip."""
    B = system.B
    if isinstance(B, OuterInput) and isinstance(system.C, InnerOutput):
        B = OuterInput(B.b, B.scale)
    phi = materialize(dataclasses.replace(system, B=B, D=None), full=True, length=length)
    return np.asarray(phi).reshape(length * system.output_width, -1)


@pytest.mark.parametrize(
    "name",
    slow_unless(
        {"scalar_given", "diagonal_factored", "dense_output"},
        ["scalar_given", "diagonal_per_state", "diagonal_factored", "low_rank", "dense_maps"]
        + ["dense_output", "complex_per_state", "scalar_summed"],
    ),
)
def test_all_states_give_the_same_outputs(name: str) -> None:
    """Coordinates differ at every step, and some directions are empty near the ends and resets."""
    system = zoo.system(name, L)
    u = zoo.tokens(system, L)
    dense = isinstance(system.B, DenseInput) or isinstance(system.C, DenseOutput)
    whole = system.num_states if dense else system.state_shape[1]
    found = reduce(system, whole)
    assert error(run(found.system, u).y, run(system, u).y) < 1e-7
    assert found.bound is None
    size = np.linalg.norm(as_matrix(system, L), 2)
    assert float(found.error) < 1e-7 * size


def test_superfluous_states_are_found() -> None:
    """Three states hidden in six by a mixing matrix of every step."""
    rng = np.random.default_rng(0)
    system = pad_state(zoo.system("diagonal_per_state", L), 6)
    assert isinstance(system.A, Diagonal) and isinstance(system.B, OuterInput)
    assert isinstance(system.C, InnerOutput) and isinstance(system.A.log_a, jax.Array)
    T = np.stack([np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(L)])[:, None]
    before = np.concatenate([T[:1], T[:-1]])
    A = T @ (np.exp(np.asarray(system.A.log_a)) * before.swapaxes(-1, -2))
    b, c = (
        np.einsum("thij,tgj->tgi", np.broadcast_to(T, (L, 1, 6, 6)), x)
        for x in map(np.asarray, (system.B.b, system.C.c))
    )
    hidden = dataclasses.replace(
        system,
        A=Dense(jnp.asarray(A)),
        B=OuterInput(jnp.asarray(b), system.B.scale, system.B.W),
        C=InnerOutput(jnp.asarray(c), system.C.gate),
    )
    u = zoo.tokens(system, L)
    assert error(run(hidden, u).y, run(system, u).y) < 1e-12
    found = reduce(hidden, 3)
    assert found.system.state_shape[1] == 3
    assert float(found.singular_values[..., 3:].max()) < 1e-7 * float(found.singular_values.max())
    assert error(run(found.system, u).y, run(system, u).y) < 1e-7


@pytest.mark.parametrize(
    "kind", slow_unless({"diagonal", "complex pairs"}, ["diagonal", "dense", "complex pairs"])
)
@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_constant_systems_stay_within_twice_the_tail(kind: str, order: int) -> None:
    rng = np.random.default_rng(order)
    heads, n, length = 2, 6, 48
    b, c = rng.normal(size=(2, 1, heads, n))
    log_a = np.log(rng.uniform(0.1, 0.95, (1, heads, n, 1)))
    C = InnerOutput(jnp.asarray(c))
    if kind == "dense":
        matrix = rng.normal(size=(1, heads, n, n))
        A = Dense(jnp.asarray(0.4 * matrix / np.sqrt(n)))
    elif kind == "diagonal":
        A = Diagonal(jnp.asarray(log_a))
    else:
        A = Diagonal(jnp.asarray(log_a + 1j * rng.uniform(-3, 3, log_a.shape)))
        C = InnerOutput(jnp.asarray(c + 0j), None, True)
    D = ValueSkip(jnp.asarray(rng.normal(size=(1, heads, 1))))
    system = System(A, OuterInput(jnp.asarray(b)), C, D, state_shape=(heads, n, 2))
    found = reduce(system, order, length)
    assert found.system.length is None and found.system.state_shape == (heads, order, 2)
    values = np.asarray(found.singular_values)[0, :, 0]
    factor = 4 if kind == "complex pairs" else 2
    np.testing.assert_allclose(
        found.bound, factor * values[:, order:].sum(axis=1).max(), rtol=1e-10
    )
    difference = as_matrix(system, length) - as_matrix(found.system, length)
    measured = np.linalg.norm(difference, 2)
    np.testing.assert_allclose(found.error, measured, rtol=1e-3)
    assert 0 < float(found.error) <= float(found.bound)
    # The first value that is left out bounds any reduction from below, up to the finite length.
    if kind != "complex pairs":
        assert measured > 0.5 * values[:, order].max()
    # The skip is kept.
    u = jnp.asarray(rng.normal(size=(length, heads * 2)))
    plain = dataclasses.replace(found.system, D=None)
    skip = run(found.system, u).y - run(plain, u).y
    expected = np.repeat(np.asarray(D.d)[0, :, 0], 2) * np.asarray(u)
    np.testing.assert_allclose(skip, expected, atol=1e-12)


def test_dense_maps_are_one_block() -> None:
    system = zoo.system("complex_lti", L)
    assert isinstance(system.B, DenseInput) and isinstance(system.C, DenseOutput)
    found = reduce(system, 2, 32)
    assert found.system.state_shape == (1, 2, 1)
    assert 0 < float(found.error) <= float(found.bound)
    difference = as_matrix(system, 32) - as_matrix(found.system, 32)
    np.testing.assert_allclose(found.error, np.linalg.norm(difference, 2), rtol=1e-3)


def test_gain_is_the_largest_singular_value() -> None:
    system = zoo.system("scalar_no_reset", L)
    u = jnp.asarray(np.random.default_rng(0).normal(size=(L, zoo.H * zoo.P)))
    plain = dataclasses.replace(system, B=OuterInput(system.B.b))  # type: ignore[union-attr]
    got = jax.jit(lambda u: gain(lambda u: scan(plain, u)[0], u, iterations=L * u.shape[1]))(u)
    np.testing.assert_allclose(got, np.linalg.norm(as_matrix(plain, L), 2), rtol=1e-10)


def test_misuse_is_refused() -> None:
    system = zoo.system("diagonal_per_state", L)
    with pytest.raises(ValueError, match=r"expected an order in \[1, 3\], got 4"):
        balanced_truncation(system, 4)
    with pytest.raises(ValueError, match="expected a length"):
        balanced_truncation(zoo.system("scalar_lti", 1), 1)
    with pytest.raises(ValueError, match="KernelSystem has no finite state"):
        balanced_truncation(zoo.kernel_system(L), 1)
