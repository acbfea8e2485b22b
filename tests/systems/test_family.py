"""The architectures beyond the paper, as NumPy loops written from their published recurrences.

Those that weigh pairs of steps are in `tests.systems.test_family_weights`.
"""

import math
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import scan
from tests.reference_loop import error
from tests.systems.small import build, cast, perturbed, tokens
from tests.systems.textbook import (
    LENGTH,
    QUICKLY,
    compare,
    matrix_states,
    read,
    sigmoid,
    silu,
    slow,
    softplus,
    unit,
)


def test_gla() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        a = sigmoid(p.W_a_up[h] @ (p.W_a_down @ u) + p.bias_a[h]) ** (1 / 16)
        S = a[:, None] * S + np.outer(p.W_k[h] @ u, p.W_v[h] @ u)
        return S, read(p.W_q[h] @ u, S)

    compare("gla", matrix_states(step))


def test_retnet() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        S = (1 - 2.0 ** (-5 - h)) * S + np.outer(p.W_k[h] @ u, p.W_v[h] @ u)
        return S, read(p.W_q[h] @ u, S)

    compare("retnet", matrix_states(step))


@pytest.mark.slow
def test_retnet_turns_queries_and_keys() -> None:
    def turned(x: np.ndarray, t: int) -> np.ndarray:
        angle = t * 10_000.0 ** (-np.arange(0, 4, 2) / 4)
        c, s = np.cos(angle), np.sin(angle)
        even, odd = x[0::2] * c - x[1::2] * s, x[0::2] * s + x[1::2] * c
        return np.stack([even, odd], axis=1).reshape(-1)

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        y = np.zeros((len(u), 2, 4))
        for h in range(2):
            for t in range(len(u)):
                for s in range(t + 1):
                    score = turned(p.W_q[h] @ u[t], t) @ turned(p.W_k[h] @ u[s], s) / 2
                    y[t, h] += (1 - 2.0 ** (-5 - h)) ** (t - s) * score * (p.W_v[h] @ u[s])
        return y

    compare("retnet", textbook, rotary=True, d_state=4)


@pytest.mark.parametrize("bound", [0.0, slow(0.6)])
def test_hgrn2(bound: float) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        f = bound + (1 - bound) * sigmoid(p.W_f[h] @ u)
        S = f[:, None] * S + np.outer(1 - f, p.W_v[h] @ u)
        return S, silu(p.W_q[h] @ u) @ S

    compare("hgrn2", matrix_states(step), lower_bound=bound)


def corrected(S: np.ndarray, k: np.ndarray, v: np.ndarray, beta: Any) -> np.ndarray:
    """The delta rule as it is told: what k reads moves towards v."""
    return S + np.outer(k, beta * (v - S.T @ k))


# Four heads of values of two channels for two of queries and keys.
GROUPED, HEADS = {"heads": 4, "channels": 2}, {"num_heads": 4, "num_groups": 2}
SIGNED = pytest.mark.parametrize("signed", [False, slow(True)])


@SIGNED
def test_deltanet(signed: bool) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        beta = (2 if signed else 1) * sigmoid(p.W_beta[h] @ u)
        S = corrected(S, unit(p.W_k[0] @ u), p.W_v[h] @ u, beta)
        return S, read(unit(p.W_q[0] @ u), S)

    compare("deltanet", matrix_states(step), num_groups=1, allow_neg_eigval=signed)


@SIGNED
def test_gated_deltanet(signed: bool) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        a = np.exp(-np.exp(p.A_log[h]) * softplus(p.W_dt[h] @ u + p.bias_dt[h]))
        beta = (2 if signed else 1) * sigmoid(p.W_beta[h] @ u)
        S = corrected(a * S, unit(p.W_k[h // 2] @ u), p.W_v[h] @ u, beta)
        return S, read(unit(p.W_q[h // 2] @ u), S)

    loop = matrix_states(step, heads=4, channels=3)
    sizes = {"num_heads": 4, "num_groups": 2, "d_inner": 12}
    compare("gated_deltanet", loop, allow_neg_eigval=signed, **sizes)


@pytest.mark.parametrize("bound", [None, slow(-5.0)])
def test_kda(bound: float | None) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        z, rate = p.W_dt_up[h] @ (p.W_dt_down @ u) + p.bias_dt[h], np.exp(p.A_log[h])
        log_a = -rate * softplus(z) if bound is None else bound * sigmoid(rate * z)
        S = np.exp(log_a)[:, None] * S
        S = corrected(S, unit(p.W_k[h // 2] @ u), p.W_v[h] @ u, sigmoid(p.W_beta[h] @ u))
        return S, read(unit(p.W_q[h // 2] @ u), S)

    compare("kda", matrix_states(step, **GROUPED), lower_bound=bound, **HEADS)


def test_rwkv7() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        w = np.exp(-math.exp(-0.5) * sigmoid(p.w_up[h] @ np.tanh(p.w_down @ u) + p.w_bias[h]))
        a = sigmoid(p.a_up[h] @ (p.a_down @ u) + p.a_bias[h])
        r, k, v = p.W_r[h] @ u, p.W_k[h] @ u, p.W_v[h] @ u
        removed = unit(k * p.k_k[h])
        k = k * (1 + (a - 1) * p.k_a[h])
        S = w[:, None] * S - np.outer(removed * a, S.T @ removed) + np.outer(k, v)
        return S, r @ S + (r * k * p.r_k[h]).sum() * v

    compare("rwkv7", matrix_states(step))


def joined(p: Any, name: str) -> np.ndarray:
    """A complex parameter."""
    return getattr(p, f"{name}_re") + 1j * getattr(p, f"{name}_im")


def test_lru() -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        decay = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
        h, y = np.zeros(3, complex), np.zeros_like(u)
        for t in range(len(u)):
            h = decay * h + np.exp(p.gamma_log) * (joined(p, "B") @ u[t])
            y[t] = (joined(p, "C") @ h).real + p.D * u[t]
        return y

    compare("lru", textbook)


@pytest.mark.parametrize("rule", ["zoh", slow("bilinear")])
@pytest.mark.parametrize("pairs", [True, slow(False)])
def test_s5(rule: str, pairs: bool) -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        A, step = joined(p, "Lambda"), np.exp(p.log_step)
        decay, scale = np.exp(A * step), (np.exp(A * step) - 1) / A
        if rule == "bilinear":
            decay, scale = (1 + step / 2 * A) / (1 - step / 2 * A), step / (1 - step / 2 * A)
        h, y = np.zeros(3, complex), np.zeros_like(u)
        for t in range(len(u)):
            h = decay * h + scale * (joined(p, "B") @ u[t])
            y[t] = (2 if pairs else 1) * (joined(p, "C") @ h).real + p.D * u[t]
        return y

    compare("s5", textbook, discretization=rule, conjugate_pairs=pairs)


@pytest.mark.parametrize("rule", [slow("zoh"), "bilinear"])
def test_s4d(rule: str) -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        A, step = -np.exp(p.log_rate) + 1j * p.frequency, np.exp(p.log_dt)[:, None]
        decay, scale = np.exp(A * step), (np.exp(A * step) - 1) / A
        if rule == "bilinear":
            decay, scale = (1 + step / 2 * A) / (1 - step / 2 * A), step / (1 - step / 2 * A)
        h, y = np.zeros(A.shape, complex), np.zeros_like(u)
        for t in range(len(u)):
            h = decay * h + scale * u[t][:, None]
            y[t] = 2 * (joined(p, "c") * h).sum(axis=1).real + p.D * u[t]
        return y

    compare("s4d", textbook, discretization=rule)


def test_s4_by_its_matrices() -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        y = np.zeros_like(u)
        for c in range(u.shape[1]):
            P, step = joined(p, "P")[c], np.exp(p.log_step[c])
            A = np.diag(joined(p, "Lambda")[c]) - np.outer(P, P.conj())
            back = np.linalg.inv(np.eye(3) - step / 2 * A)
            forward, h = back @ (np.eye(3) + step / 2 * A), np.zeros(3, complex)
            for t in range(len(u)):
                h = forward @ h + step * back @ joined(p, "B")[c] * u[t, c]
                y[t, c] = (joined(p, "C")[c] @ h).real + p.D[c] * u[t, c]
        return y

    compare("s4", textbook)


def elementwise(step: Any, channels: int = 8) -> Any:
    """y (L, d) of ``step(p, u_t, h) -> (h, y)`` for a state (d,) or a tuple of such."""

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        h: Any = np.zeros((2, channels))
        y = np.zeros((len(u), channels))
        for t in range(len(u)):
            h, y[t] = step(p, u[t], h)
        return y

    return textbook


def test_min_gru() -> None:
    def step(p: Any, u: np.ndarray, h: Any) -> Any:
        z = sigmoid(p.W_z @ u + p.bias_z)
        h = (1 - z) * h[0] + z * (p.W @ u)
        return (h, None), h

    compare("min_gru", elementwise(step))


def test_min_lstm() -> None:
    def step(p: Any, u: np.ndarray, h: Any) -> Any:
        f, i = sigmoid(p.W_f @ u + p.bias_f), sigmoid(p.W_i @ u + p.bias_i)
        h = f / (f + i) * h[0] + i / (f + i) * (p.W @ u)
        return (h, None), h

    compare("min_lstm", elementwise(step))


@pytest.mark.parametrize("cap", [None, slow(15.0)])
def test_mlstm_in_plain_coordinates(cap: float | None) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        i, f = p.gate_i[h] @ u + p.bias_i[h], p.gate_f[h] @ u + p.bias_f[h]
        if cap is not None:
            i, f = cap * np.tanh(i / cap), cap * np.tanh(f / cap)
        v = np.append(p.W_v[h] @ u, 1)  # the last channel is the normaliser
        S = sigmoid(f) * S + np.exp(i) * np.outer(p.W_k[h] @ u, v)
        y = read(p.W_q[h] @ u, S)
        return S, y / max(abs(y[-1]), 1)

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        return matrix_states(step, channels=5)(p, u)[..., :4]

    # ε is added in the coordinates of the running maximum: too little to see where that is small.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsfjax.systems.mlstm.EPSILON", 0.0)
        compare("mlstm", textbook, soft_cap=cap)


def test_rwkv4() -> None:
    def step(p: Any, u: np.ndarray, h: Any) -> Any:
        k, v = p.W_k @ u, p.W_v @ u
        weight = np.exp(p.bonus + k)
        y = sigmoid(p.W_r @ u) * (h[0] + weight * v) / (h[1] + weight)
        decay = np.exp(-np.exp(p.decay))
        return (decay * h[0] + np.exp(k) * v, decay * h[1] + np.exp(k)), y

    compare("rwkv4", elementwise(step))


def test_rwkv6() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        w = np.exp(-np.exp(p.w_up[h] @ np.tanh(p.w_down @ u) + p.w_bias[h]))
        r, k, v = p.W_r[h] @ u, p.W_k[h] @ u, p.W_v[h] @ u
        y = r @ (S + np.outer(p.bonus[h] * k, v))
        return w[:, None] * S + np.outer(k, v), y

    compare("rwkv6", matrix_states(step))


def test_lightning() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        depth = 1 - 2 / (3 + 1e-5) + 1e-5
        S = np.exp(-(2.0 ** (-4 * (h + 1))) * depth) * S + np.outer(p.W_k[h] @ u, p.W_v[h] @ u)
        return S, (p.W_q[h] @ u) @ S

    compare("lightning", matrix_states(step), layer=3, num_layers=4)


@SIGNED
def test_gdn2(signed: bool) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        g = h // 2
        k, b, w = unit(p.W_k[g] @ u), sigmoid(p.W_erase[g] @ u), sigmoid(p.W_write[h] @ u)
        z = p.W_dt_up[g] @ (p.W_dt_down @ u) + p.bias_dt[g]
        S = np.exp(-np.exp(p.A_log[g]) * softplus(z))[:, None] * S
        S = S - np.outer(k, ((2 if signed else 1) * b * k) @ S) + np.outer(k, w * (p.W_v[h] @ u))
        return S, read(unit(p.W_q[g] @ u), S)

    compare("gdn2", matrix_states(step, **GROUPED), allow_neg_eigval=signed, **HEADS)


def test_comba() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        a = np.exp(-np.exp(p.A_log[h]) * softplus(p.W_dt[h] @ u + p.bias_dt[h]))
        k, beta = p.W_k[h // 2] @ u, sigmoid(p.W_beta[h] @ u)
        q, k = unit(p.W_q[h // 2] @ u - p.output[h // 2] * k), unit(k)
        S = a * S + beta * np.outer(k, p.W_v[h] @ u - sigmoid(p.inner[h // 2]) * k @ S)
        return S, read(q, S)

    compare("comba", matrix_states(step, **GROUPED), **HEADS)


@pytest.mark.parametrize("name", ["mlstm", slow("rwkv4")])
def test_large_input_gates_do_not_overflow(name: str) -> None:
    """In float32, in which their exponentials have no number."""
    arch = build(name)
    params, u = perturbed(arch), tokens(LENGTH)
    if name == "mlstm":
        params = params._replace(bias_i=params.bias_i + 200)
    else:
        params = params._replace(W_k=400 * params.W_k)

    def loss(params: Any, u: Any) -> Any:
        y = scan(arch.system(params, u), u, method="sequential")[0]
        return y.sum(), y

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)
    (_, wide), slopes = run(params, u)
    (_, narrow), slopes = run(*cast((params, u), "float32"))
    assert error(np.asarray(narrow, float), wide) < 1e-3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


@pytest.mark.parametrize("count", [slow(1), 3])
def test_deltaproduct(count: int) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        S = np.exp(-np.exp(p.A_log[h]) * softplus(p.W_dt[h] @ u + p.bias_dt[h])) * S
        for j in range(count):
            beta = 2 * sigmoid(p.W_beta[j, h] @ u)
            S = corrected(S, unit(p.W_k[j, h // 2] @ u), p.W_v[j, h] @ u, beta)
        return S, read(unit(p.W_q[h // 2] @ u), S)

    compare("deltaproduct", matrix_states(step, **GROUPED), num_householder=count, **HEADS)


def test_gsa() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        g, a = h // 2, sigmoid(p.W_a[h // 2] @ u) ** (1 / 8)
        S = a[:, None] * S + np.outer(1 - a, np.append(p.W_k[g] @ u, p.W_v[g] @ u))
        scores = np.exp(S[:, :5] @ (p.W_q[h] @ u))
        return S, np.append(np.zeros(5), scores / scores.sum() @ S[:, 5:])

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        y = matrix_states(step, heads=4, channels=7)(p, u)[..., 5:]
        return y[:, [0, 2, 1, 3]]  # the first query head of each key head, then the second

    compare("gsa", textbook, d_key=5, **HEADS)


def test_mesa_net() -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        a, beta = sigmoid(p.W_a[h] @ u + p.bias_a[h]), sigmoid(p.W_beta[h] @ u + p.bias_beta[h])
        k, q = unit(p.W_k[h] @ u), unit(p.W_q[h] @ u)
        S = a * S + beta * np.outer(k, np.append(k, p.W_v[h] @ u))
        solution = np.linalg.solve(S[:, :3] + np.diag(0.25 + softplus(p.ridge[h])), q)
        return S, np.append(np.zeros(3), solution @ S[:, 3:])

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        return matrix_states(step, channels=7)(p, u)[..., 3:]

    compare("mesa_net", textbook)


@pytest.mark.parametrize("fraction", [0.7, slow(1.0)])
def test_mamba3_by_turning_queries_and_keys(fraction: float) -> None:
    """As the published code computes it: the angles are summed up, and the state is real."""

    def vectors(x: np.ndarray, norm: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + 1e-5) * norm + bias

    def turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
        even, odd = x[0::2], x[1::2]
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([even * c - odd * s, even * s + odd * c], axis=1).reshape(-1)

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        S, written = np.zeros((2, 6, 4)), np.zeros((2, 6, 4))
        angle, y = np.zeros((2, 3)), np.zeros((len(u), 2, 4))
        for t in range(len(u)):
            for h in range(2):
                delta = softplus(p.W_dt[h] @ u[t] + p.bias_dt[h])
                rate, share = softplus(p.W_a[h] @ u[t]), sigmoid(p.W_trap[h] @ u[t])
                a, turning = np.exp(-delta * max(rate, 0.5)), len(p.W_angle)
                assert turning == (2 if fraction < 1 else 3)
                angle[h, :turning] += delta * math.pi * np.tanh(p.W_angle @ u[t])
                k = turned(vectors(p.W_b @ u[t], p.norm_b, p.bias_b[h]), angle[h])
                q = turned(vectors(p.W_c @ u[t], p.norm_c, p.bias_c[h]), angle[h])
                v = p.W_v[h] @ u[t]
                S[h] = a * S[h] + (1 - share) * delta * a * written[h]
                written[h] = np.outer(k, v)
                S[h] += share * delta * written[h]
                y[t, h] = q @ S[h] + p.D[h] * v
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsfjax.systems.mamba3.RATE_FLOOR", 0.5)  # one that is seen
        compare("mamba3", textbook, rope_fraction=fraction)


@SIGNED
def test_momentum_delta(signed: bool) -> None:
    def step(p: Any, u: np.ndarray, S: np.ndarray, h: int) -> Any:
        eta = 1 + np.tanh(p.W_eta[h] @ u / math.sqrt(8))
        theta = np.arctan(eta * np.exp(p.angle_log[h]))
        beta = (2 if signed else 1) * np.sin(theta) ** 2 * sigmoid(p.W_beta[h] @ u)
        alpha = np.exp(-np.exp(p.A_log[h]) * softplus(p.W_dt[h] @ u + p.bias_dt[h]))
        alpha *= np.cos(theta) ** 2
        mu = np.exp(-np.exp(p.mu_log[h]) * softplus(p.W_mu[h] @ u + p.bias_mu[h]))
        mu = max(mu, np.exp(-2))
        k, now, M = p.W_k[h // 2] @ u, S[:3], S[3:]
        q, k = unit(p.W_q[h // 2] @ u - np.exp(p.output_log[h // 2]) * k), unit(k)
        M = mu * M + eta * np.outer(k, alpha * k @ now - p.W_v[h] @ u)
        now = alpha * now - beta * M
        return np.concatenate([now, M]), read(q, now)

    compare("momentum_delta", matrix_states(step, n=6, **GROUPED), allow_neg_eigval=signed, **HEADS)


@pytest.mark.parametrize("signed", [False, True])
def test_eigenvalues_of_momentum_are_within_the_unit_circle(signed: bool) -> None:
    """Whatever the tokens: their coefficients are coupled for that."""
    arch = build("momentum_delta", allow_neg_eigval=signed)
    params, u = perturbed(arch), 20 * np.asarray(tokens(50))
    A = np.asarray(arch.assemble(params, arch.signals(params, jax.numpy.asarray(u))).A.matrix())
    assert 0.9 < np.abs(np.linalg.eigvals(A)).max() <= 1 + 1e-12
