"""Gramians against N × N recursions in NumPy, and against SciPy where nothing varies in time."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from dsfjax.analysis import gramians, hankel_singular_values, mean_gramians
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    DiagonalPlusLowRank,
    InnerOutput,
    OuterInput,
    System,
    rescale,
    to_dense,
)
from tests import systems_zoo as zoo
from tests.analysis.cases import FAST, slow_unless
from tests.engine_runs import compiled
from tests.reference_loop import error

L, AT = 9, (2, 8, 5)
at_some = compiled(gramians, at=AT, length=L)
NAMES = (*zoo.MAIN, "scalar_lti", "dense_output", "low_rank_constant", "dense_complex")


def on_values(system: System) -> System:
    """The system that reads values: white tokens are white values."""
    if isinstance(system.B, DenseInput) or isinstance(system.C, DenseOutput):
        return system
    return dataclasses.replace(system, B=dataclasses.replace(system.B, W=None), D=None)  # type: ignore[type-var]


def recursions(system: System) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """P_t and Q_t of all steps, N × N."""
    dense = to_dense(system, length=L)
    A, B, C = (np.asarray(x) for x in (dense.A, dense.B, dense.C))
    if system.C.before_update:  # what a state shows begins with the step after it, if it is kept
        after = np.zeros(L - 1, bool) if system.reset is None else np.asarray(system.reset)[1:]
        C = np.concatenate([np.where(after[:, None, None], 0, C[1:]), np.zeros_like(C[:1])])
    P, Q = [B[0] @ B[0].conj().T], [C[-1].conj().T @ C[-1]]
    for t in range(1, L):
        P.append(A[t] @ P[-1] @ A[t].conj().T + B[t] @ B[t].conj().T)
        t = L - 1 - t
        Q.append(C[t].conj().T @ C[t] + A[t + 1].conj().T @ Q[-1] @ A[t + 1])
    return P, Q[::-1]


def written_out(blocks: np.ndarray, system: System) -> np.ndarray:
    """The N × N matrix of blocks (H, c, n, n)."""
    heads, n, p = system.state_shape
    if blocks.shape[-1] == system.num_states:
        return blocks[0, 0]
    full = np.zeros((heads, n, p, heads, n, p), blocks.dtype)
    for h in range(heads):
        for j in range(p):
            full[h, :, j, h, :, j] = blocks[h, j if blocks.shape[1] > 1 else 0]
    return full.reshape(system.num_states, -1)


@pytest.mark.parametrize("name", slow_unless({*FAST, "dense"}, NAMES))
def test_lyapunov_recursions(name: str) -> None:
    system = zoo.system(name, L)
    found = at_some(system)
    P, Q = recursions(on_values(system))
    for i, t in enumerate(AT):
        assert error(written_out(np.asarray(found.controllability[i]), system), P[t]) < 1e-12
        assert error(written_out(np.asarray(found.observability[i]), system), Q[t]) < 1e-12


@pytest.mark.parametrize("name", ["scalar", "diagonal_factored", "dense_output"])
def test_means_over_all_steps(name: str) -> None:
    system = zoo.system(name, L)
    found = mean_gramians(system)
    for got, each in zip(found, recursions(on_values(system)), strict=True):
        assert error(written_out(np.asarray(got), system), np.mean(each, axis=0)) < 1e-12


@pytest.mark.parametrize("name", ["scalar", "diagonal_factored", "dense", "complex_lti"])
def test_hankel_singular_values(name: str) -> None:
    system = zoo.system(name, L)
    got = np.asarray(hankel_singular_values(at_some(system)))
    P, Q = recursions(on_values(system))
    copies = system.num_states // math.prod(got.shape[1:])
    for i, t in enumerate(AT):
        expected = np.sqrt(np.maximum(np.real(np.linalg.eigvals(P[t] @ Q[t])), 0))
        one = np.sort(np.repeat(got[i].reshape(-1), copies))
        np.testing.assert_allclose(one, np.sort(expected), atol=1e-7 * expected.max())
    assert (np.diff(got, axis=-1) <= 0).all()


def test_hankel_singular_values_do_not_depend_on_coordinates() -> None:
    system = zoo.system("diagonal_given", L)
    log_t = jnp.asarray(np.random.default_rng(0).normal(size=(L, zoo.H)))
    values = [hankel_singular_values(at_some(s)) for s in (system, rescale(system, log_t))]
    assert error(values[1], values[0]) < 1e-7


@pytest.mark.parametrize("name", ["diagonal_factored", "complex_pairs"])
def test_long_sequences_are_cut_into_segments(name: str) -> None:
    """Recursions between neighbouring steps, at both ends of segments; order and repeats kept."""
    length, at = 150, (64, 63, 149, 0, 1, 64, 128, 127, 148)
    system = zoo.system(name, length)
    P, Q = compiled(gramians, at=at)(system)
    dense = to_dense(on_values(system))
    A, B, C = (np.asarray(x) for x in (dense.A, dense.B, dense.C))
    np.testing.assert_array_equal(P[0], P[5])
    for now, before in ((0, 1), (4, 3), (6, 7), (2, 8)):
        t = at[now]
        assert t == at[before] + 1
        P_now, P_before, Q_now, Q_before = (
            written_out(np.asarray(x), system) for x in (P[now], P[before], Q[now], Q[before])
        )
        expected = A[t] @ P_before @ A[t].conj().T + B[t] @ B[t].conj().T
        assert error(P_now, expected) < 1e-12
        expected = C[t - 1].conj().T @ C[t - 1] + A[t].conj().T @ Q_now @ A[t]
        assert error(Q_before, expected) < 1e-12


def stable_matrix(rng: np.random.Generator, n: int) -> np.ndarray:
    A = rng.normal(size=(n, n))
    return 0.97 * A / np.abs(np.linalg.eigvals(A)).max()


def constant_systems() -> dict[str, System]:
    rng = np.random.default_rng(0)
    heads, n, p = 2, 5, 3
    maps = (
        OuterInput(jnp.asarray(rng.normal(size=(1, heads, n)))),
        InnerOutput(jnp.asarray(rng.normal(size=(1, heads, n)))),
    )
    shape = (heads, n, p)
    matrices = np.stack([stable_matrix(rng, n) for _ in range(heads)])[None]
    decays = jnp.asarray(np.log(rng.uniform(0.2, 0.98, (1, heads, n, 1))))
    w, z = 0.2 * rng.normal(size=(2, 1, heads, n, 2))
    wide = DenseInput(jnp.asarray(rng.normal(size=(1, 8, 3)) + 1j * rng.normal(size=(1, 8, 3))))
    tall = DenseOutput(jnp.asarray(rng.normal(size=(1, 4, 8)) + 1j * rng.normal(size=(1, 4, 8))))
    rotating = jnp.asarray(np.log(rng.uniform(0.5, 0.98, 8)) + 1j * rng.uniform(-3, 3, 8))
    return {
        "diagonal": System(Diagonal(decays), *maps, state_shape=shape),
        "dense": System(Dense(jnp.asarray(matrices)), *maps, state_shape=shape),
        "low rank": System(
            DiagonalPlusLowRank(decays[..., 0] - 0.5, jnp.asarray(w), jnp.asarray(z)),
            *maps,
            state_shape=shape,
        ),
        "complex, dense maps": System(
            Diagonal(rotating.reshape(1, 1, 8, 1)), wide, tall, state_shape=(1, 8, 1)
        ),
    }


@pytest.mark.parametrize("name", list(constant_systems()))
def test_constant_systems_agree_with_scipy(name: str) -> None:
    system = constant_systems()[name]
    dense = to_dense(system)
    A, B, C = (np.asarray(x)[0] for x in (dense.A, dense.B, dense.C))
    assert np.abs(np.linalg.eigvals(A)).max() < 1
    P = scipy.linalg.solve_discrete_lyapunov(A, B @ B.conj().T)
    Q = scipy.linalg.solve_discrete_lyapunov(A.conj().T, C.conj().T @ C)
    found = compiled(gramians)(system)
    assert error(written_out(np.asarray(found.controllability[0]), system), P) < 1e-10
    assert error(written_out(np.asarray(found.observability[0]), system), Q) < 1e-10
    expected = np.sort(np.sqrt(np.maximum(np.linalg.eigvals(P @ Q).real, 0)))
    got = np.asarray(hankel_singular_values(found))
    got = np.sort(np.repeat(got.reshape(-1), len(expected) // got.size))
    np.testing.assert_allclose(got, expected, atol=1e-7 * expected.max())


def test_unstable_systems_have_no_gramian_over_infinite_time() -> None:
    system = constant_systems()["dense"]
    A = Dense(system.A.array.at[0, 1].multiply(1.5))  # type: ignore[union-attr]
    P, Q = gramians(dataclasses.replace(system, A=A))
    for x in (np.asarray(P), np.asarray(Q)):
        assert np.isnan(x[0, 1]).all() and np.isfinite(x[0, 0]).all()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="KernelSystem has no finite state"):
        gramians(zoo.kernel_system(L))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected steps in \[0, 9\)"):
        gramians(zoo.system("scalar", L), at=(9,))
    with pytest.raises(ValueError, match="expected length 9"):
        gramians(zoo.system("scalar", L), length=10)


@pytest.mark.slow
def test_four_thousand_states_take_seconds() -> None:
    rng = np.random.default_rng(0)
    length, n = 512, 4096

    def vectors() -> jax.Array:
        return jnp.asarray(rng.normal(size=(length, 1, n)), jnp.float32)

    decay = jnp.asarray(-0.1 * rng.exponential(size=(length, 1, n, 1)), jnp.float32)
    b = vectors()
    system = System(Diagonal(decay), OuterInput(b), InnerOutput(vectors()), state_shape=(1, n, 1))
    run = jax.jit(gramians)
    jax.block_until_ready(run(system))
    start = time.perf_counter()
    P = np.asarray(run(system).controllability[0, 0, 0])
    assert time.perf_counter() - start < 20
    a, b64 = np.asarray(decay, np.float64)[:, 0, :, 0], np.asarray(b, np.float64)[:, 0, :]
    before = np.exp(np.cumsum(a[256:0:-1], axis=0)[::-1])  # products of the steps s + 1 … 256
    Z = np.concatenate([before, np.ones((1, n))]) * b64[:257]
    assert error(P[:50], Z[:, :50].T @ Z) < 1e-5
