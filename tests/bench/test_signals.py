"""Every architecture of the benchmark computes what its literature says, by loops in NumPy."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.bench.signals import FAMILIES, Signals, Sizes
from tests.engine_runs import compiled_scan

SIZES = Sizes(batch=1, length=9, heads=2, n=3, p=4)


def attention(s: Signals, factor: np.ndarray | float = 1.0) -> np.ndarray:
    """Delta rules and linear attention: S ← e^g S + β k (v − kᵀ e^g S)ᵀ, o = Sᵀ q / √n."""
    q, k, v = (s[name][0] for name in "qkv")
    length, heads, n = q.shape
    out = np.zeros_like(v)
    factor = np.broadcast_to(factor, q.shape)
    for h in range(heads):
        state: np.ndarray = np.zeros((n, v.shape[-1]))
        for t in range(length):
            if "g" in s:
                g = s["g"][0, t, h]
                state = np.exp(g)[:, None] * state if g.ndim else np.exp(g) * state
                state = factor[t, h][:, None] * state
            if "A" in s:
                state = s["A"][0, t, h] @ state
            value = v[t, h]
            if "beta" in s:
                value = s["beta"][0, t, h] * (value - k[t, h] @ state)
            state = state + np.outer(k[t, h], value)
            out[t, h] = np.real(state.T @ q[t, h]) / np.sqrt(n)
    return out.reshape(length, -1)


def signed(s: Signals) -> np.ndarray:
    places = np.arange(s["g"][0].size).reshape(s["g"][0].shape)
    return attention(s, np.where(places % 3 == 0, -1.0, 1.0))


def rotated(s: Signals) -> np.ndarray:
    return attention(s, np.exp(1j * s["angle"][0]))


def softmax(s: Signals) -> np.ndarray:
    q, k, v = (s[name][0] for name in "qkv")
    out = np.zeros_like(v)
    for t in range(len(q)):
        scores = np.einsum("hn,shn->hs", q[t], k[: t + 1]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        out[t] = np.einsum("hs,shp->hp", weights, v[: t + 1])
    return out.reshape(len(q), -1)


def selective(s: Signals) -> np.ndarray:
    delta, b, c, x = (s[name][0] for name in ("delta", "b", "c", "x"))
    state, out = np.zeros(s["A"].shape), np.zeros_like(x)
    for t in range(len(x)):
        state = np.exp(delta[t][:, None] * s["A"]) * state + np.outer(delta[t] * x[t], b[t])
        out[t] = state @ c[t]
    return out


def channels(s: Signals) -> np.ndarray:
    state, out = 0.0, np.zeros_like(s["x"][0])
    for t, x in enumerate(s["x"][0]):
        out[t] = state = np.exp(s["log_a"][0, t]) * state + x
    return out


def paired(s: Signals, name: str) -> np.ndarray:
    return s[f"{name}_re"] + 1j * s[f"{name}_im"]


def rwkv7(s: Signals) -> np.ndarray:
    q, k, v, g, a, b = (s[name][0] for name in ("q", "k", "v", "g", "a", "b"))
    out = np.zeros_like(v)
    for h in range(v.shape[1]):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(len(v)):
            read = a[t, h] @ state
            state = np.exp(g[t, h])[:, None] * state + np.outer(b[t, h], read)
            state = state + np.outer(k[t, h], v[t, h])
            out[t, h] = state.T @ q[t, h] / np.sqrt(k.shape[-1])
    return out.reshape(len(v), -1)


def mamba2(s: Signals) -> np.ndarray:
    delta, b, c, x = (s[name][0] for name in ("delta", "b", "c", "x"))
    state, out = np.zeros((*x.shape[1:], b.shape[-1])), np.zeros_like(x)
    for t in range(len(x)):
        decay = np.exp(delta[t] * s["A"])[:, None, None]
        state = decay * state + np.einsum("h,hp,n->hpn", delta[t], x[t], b[t, 0])
        out[t] = state @ c[t, 0]
    return out.reshape(len(x), -1)


def s4d(s: Signals) -> np.ndarray:
    a, b, c = np.exp(paired(s, "log_a")), paired(s, "b"), paired(s, "c")
    state, out = np.zeros(a.shape, complex), np.zeros_like(s["x"][0])
    for t, x in enumerate(s["x"][0]):
        state = a * state + b * x[:, None]
        out[t] = 2 * np.real((c * state).sum(axis=1))
    return out


def lru(s: Signals) -> np.ndarray:
    a, B, C = np.exp(paired(s, "log_a")), paired(s, "B"), paired(s, "C")
    state, out = np.zeros(a.shape, complex), np.zeros_like(s["x"][0])
    for t, x in enumerate(s["x"][0]):
        state = a * state + B @ x
        out[t] = np.real(C @ state)
    return out


LOOPS: dict[str, Callable[[Signals], np.ndarray]] = {
    "ssd": attention,
    "linear_attention": attention,
    "gla": attention,
    "gla_signed": signed,
    "gla_complex": rotated,
    "s6": selective,
    "rg_lru": channels,
    "delta_rule": attention,
    "gated_delta_rule": attention,
    "kda": attention,
    "rwkv7": rwkv7,
    "mamba2": mamba2,
    "s4d": s4d,
    "lru": lru,
    "dense": attention,
    "softmax": softmax,
}


def test_every_family_has_a_loop() -> None:
    assert set(LOOPS) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_system_computes_the_literature(name: str) -> None:
    family = FAMILIES[name]
    signals = family.draw(np.random.default_rng(0), SIZES)
    one = {k: jnp.asarray(x if k in family.shared else x[0]) for k, x in signals.items()}
    y = compiled_scan(*family.build(one), method="sequential")[0]
    np.testing.assert_allclose(y, LOOPS[name](signals), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_signals_are_what_is_stated(name: str) -> None:
    family = FAMILIES[name]
    batch = SIZES._replace(batch=3)
    first, again = (family.draw(np.random.default_rng(5), batch) for _ in range(2))
    for key, x in first.items():
        np.testing.assert_array_equal(x, again[key])
        if key not in family.shared:
            assert x.shape[:2] == (3, 9)
        if key in ("g", "log_a", "log_a_re", "A") and name != "dense":
            assert (x < 0).all()  # decays, not growth
