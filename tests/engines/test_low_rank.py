"""Forms of the delta rule, diag(a) − W Zᵀ, at the edge of stability and beyond what is usual."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import DiagonalPlusLowRank, InnerOutput, OuterInput, System, materialize, scan
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_checks import cut_length, report, wrong
from tests.systems_zoo import Draw

SHAPE = H, N, P = 2, 6, 3


class Transitions(NamedTuple):
    """Log decays (L, H, n) and factors W, Z (L, H, n, r)."""

    log_a: np.ndarray
    w: np.ndarray
    z: np.ndarray


def system(A: Transitions, *resets: int) -> System:
    """The system around a transition; its key is not tied to the factors."""
    length = len(A.log_a)
    g = Draw("low rank", length, 0)
    b, c = (g.normal(length, H, N) for _ in range(2))
    reset = jnp.zeros(length, bool).at[jnp.asarray(resets, int)].set(True)
    structured = DiagonalPlusLowRank(*(jnp.asarray(x) for x in A))
    return System(structured, OuterInput(b), InnerOutput(c), reset=reset, state_shape=SHAPE)


def rank_one(length: int) -> Iterator[tuple[str, Transitions]]:
    """Delta rules A = diag(α) − β k kᵀ of rank 1, by name."""
    rng = np.random.default_rng(1)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=(length, H, *shape))

    k = random(N, 1)
    k = k / np.linalg.norm(k, axis=2, keepdims=True)
    same = np.broadcast_to(k[:1], k.shape)
    basis = np.eye(N)[np.arange(length) % N][:, None, :, None] * np.ones((1, H, 1, 1))
    beta, one = rng.uniform(size=(length, H, 1, 1)), np.zeros((length, H, N))
    mild = -0.3 * rng.exponential(size=(length, H, N))
    kept = np.where(rng.random((length, H, 1)) < 0.5, 0.0, mild)
    strong = np.where(rng.random((length, H, N)) < 0.5, -80.0, mild)
    zero = np.where(rng.random((length, H, N)) < 0.3, -np.inf, mild)

    yield "keys of norm 0.3", Transitions(one, 0.3 * k, 0.3 * k)
    yield "keys of norm up to 1.4", Transitions(one, beta * random(N, 1) / N, random(N, 1) / N)
    yield "β = 0", Transitions(one, 0 * k, k)
    yield "β = 1", Transitions(one, k, k)
    yield "β = 2", Transitions(one, 2 * k, k)
    yield "β between 0 and 2", Transitions(one, 2 * beta * k, k)
    yield "one key, β = 1", Transitions(one, same, same)
    yield "one key, β = 2", Transitions(one, 2 * same, same)
    yield "one key, β between 0 and 2", Transitions(one, 2 * beta * same, same)
    yield "orthogonal keys, β = 1", Transitions(one, basis, basis)
    # α (I − β k kᵀ), the gated delta rule; (I − β k kᵀ) diag(α), per state (KDA)
    gate = np.broadcast_to(kept[..., :1], one.shape)
    yield "gated", Transitions(gate, np.exp(gate)[..., None] * beta * k, k)
    for case, log_a in (("", mild), (", decay e^-80", strong), (", decay zero", zero)):
        alpha = np.exp(log_a)[..., None]
        yield f"gated per state{case}", Transitions(log_a, beta * k, alpha * k)
        yield f"gated per state, β = 2{case}", Transitions(log_a, 2 * k, alpha * k)
        yield f"gated per state, one key{case}", Transitions(log_a, same, alpha * same)
        # diag(w) − (a ⊙ κ) κᵀ, RWKV-7, and its transpose: the factors do not see the decay.
        rate = rng.uniform(size=(length, H, N, 1))
        yield f"RWKV-7{case}", Transitions(log_a, rate * k, k)
        yield f"transposed RWKV-7{case}", Transitions(log_a, k, rate * k)
    yield "every decay e^-80", Transitions(np.full_like(one, -80.0), beta * k, k)
    yield "every decay zero", Transitions(np.full_like(one, -np.inf), beta * k, k)
    yield "decays a little above one", Transitions(one + 0.02, beta * k, k)


def rank(r: int, length: int) -> Iterator[tuple[str, Transitions]]:
    """Products of r delta rules within a step, and unrelated factors."""
    rng = np.random.default_rng(r)
    k = rng.normal(size=(length, H, N, r))
    k = k / np.linalg.norm(k, axis=2, keepdims=True)
    same = np.broadcast_to(k[:, :, :, :1], k.shape)
    mild = -0.3 * rng.exponential(size=(length, H, N))
    strong = np.where(rng.random((length, H, N)) < 0.5, -80.0, mild)
    zero = np.where(rng.random((length, H, N)) < 0.3, -np.inf, mild)
    w, z = (0.4 / np.sqrt(N) * rng.normal(size=(length, H, N, r)) for _ in range(2))
    for case, log_a in (("mild", mild), ("e^-80", strong), ("zero", zero), ("one", 0 * mild)):
        yield f"unrelated factors, decay {case}", Transitions(log_a, w, z)
        alpha = np.exp(log_a)[..., None]
        for keys, beta in ((k, 1.0), (k, 2.0), (same, 1.0)):
            how = "one key" if keys is same else "keys"
            product = householder_product(keys, beta)
            yield (
                f"product, {how}, β = {beta}, decay {case}",
                Transitions(log_a, product, alpha * keys),
            )


def householder_product(k: np.ndarray, beta: float) -> np.ndarray:
    """W with I − W Kᵀ = (I − β k_r k_rᵀ) ⋯ (I − β k_1 k_1ᵀ), by one column after the other."""
    w = np.zeros_like(k)
    for j in range(k.shape[-1]):
        now = k[..., j]
        # (I − β k kᵀ)(I − W Kᵀ) = I − W Kᵀ − β k kᵀ + β k (kᵀ W) Kᵀ
        w = w - beta * now[..., None] * np.einsum("lhn,lhnr->lhr", now, w)[:, :, None, :]
        w[..., j] = beta * now
    return w


def test_householder_product():
    rng = np.random.default_rng(0)
    k = rng.normal(size=(1, 1, N, 3))
    product = np.eye(N)
    for j in range(3):
        product = (np.eye(N) - 1.3 * np.outer(k[0, 0, :, j], k[0, 0, :, j])) @ product
    w = householder_product(k, 1.3)
    np.testing.assert_allclose(np.eye(N) - w[0, 0] @ k[0, 0].T, product, atol=1e-12)


FACTORS = ("chunked", "materialized")  # the methods that treat them; the others multiply matrices


def check(
    cases: Iterator[tuple[str, Transitions]], length: int, among: tuple[str, ...] | None = None
) -> None:
    found = []
    for case, A in cases:
        for resets in ((), (0, length // 3, length // 3 + 1, length - 1)):
            around = system(A, *resets)
            u, h0 = zoo.tokens(around, length), zoo.state(around)
            found += wrong(f"{case}, resets {resets}", around, u, h0, among=among)
    report(found)


@pytest.mark.parametrize("among", [FACTORS, pytest.param(None, marks=pytest.mark.slow)])
def test_delta_rules(among):
    length = cut_length("low_rank")
    check(rank_one(length), length, among)


@pytest.mark.slow  # another rank is another program; rank 2 is quick among the gradients
@pytest.mark.parametrize("r", [2, 4])
def test_higher_ranks(r):
    length = cut_length("low_rank")
    check(rank(r, length), length)


def test_many_reflections_along_near_parallel_keys():
    """In float32, over 500 steps; one inverse over all of them loses 3 digits more."""
    length, rng = 500, np.random.default_rng(0)
    keys = rng.normal(size=(1, H, N)) + 0.05 * rng.normal(size=(length, H, N))
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    u, q = rng.normal(size=(length, H * P)), rng.normal(size=(length, H, N))

    def build(dtype: type) -> tuple[System, jax.Array]:
        k, c, x = (jnp.asarray(v, dtype) for v in (keys, q, u))
        A = DiagonalPlusLowRank(jnp.zeros((1, H, 1), dtype), 2 * k[..., None], k[..., None])
        return System(A, OuterInput(2 * k), InnerOutput(c), state_shape=SHAPE), x

    expected = reference.run(*build(np.float64)).y
    narrow, x = build(np.float32)

    @jax.jit
    def ways(system: System, x: jax.Array) -> list[jax.Array]:
        values = x.reshape(length, H, P)
        phi = jnp.einsum("hts,shp->thp", materialize(system), values, precision="highest")
        return [scan(system, x, method="materialized")[0], phi.reshape(length, -1)]

    for y in ways(narrow, x):
        assert reference.error(y, expected) < 1e-4
