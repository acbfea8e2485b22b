"""The equations in each architecture's docstring, as a NumPy loop written from them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import scan
from tests.reference_loop import error
from tests.systems.small import D_MODEL, as_numpy, build, perturbed, tokens

LENGTH = 7


def compare(name: str, textbook: Any, **own: Any) -> None:
    arch = build(name, **own)
    params, u = perturbed(arch), tokens(LENGTH)

    def run(params: Any, u: Any) -> Any:
        signals = arch.signals(params, u)
        return scan(arch.assemble(params, signals), arch.values(signals))[0]

    assert error(jax.jit(run)(params, u), textbook(as_numpy(params), np.asarray(u))) < 1e-12


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def elu1(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(x)) + 1


def linear(W: np.ndarray, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return W @ x if bias is None else W @ x + bias


def attention(kernel: Any, eta: Any = None) -> Any:
    """y_t = Σ_{s ≤ t} kernel(q_t, k_s) v_s / η_t per head, η_t the sum of the kernel by default."""

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        y = np.zeros((len(u), *p.W_v.shape[:2]))
        for h in range(len(p.W_v)):
            bias = [None if b is None else b[h] for b in (p.bias_q, p.bias_k, p.bias_v)]
            for t in range(len(u)):
                q = linear(p.W_q[h], u[t], bias[0])
                total = 0.0
                for s in range(t + 1):
                    weight = kernel(q, linear(p.W_k[h], u[s], bias[1]))
                    y[t, h] += weight * linear(p.W_v[h], u[s], bias[2])
                    total += weight
                y[t, h] /= total if eta is None else eta(p, u[t], h)
        return y.reshape(len(u), -1)

    return textbook


@pytest.mark.parametrize("bias", [False, True])
def test_softmax_attention(bias: bool) -> None:
    kernel = attention(lambda q, k: math.exp(q @ k / math.sqrt(3)))
    compare("softmax_attention", kernel, bias=bias)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_attention(bias: bool) -> None:
    compare("linear_attention", attention(lambda q, k: elu1(q) @ elu1(k)), bias=bias)


NORMALIZERS = {
    "exp": math.exp,
    "softplus": lambda n: math.log(1 + math.exp(n)),
    "sigmoid": lambda n: 1 / (1 + math.exp(-n)),
    "exp_relu": lambda n: math.exp(max(n, 0)),
}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize(
    "own",
    [
        pytest.param({}, id="published", marks=pytest.mark.slow),
        pytest.param(
            {"feature_map": "elu1", "offset": True, "scale": True, "bias": True}, id="all options"
        ),
    ],
)
def test_normalized_attention(normalizer: str, own: dict[str, Any]) -> None:
    def kernel(q: np.ndarray, k: np.ndarray) -> Any:
        return elu1(q) @ elu1(k) / math.sqrt(3) if own else q @ k

    def eta(p: Any, u: np.ndarray, h: int) -> float:
        offset = 0 if p.offset is None else p.offset[h]
        return NORMALIZERS[normalizer](p.W_eta[h] @ u + p.bias_eta[h] + offset)

    compare("normalized_attention", attention(kernel, eta), normalizer=normalizer, **own)


def test_normalized_attention_without_its_ratio() -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        h, y = np.zeros((len(p.W_v), 3, p.W_v.shape[1])), np.zeros((len(u), *p.W_v.shape[:2]))
        for t in range(len(u)):
            for i in range(len(p.W_v)):
                eta = np.exp(p.W_eta[i] @ u[t] + p.bias_eta[i])
                h[i] = h[i] + np.outer(p.W_k[i] @ u[t], p.W_v[i] @ u[t]) / eta
                y[t, i] = (p.W_q[i] @ u[t]) @ h[i]
        return y.reshape(len(u), -1)

    compare("normalized_attention", textbook, recurrent=False)


@pytest.mark.parametrize("scaled", [True, False])
def test_s6(scaled: bool) -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        h, y = np.zeros((3, D_MODEL)), np.zeros_like(u)
        for t in range(len(u)):
            delta = softplus(p.W_dt_up @ (p.W_dt_down @ u[t]) + p.bias_dt)
            for j in range(D_MODEL):
                decay = np.exp(-delta[j] * np.exp(p.A_log[j]))
                written = delta[j] * u[t, j] if scaled else u[t, j]
                h[:, j] = decay * h[:, j] + (p.W_b @ u[t]) * written
            y[t] = (p.W_c @ u[t]) @ h + p.D * u[t]
        return y

    compare("s6", textbook, scaled_input=scaled)


def test_s6_with_a_scalar() -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        h, y = np.zeros((3, D_MODEL)), np.zeros_like(u)
        for t in range(len(u)):
            delta = softplus(p.W_dt_down[0] @ u[t] + p.bias_dt)
            h = np.exp(-delta * np.exp(p.A_log)) * h + np.outer(p.W_b @ u[t], delta * u[t])
            y[t] = (p.W_c @ u[t]) @ h + p.D * u[t]
        return y

    compare("s6", textbook, scalar=True, dt_rank=1)


def test_s6_with_a_scalar_has_one_input_dependent_step() -> None:
    with pytest.raises(ValueError, match="dt_rank = 2; leave dt_rank away"):
        build("s6", scalar=True)


@pytest.mark.parametrize(
    "own",
    [{}, {"num_heads": 4, "num_groups": 2, "d_inner": 12}, {"scaled_input": False}],
)
def test_ssd(own: dict[str, int]) -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        heads, channels, _ = p.W_v.shape
        per_group = heads // len(p.W_b)
        h, y = np.zeros((heads, 3, channels)), np.zeros((len(u), heads, channels))
        for t in range(len(u)):
            delta = softplus(p.W_dt @ u[t] + p.bias_dt)
            for i in range(heads):
                v = p.W_v[i] @ u[t]
                b, c = p.W_b[i // per_group] @ u[t], p.W_c[i // per_group] @ u[t]
                written = delta[i] * v if own.get("scaled_input", True) else v
                h[i] = np.exp(-delta[i] * np.exp(p.A_log[i])) * h[i] + np.outer(b, written)
                y[t, i] = c @ h[i] + p.D[i] * v
        return y.reshape(len(u), -1)

    compare("ssd", textbook, **own)


@pytest.mark.parametrize("name", ["qlstm", "qlstm_reversed"])
@pytest.mark.parametrize(
    "value_map, coupled",
    [(True, False), pytest.param(False, False, marks=pytest.mark.slow), (True, True)],
)
def test_qlstm(name: str, value_map: bool, coupled: bool) -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        h, y = np.zeros(D_MODEL), np.zeros_like(u)
        for t in range(len(u)):
            z = p.W_f @ u[t] + p.bias_f
            decay = sigmoid(z) if name == "qlstm" else sigmoid(-z) ** max(p.alpha, 0)
            value = p.W @ u[t] if value_map else u[t]
            scale = np.sqrt(1 - decay**2) if coupled and t > 0 else 1
            h = decay * h + scale * sigmoid(p.W_i @ u[t] + p.bias_i) * value
            y[t] = sigmoid(p.W_o @ u[t] + p.bias_o) * h
        return y

    compare(name, textbook, value_map=value_map, coupled=coupled)


def test_reversed_gate_of_negative_power_keeps_everything() -> None:
    arch = build("qlstm_reversed")
    params = perturbed(arch)._replace(alpha=np.asarray(-0.5))

    def decay(alpha: Any) -> Any:
        return arch.signals(params._replace(alpha=alpha), tokens(LENGTH)).log_f

    value, slope = jax.jvp(decay, (params.alpha,), (np.ones(()),))
    assert (np.asarray(value) == 0).all()
    assert (np.asarray(slope) == 0).all()


@pytest.mark.parametrize("coupled", [True, False])
def test_rg_lru(coupled: bool) -> None:
    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        heads, channels = p.a_param.shape
        h, y = np.zeros((heads, channels)), np.zeros((len(u), heads, channels))
        for t in range(len(u)):
            x = u[t].reshape(heads, channels)
            for i in range(heads):
                r = sigmoid(p.W_r[i] @ x[i] + p.bias_r[i])
                gate = sigmoid(p.W_i[i] @ x[i] + p.bias_i[i])
                a = np.exp(-8 * softplus(p.a_param[i]) * r)
                scale = np.sqrt(1 - a**2) if coupled and t > 0 else 1
                h[i] = a * h[i] + scale * gate * x[i]
            y[t] = h
        return y.reshape(len(u), -1)

    compare("rg_lru", textbook, coupled=coupled)


@pytest.mark.parametrize("name", ["rg_lru", "qlstm"])
def test_what_is_coupled_does_not_scale_the_first_input_of_a_document(name: str) -> None:
    arch: Any = build(name, coupled=True)
    params, u = perturbed(arch), tokens(2)
    reset = np.array([False, True])

    @jax.jit
    def scale_of(reset: Any) -> Any:
        alone = arch.system(params, u).B.scale
        return arch.system(params, u, reset=reset, continued=True).B.scale, alone

    scale, alone = scale_of(reset)
    gate = np.asarray(arch.signals(params, u).i)
    assert error(scale[1].reshape(-1), gate[1].reshape(-1)) < 1e-15
    assert (np.asarray(scale[0]).reshape(-1) < gate[0].reshape(-1)).all()
    assert error(alone[0].reshape(-1), gate[0].reshape(-1)) < 1e-15
    assert (np.asarray(alone[1]).reshape(-1) < gate[1].reshape(-1)).all()


def test_gradient_of_the_root_is_bounded() -> None:
    arch: Any = build("rg_lru")
    params = perturbed(arch)
    signals = arch.signals(params, tokens(3), jnp.zeros(3, bool))  # no start among them

    def scale(log_a: Any) -> Any:
        return arch.assemble(params, signals._replace(log_a=log_a)).B.scale.sum()

    slope = jax.jit(jax.grad(scale))
    # d√(1 − a²)/d log a = −a²/√(1 − a²) is infinite at a = 1; 1000 times d(1 − a²) is kept.
    for log_a, expected in (
        (-0.5, -np.exp(-1) / np.sqrt(1 - np.exp(-1))),
        (-1e-12, -2e3),
        (0, -2e3),
    ):
        value = slope(np.full((3, 2, 4), float(log_a)))
        assert error(value, expected * np.asarray(signals.i)) < 1e-9
    # A gate that has underflowed to r = 0 makes a = 1 exactly.
    shut = params._replace(bias_r=np.full((2, 4), -800.0))
    slopes = jax.jit(jax.grad(lambda p: arch.system(p, tokens(3)).B.scale.sum()))(shut)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
