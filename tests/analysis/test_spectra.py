"""Eigenvalues against the authors' numbers, and against NumPy on the written-out matrices."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import eigenvalues
from dsfjax.core import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    GivenNormalizer,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    rescale,
    to_dense,
)
from tests.analysis.cases import slow_unless
from tests.goldens import Golden

L, H, N, P = 9, 2, 3, 4
HEADS = 4  # of the golden files


def heads(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.reshape(len(x), HEADS, -1))


def elu1(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x + 1, jnp.exp(x))


def attention_signals(file: Golden, x: np.ndarray) -> tuple[jax.Array, jax.Array]:
    projected = x @ file["p.Wqkv.weight"].T + file["p.Wqkv.bias"]
    q, k = projected[:, :64], projected[:, 64:128]
    return heads(q), heads(k)


def softmax(file: Golden, x: np.ndarray) -> KernelSystem:
    q, k = attention_signals(file, x)
    return KernelSystem(q / np.sqrt(q.shape[-1]), k, num_channels=8)


def linear(file: Golden, x: np.ndarray) -> System:
    q, k = attention_signals(file, x)
    A = Scalar(jnp.zeros((1, HEADS)))
    return System(
        A,
        OuterInput(elu1(k)),
        InnerOutput(elu1(q)),
        eta=SummedNormalizer(),
        state_shape=(HEADS, q.shape[-1], 8),
    )


def normalized(file: Golden, x: np.ndarray) -> System:
    projected = x @ file["p.Wvqkn.weight"].T + file["p.Wvqkn.bias"]
    q, k, n = projected[:, 32:96], projected[:, 96:160], projected[:, 160:]
    log_eta = jax.nn.softplus(jnp.asarray(n + file["p.inner_attn.offset"]))
    return System(
        Scalar(jnp.zeros((1, HEADS))),
        OuterInput(elu1(heads(k))),
        InnerOutput(elu1(heads(q))),
        eta=GivenNormalizer(log_eta),
        state_shape=(HEADS, 16, 8),
    )


def mamba2(file: Golden, x: np.ndarray) -> System:
    dt = (x @ file["p.in_proj.weight"].T)[:, -HEADS:] + file["p.dt_bias"]
    log_a = -jax.nn.softplus(jnp.asarray(dt)) * jnp.exp(file["p.A_log"])[None]
    ones = jnp.ones((1, 1, 16))
    return System(Scalar(log_a), OuterInput(ones), InnerOutput(ones), state_shape=(HEADS, 16, 8))


@pytest.mark.parametrize(
    ("name", "build", "key"),
    [
        ("softmax", softmax, "eta_corrected"),
        ("linear", linear, "eta"),
        ("norm", normalized, "eta"),
        ("mamba2", mamba2, "eta"),
    ],
)
def test_golden(
    golden: Callable[[str], Golden], name: str, build: Callable[..., System], key: str
) -> None:
    file = golden(f"eigvals_{name}_h4")
    for x, expected in zip(file["x"], file[key], strict=True):
        got = np.asarray(jax.jit(eigenvalues)(build(file, x)))
        assert got.shape == (len(x), HEADS, 1)
        if name != "mamba2":
            assert np.isnan(got[0]).all()
            got = got[1:]
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def random_transition(
    kind: str, rng: np.random.Generator
) -> Scalar | Diagonal | DiagonalPlusLowRank | Dense:
    def log_decay(*shape: int) -> jax.Array:
        return jnp.asarray(np.log(rng.uniform(0.1, 1.0, shape)))

    match kind:
        case "scalar":
            return Scalar(log_decay(L, H))
        case "complex scalar":
            angle = jnp.asarray(rng.uniform(-3, 3, (L, H)))
            return Scalar(jax.lax.complex(log_decay(L, H), angle))
        case "per state":
            return Diagonal(log_decay(L, H, N, 1))
        case "per channel":
            return Diagonal(log_decay(L, H, 1, P))
        case "full":
            return Diagonal(log_decay(L, H, N, P))
        case "factored":
            step, rate = rng.uniform(0, 1, (L, H, P)), -rng.uniform(0.1, 2, (H, N, P))
            return Diagonal.factored(jnp.asarray(step), jnp.asarray(rate))
        case "constant":
            return Diagonal(log_decay(1, H, N, 1))
        case "low rank":
            w, z = rng.standard_normal((2, L, H, N, 2))
            return DiagonalPlusLowRank(log_decay(L, H, N), jnp.asarray(w), jnp.asarray(z))
        case "dense":
            return Dense(jnp.asarray(rng.standard_normal((L, H, N, N))))
        case _:
            return Dense(jnp.asarray(rng.standard_normal((1, N, N))))


DISTINCT = {
    "scalar": 1,
    "complex scalar": 1,
    "per state": N,
    "per channel": P,
    "full": N * P,
    "factored": N * P,
    "constant": N,
    "low rank": N,
    "dense": N,
    "shared dense": N,
}


def random_system(kind: str, normalizer: str | None, with_reset: bool) -> System:
    rng = np.random.default_rng(list(DISTINCT).index(kind))
    eta = {
        None: None,
        "given": GivenNormalizer(jnp.asarray(rng.standard_normal((L, H)))),
        "summed": SummedNormalizer(),
    }[normalizer]
    reset = jnp.zeros(L, bool).at[4].set(True) if with_reset else None
    # Positive b and c, so that a summed normaliser is positive under positive decays.
    b, c = rng.uniform(0.1, 1.0, (2, L, H, N))
    return System(
        random_transition(kind, rng),
        OuterInput(jnp.asarray(b)),
        InnerOutput(jnp.asarray(c)),
        eta=eta,
        reset=reset,
        state_shape=(H, N, P),
    )


def combinations() -> list[tuple[str, str | None, bool]]:
    found = []
    for kind in DISTINCT:
        for normalizer in (None, "given", "summed"):
            decays_vary = kind in ("per channel", "full", "factored", "complex scalar")
            signed = kind in ("low rank", "dense", "shared dense")  # η of either sign: see below
            if normalizer != "summed" or not (decays_vary or signed):
                found += [(kind, normalizer, False), (kind, normalizer, True)]
    return found


def in_order(values: np.ndarray) -> np.ndarray:
    """Sorted along the last axis by modulus, then angle, both rounded so that ties agree."""
    keys = (np.round(np.angle(values) % (2 * np.pi), 6), np.round(np.abs(values), 8))
    return np.take_along_axis(values, np.lexsort(keys, axis=-1), axis=-1)


@pytest.mark.parametrize(
    ("kind", "normalizer", "with_reset"),
    [
        # A normaliser and a reset each add steps without eigenvalues; together they show both.
        pytest.param(*case, marks=() if case[1] and case[2] else pytest.mark.slow)
        for case in combinations()
    ],
)
def test_against_written_out_matrices(kind: str, normalizer: str | None, with_reset: bool) -> None:
    system = random_system(kind, normalizer, with_reset)
    got = np.asarray(jax.jit(eigenvalues)(system))
    k = DISTINCT[kind]
    assert got.shape == (L, H, k)
    undefined = np.zeros(L, bool)
    if normalizer is not None:
        undefined[[0, 4] if with_reset else [0]] = True
    np.testing.assert_array_equal(np.isnan(got), undefined[:, None, None] & np.ones_like(got, bool))
    expected = np.linalg.eigvals(np.asarray(jax.jit(to_dense)(system).A))[~undefined]
    # Each distinct eigenvalue stands for N·P / k states.
    got = np.repeat(got[~undefined].reshape(len(expected), H * k), N * P // k, axis=1)
    np.testing.assert_allclose(in_order(got), in_order(expected), rtol=1e-8, atol=1e-10)


def test_sign_of_a_summed_normaliser() -> None:
    eta = np.array([1.0, -2.0, 4.0, 3.0])  # increments of a sum: +1, −3, +6, −1
    system = System(
        Scalar(jnp.zeros((1, 1))),
        OuterInput(jnp.asarray(np.diff(eta, prepend=0.0))[:, None, None]),
        InnerOutput(jnp.ones((1, 1, 1))),
        eta=SummedNormalizer(),
        state_shape=(1, 1, 1),
    )
    got = np.asarray(eigenvalues(system))[1:, 0, 0]
    np.testing.assert_allclose(got, eta[:-1] / eta[1:], rtol=1e-14)


def test_kernel_system_resets_and_groups() -> None:
    rng = np.random.default_rng(3)
    q, k = rng.standard_normal((70, 4, 3)), rng.standard_normal((70, 2, 3))
    reset = np.zeros(70, bool)
    reset[[20, 65]] = True
    system = KernelSystem(jnp.asarray(q), jnp.asarray(k), reset=jnp.asarray(reset), num_channels=2)
    scores = np.exp(np.einsum("thm,shm->hts", q, np.repeat(k, 2, axis=1)))
    segment = np.cumsum(reset)
    seen = (segment[:, None] == segment[None]) & np.tri(70, dtype=bool)
    eta = (scores * seen).sum(axis=2).T
    got = np.asarray(eigenvalues(system))[:, :, 0]
    first = [0, 20, 65]
    assert np.isnan(got[first]).all()
    rest = np.setdiff1d(np.arange(70), first)
    np.testing.assert_allclose(got[rest], (eta[:-1] / eta[1:])[rest - 1], rtol=1e-12)


def test_huge_normalisers_do_not_overflow() -> None:
    log_eta = jnp.array([[-2000.0], [-2001.0], [3000.0], [3000.5]])
    decay = jnp.array([[-jnp.inf], [-1.0], [5000.0], [-jnp.inf]])
    one = jnp.ones((1, 1, 1))
    system = System(
        Scalar(decay),
        OuterInput(one),
        InnerOutput(one),
        eta=GivenNormalizer(log_eta),
        state_shape=(1, 1, 2),
    )
    got = np.asarray(eigenvalues(system))[1:, 0, 0]
    np.testing.assert_allclose(got, [1.0, np.exp(-1.0), 0.0], rtol=1e-12)


def test_rescaling_moves_the_normaliser_into_the_transition() -> None:
    """Lemma 1: Λ of the paper's form is the transition in the coordinates T_t = 1/η_t."""
    system = random_system("scalar", "given", with_reset=False)
    assert isinstance(system.eta, GivenNormalizer)
    plain = dataclasses.replace(system, eta=None)
    moved = np.asarray(eigenvalues(rescale(plain, -system.eta.log_eta)))
    np.testing.assert_allclose(moved[1:], np.asarray(eigenvalues(system))[1:], rtol=1e-12)


def test_undefined_where_llvm_optimises() -> None:
    """LLVM may make any number of the exp of a constant NaN; these tests compile without."""
    system = random_system("scalar", "given", with_reset=False)
    system = jax.tree.map(lambda x: x.astype(jnp.float32), system)
    run = jax.jit(eigenvalues, compiler_options={"xla_backend_optimization_level": 3})
    found = np.asarray(run(system))
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


def test_constant_system_takes_a_length() -> None:
    ones = jnp.ones((1, 1, N))
    system = System(
        Diagonal(jnp.log(jnp.array([[[[0.5], [0.25], [1.0]]] * H]))),
        OuterInput(ones),
        InnerOutput(ones),
        state_shape=(H, N, P),
    )
    expected = np.broadcast_to([0.5, 0.25, 1.0], (5, H, N))
    np.testing.assert_allclose(np.asarray(eigenvalues(system, length=5)), expected, rtol=1e-14)
    assert eigenvalues(system).shape == (1, H, N)


def test_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=f"expected length {L}"):
        eigenvalues(random_system("scalar", None, with_reset=False), length=L + 1)


@pytest.mark.parametrize("kind", slow_unless({"dense"}, ["full", "factored", "dense"]))
def test_vmap_agrees_with_a_loop(kind: str) -> None:
    system = random_system(kind, "given", with_reset=True)

    def scaled(x: jax.Array) -> jax.Array:
        return x if x.dtype == bool else 0.5 * x

    systems = [system, jax.tree.map(scaled, system)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *systems)
    got = np.asarray(jax.jit(jax.vmap(eigenvalues))(batch))
    for one, system in zip(got, systems, strict=True):
        np.testing.assert_allclose(
            in_order(one[1:4]), in_order(np.asarray(eigenvalues(system))[1:4]), rtol=1e-12
        )
