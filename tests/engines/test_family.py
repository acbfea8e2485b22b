"""Published recurrences, written as their papers do, and as a `System` run by `scan`.

One compiled program runs all of them; every reference is a NumPy loop of a few lines.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from dsfjax import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    InnerOutput,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    ValueSkip,
    scan,
    stabilized,
)
from tests.engine_runs import compiled
from tests.reference_loop import error

T, K, V = 13, 5, 4
rng = np.random.default_rng(0)


def N(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def shifted(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


q, k, v = N(T, K), N(T, K), N(T, V)
k /= np.linalg.norm(k, axis=1, keepdims=True)
beta = 2 * sigmoid(N(T))
g, gk, gv = (-np.abs(N(*shape)) * 0.3 for shape in ((T,), (T, K), (T, V)))
erase, write = sigmoid(N(T, K)), sigmoid(N(T, V))
Case = tuple[System, np.ndarray, np.ndarray]


def one(x: np.ndarray) -> Array:
    """(T, n) with one head."""
    return jnp.asarray(x[:, None])


def low_rank(log_a, w, z) -> DiagonalPlusLowRank:
    def factor(x):
        x = x[:, :, None] if x.ndim == 2 else x
        return jnp.asarray(x[:, None])

    return DiagonalPlusLowRank(one(log_a), factor(w), factor(z))


def system(A, b, c, n=K, p=V, **parts) -> System:
    B = b if isinstance(b, OuterInput) else OuterInput(one(b))
    C = c if isinstance(c, InnerOutput) else InnerOutput(one(c))
    return System(A, B, C, state_shape=(1, n, p), **parts)


def gated_delta_rule() -> Case:
    S, y = np.zeros((K, V)), []
    for t in range(T):
        S = S * np.exp(g[t])
        S = S + np.outer(k[t], (v[t] - k[t] @ S) * beta[t])
        y.append(q[t] @ S)
    w, z = beta[:, None] * k, k * np.exp(g)[:, None]
    return system(low_rank(g[:, None], w, z), w, q), v, np.array(y)


def kimi_delta_attention() -> Case:
    S, y = np.zeros((K, V)), []
    for t in range(T):
        S = S * np.exp(gk[t])[:, None]
        S = S + np.outer(beta[t] * k[t], v[t] - k[t] @ S)
        y.append(q[t] @ S)
    w = beta[:, None] * k
    return system(low_rank(gk, w, k * np.exp(gk)), w, q), v, np.array(y)


def erase_and_write() -> Case:
    """GDN-2: what is erased and what is written have gates of their own."""
    S, y = np.zeros((K, V)), []
    for t in range(T):
        S = np.exp(gk[t])[:, None] * S
        S = S + np.outer(k[t], write[t] * v[t] - (erase[t] * k[t]) @ S)
        y.append(q[t] @ S)
    B = OuterInput(one(k), one(write))
    return system(low_rank(gk, k, erase * k * np.exp(gk)), B, q), v, np.array(y)


def rwkv7() -> Case:
    a, b = N(T, K) * 0.3, N(T, K) * 0.3
    S, y = np.zeros((K, V)), []
    for t in range(T):
        S = np.exp(gk[t])[:, None] * S + np.outer(k[t], v[t]) + np.outer(b[t], a[t] @ S)
        y.append(q[t] @ S)
    return system(low_rank(gk, -b, a), k, q), v, np.array(y)


def gated_delta_product() -> Case:
    """Several Householder steps per token: W Zᵀ and the input have their rank."""
    r = 3
    keys, values, rates = N(T, r, K), N(T, r, V), 2 * sigmoid(N(T, r))
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    S, y = np.zeros((K, V)), []
    for t in range(T):
        S = S * np.exp(g[t])
        for j in range(r):
            S = S + np.outer(rates[t, j] * keys[t, j], values[t, j] - keys[t, j] @ S)
        y.append(q[t] @ S)
    # Compact WY: P = I − W Kᵀ, and the j-th write goes through the Householder steps after it.
    b = rates[:, :, None] * keys
    writes = b.copy()
    for j in range(r):
        for i in range(j + 1, r):
            seen = np.einsum("tk,tk->t", keys[:, i], writes[:, j])
            writes[:, j] -= b[:, i] * seen[:, None]
    # (I − b_r k_rᵀ) ⋯ (I − b_1 k_1ᵀ) = I − Σ_j writes_j k_jᵀ
    Z = np.exp(g)[:, None, None] * keys
    A = low_rank(g[:, None], writes.swapaxes(1, 2), Z.swapaxes(1, 2))
    B = OuterInput(jnp.asarray(writes[:, :, None]), rank=r)
    return system(A, B, q), values.reshape(T, -1), np.array(y)


def mamba3_trapezoid() -> Case:
    """The trapezoidal rule writes the token before, too: a rank-2 input."""
    al, dt, lam = np.exp(g), np.abs(N(T)), sigmoid(N(T))
    S, y, kp, vp = np.zeros((K, V)), [], np.zeros(K), np.zeros(V)
    for t in range(T):
        S = al[t] * S + (1 - lam[t]) * dt[t] * al[t] * np.outer(kp, vp)
        S = S + lam[t] * dt[t] * np.outer(k[t], v[t])
        y.append(q[t] @ S)
        kp, vp = k[t], v[t]
    keys = np.stack([(lam * dt)[:, None] * k, ((1 - lam) * dt * al)[:, None] * shifted(k)], axis=1)
    B = OuterInput(jnp.asarray(keys[:, :, None]), rank=2)
    tokens = np.concatenate([v, shifted(v)], axis=1)
    return system(Scalar(one(g)), B, q), tokens, np.array(y)


def rwkv6() -> Case:
    """Reads the state before the update, with a bonus for the present token."""
    u = N(K)
    h, y = np.zeros((K, V)), []
    for t in range(T):
        y.append(q[t] @ (h + np.outer(u * k[t], v[t])))
        h = np.exp(gk[t])[:, None] * h + np.outer(k[t], v[t])
    C = InnerOutput(one(q), before_update=True)
    D = ValueSkip(jnp.asarray((q * u * k).sum(1)[:, None, None]))
    return system(Diagonal(one(gk[..., None])), k, C, D=D), v, np.array(y)


def rwkv4() -> Case:
    """Numerator and denominator with a bonus, every channel a head, keys up to e^200."""
    u, keys, decay = N(V), 60 * N(T, V), -np.exp(N(V))
    keys[3] = 200.0
    y = np.zeros((T, V))
    for t in range(T):
        m = np.max([(t - 1 - s) * decay + keys[s] for s in range(t)] + [u + keys[t]], axis=0)
        weights = [np.exp((t - 1 - s) * decay + keys[s] - m) for s in range(t)]
        weights.append(np.exp(u + keys[t] - m))
        y[t] = sum(w * x for w, x in zip(weights, v[: t + 1], strict=True)) / sum(weights)
    found = stabilized(jnp.asarray(np.broadcast_to(decay, (T, V))), jnp.asarray(keys))
    now = jnp.asarray(u + keys)
    top = jnp.maximum(found.log_max_prev, now)  # of what this step reads
    C = InnerOutput(jnp.exp(found.log_max_prev - top)[..., None], before_update=True)
    eta = SummedNormalizer(bonus=jnp.exp(now - top))
    B = OuterInput(jnp.exp(found.log_b)[..., None])
    return System(Scalar(found.log_a), B, C, eta=eta, state_shape=(V, 1, 1)), v, y


def gated_oja() -> Case:
    """Low rank on the value axis, and the keys are contracted: `InnerOutput(over="p")`."""
    S, y, rate = np.zeros((K, V)), [], sigmoid(N(T))
    u = v / np.linalg.norm(v, axis=1, keepdims=True)
    for t in range(T):
        S = S * np.exp(gv[t])[None]
        S = S + np.outer(rate[t] * (k[t] - S @ u[t]), u[t])
        y.append(q[t] @ S)
    w = rate[:, None] * u
    C = InnerOutput(one(q), over="p")
    return system(low_rank(gv, w, u * np.exp(gv)), w, C, n=V, p=K), k, np.array(y)


def momentum_delta_rule() -> Case:
    """The state and its momentum are jointly linear: a dense matrix of twice the size."""
    al, mu, et, be = np.exp(g), sigmoid(N(T)), sigmoid(N(T)), sigmoid(N(T))
    S, M, y, eye = np.zeros((K, V)), np.zeros((K, V)), [], np.eye(K)
    blocks, b = [], []
    for t in range(T):
        M = mu[t] * M - np.outer(et[t] * k[t], v[t] - k[t] @ S)
        S = al[t] * S - be[t] * M
        y.append(q[t] @ S)
        W = np.outer(et[t] * k[t], k[t])
        blocks.append(np.block([[al[t] * eye - be[t] * W, -be[t] * mu[t] * eye], [W, mu[t] * eye]]))
        b.append(np.concatenate([be[t] * et[t] * k[t], -et[t] * k[t]]))
    c = np.concatenate([q, 0 * q], axis=1)
    return system(Dense(one(np.array(blocks))), np.array(b), c, n=2 * K), v, np.array(y)


def mlstm(largest: float = 0.0) -> Case:
    """max(|qᵀn|, 1) in coordinates that follow the running maximum of the gates."""
    i, f = N(T), -np.log1p(np.exp(-N(T)))
    i[4] += largest
    C, n, m, y = np.zeros((K, V)), np.zeros(K), 0.0, []
    for t in range(T):
        new = max(f[t] + m, i[t])
        decay, gate, m = np.exp(f[t] + m - new), np.exp(i[t] - new), new
        C, n = decay * C + gate * np.outer(k[t], v[t]), decay * n + gate * k[t]
        y.append(q[t] @ C / max(abs(q[t] @ n), np.exp(-m)))
    found = stabilized(one(f), one(i), before=jnp.zeros(1))
    B = OuterInput(jnp.exp(found.log_b)[..., None] * one(k))
    eta = SummedNormalizer(jnp.exp(-found.log_max), modulus=True)
    return system(Scalar(found.log_a), B, q, eta=eta), v, np.array(y)


def mlstm_with_large_gates() -> Case:
    return mlstm(200.0)


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        gated_delta_rule,
        kimi_delta_attention,
        erase_and_write,
        rwkv7,
        gated_delta_product,
        mamba3_trapezoid,
        rwkv6,
        rwkv4,
        gated_oja,
        momentum_delta_rule,
        mlstm,
        mlstm_with_large_gates,
    )
}


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {name: make() for name, make in CASES.items()}


@pytest.fixture(scope="module")
def outputs(cases) -> dict[str, Array]:
    inputs = {name: (s, jnp.asarray(u)) for name, (s, u, _) in cases.items()}
    run = compiled(lambda xs: {name: scan(s, u)[0] for name, (s, u) in xs.items()})
    return run(inputs)


@pytest.mark.parametrize("name", CASES)
def test_scan_gives_the_published_recurrence(name, cases, outputs):
    assert error(outputs[name], cases[name][2]) < 1e-13


def test_float32_does_not_overflow(cases):
    """Input gates of e^200 in float32, values and gradients."""
    s, u, expected = cases["mlstm_with_large_gates"]
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (s, u))
    y, gradient = compiled(
        lambda s, u: (scan(s, u)[0], jax.grad(lambda s: jnp.sum(jnp.sin(scan(s, u)[0])))(s))
    )(*single)
    assert error(y, expected) < 1e-5
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(gradient))
