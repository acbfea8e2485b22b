"""Architectures that weigh pairs of steps, as NumPy sums written from their publications."""

import math
from typing import Any

import numpy as np
import pytest

from dsfjax.systems.performer import orthogonal_features
from tests.reference_loop import error
from tests.systems.small import tokens
from tests.systems.textbook import LENGTH, compare, sigmoid, slow


def attention(weight: Any, epsilon: float = 0.0, window: int = LENGTH) -> Any:
    """y_t = Σ_s w(p, u, t, s, h) v_s / (Σ_s w + ε) over the window."""

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        y = np.zeros((len(u), 2, 4))
        for h in range(2):
            for t in range(len(u)):
                steps = range(max(0, t + 1 - window), t + 1)
                weights = [weight(p, u, t, s, h) for s in steps]
                W_v = p.W_v[h * len(p.W_v) // 2]  # that of its group
                values = sum(w * (W_v @ u[s]) for w, s in zip(weights, steps, strict=True))
                y[t, h] = values / (sum(weights) + epsilon)
        return y

    return textbook


def test_based() -> None:
    def weight(p: Any, u: np.ndarray, t: int, s: int, h: int) -> Any:
        x = (p.W_q[h] @ u[t]) @ (p.W_k[h] @ u[s]) / math.sqrt(3)
        return 1 + x + x**2 / 2

    compare("based", attention(weight, 1e-6))


def test_rebased() -> None:
    def normalized(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return scale * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + bias

    def weight(p: Any, u: np.ndarray, t: int, s: int, h: int) -> Any:
        q = normalized(p.W_q[h] @ u[t], p.scale_q, p.bias_q)
        return (q @ normalized(p.W_k[h] @ u[s], p.scale_k, p.bias_k)) ** 2 / 3

    compare("rebased", attention(weight, 1e-5))


def test_performer() -> None:
    omega = orthogonal_features(3, 5, seed=1)
    assert error(omega @ omega.T, np.diag((omega**2).sum(axis=1))) < 1e-14

    def features(x: np.ndarray, shift: bool) -> np.ndarray:
        x = x / 5**0.25
        exponent = omega @ x - x @ x / 2
        return np.exp(exponent - (exponent.max() if shift else 0)) + 1e-6

    def weight(p: Any, u: np.ndarray, t: int, s: int, h: int) -> Any:
        return features(p.W_q[h] @ u[t], True) @ features(p.W_k[h] @ u[s], False)

    compare("performer", attention(weight), d_key=5)


def test_random_features_are_those_of_softmax_on_average() -> None:
    q, k = (tokens(2, seed)[0, :3] / 2 for seed in (0, 1))
    exponents = []
    for seed in range(400):
        omega = orthogonal_features(6, 3, seed)
        exponents.append(np.exp(omega @ q - q @ q / 2) @ np.exp(omega @ k - k @ k / 2) / 6)
    spread = np.std(exponents) / np.sqrt(len(exponents))
    assert abs(np.mean(exponents) - np.exp(q @ k)) < 5 * spread


def scores(p: Any, u: np.ndarray, t: int, s: int, h: int) -> Any:
    return (p.W_q[h] @ u[t]) @ (p.W_k[h] @ u[s]) / math.sqrt(3)


def test_sliding_window_attention() -> None:
    loop = attention(lambda *at: math.exp(scores(*at)), window=3)
    compare("sliding_window_attention", loop, window=3)


def test_forgetting_attention() -> None:
    def weight(p: Any, u: np.ndarray, t: int, s: int, h: int) -> Any:
        gates = sigmoid(u[s + 1 : t + 1] @ p.W_f[h] + p.bias_f[h])
        return math.exp(scores(p, u, t, s, h)) * gates.prod()

    compare("forgetting_attention", attention(weight))


# As language models have it, with one key and value head for both query heads.
PRACTISED = {"d_state": 4, "num_groups": 1, "rope_base": 50.0, "qk_norm": True, "soft_cap": 1.5}


@pytest.mark.parametrize(
    "name", ["softmax_attention", slow("sliding_window_attention"), slow("forgetting_attention")]
)
def test_attention_with_groups_norms_rotation_and_a_cap(name: str) -> None:
    def placed(x: np.ndarray, norm: np.ndarray, t: int) -> np.ndarray:
        x = norm * x / np.sqrt((x**2).mean() + 1e-6)
        turn = np.exp(1j * t * 50.0 ** (-np.arange(2) / 2))
        z = (x[:2] + 1j * x[2:]) * turn
        return np.concatenate([z.real, z.imag])

    def weight(p: Any, u: np.ndarray, t: int, s: int, h: int) -> Any:
        q, k = placed(p.W_q[h] @ u[t], p.q_norm, t), placed(p.W_k[0] @ u[s], p.k_norm, s)
        decay = 1.0
        if name == "forgetting_attention":
            decay = sigmoid(u[s + 1 : t + 1] @ p.W_f[h] + p.bias_f[h]).prod()
        return math.exp(1.5 * np.tanh(q @ k / 2 / 1.5)) * decay

    own = {"window": 3} if name == "sliding_window_attention" else {}
    compare(name, attention(weight, **own), **PRACTISED, **own)
