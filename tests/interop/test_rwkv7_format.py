"""RWKV-7 by the names of its authors, against its definition written with NumPy."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax.interop.published import convert
from tests.opened import distance
from tests.torch_zip import saved

VOCAB, HEADS, N, INNER = 11, 2, 64, 96
D = HEADS * N
RANKS = {"w": 6, "a": 5, "v": 4, "g": 8}


def weights(layers: int = 2) -> dict[str, np.ndarray]:
    """Random tensors by the names of the authors; the first layer has v0, v1 and v2, too."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, about: float = 0.0) -> np.ndarray:
        return about + rng.normal(size=shape) / np.sqrt(shape[-1])

    def norm() -> dict[str, np.ndarray]:
        return {"weight": normal(D, about=1.0), "bias": normal(D)}

    found = {"emb.weight": normal(VOCAB, D), "head.weight": normal(VOCAB, D)}
    found |= {f"ln_out.{k}": x for k, x in norm().items()}
    for i in range(layers):
        own = {f"{n}.{k}": x for n in ("ln1", "ln2", "att.ln_x") for k, x in norm().items()}
        own |= {f"ln0.{k}": x for k, x in norm().items()} if i == 0 else {}
        own |= {f"att.x_{n}": rng.uniform(size=(1, 1, D)) for n in "rwkvag"}
        for n, rank in RANKS.items():
            own |= {f"att.{n}1": normal(D, rank), f"att.{n}2": normal(rank, D)}
            own |= {} if n == "g" else {f"att.{n}0": normal(1, 1, D, about=0.5)}
        own |= {"att.k_k": normal(1, 1, D, about=0.85), "att.k_a": normal(1, 1, D, about=1.0)}
        own |= {"att.r_k": normal(HEADS, N)}
        own |= {f"att.{n}.weight": normal(D, D) for n in ("receptance", "key", "value", "output")}
        own |= {"ffn.x_k": rng.uniform(size=(1, 1, D)), "ffn.key.weight": normal(INNER, D)}
        own |= {"ffn.value.weight": normal(D, INNER)}
        found |= {f"blocks.{i}.{name}": x for name, x in own.items()}
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normed(x: np.ndarray, p: dict, name: str, eps: float = 1e-5, groups: int = 1) -> np.ndarray:
    """Layer norm over the channels of every group."""
    parts = x.reshape(len(x), groups, -1)
    parts = parts - parts.mean(-1, keepdims=True)
    parts = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + eps)
    return parts.reshape(x.shape) * p[f"{name}.weight"] + p[f"{name}.bias"]


def shifted(x: np.ndarray) -> np.ndarray:
    """The token before each, less the token."""
    return np.concatenate([np.zeros((1, x.shape[1])), x[:-1]]) - x


def mixed_in_time(x: np.ndarray, p: dict, v_first: np.ndarray | None) -> tuple:
    xx = shifted(x)
    xr, xw, xk, xv, xa, xg = (x + xx * p[f"att.x_{n}"][0] for n in "rwkvag")
    r, k, v = (
        y @ p[f"att.{n}.weight"].T for n, y in (("receptance", xr), ("key", xk), ("value", xv))
    )
    low = p["att.w0"][0] + np.tanh(xw @ p["att.w1"]) @ p["att.w2"]
    decay = np.exp(-np.exp(-np.log1p(np.exp(-low)) - 0.5))  # −softplus(−x) − 1/2
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(p["att.v0"][0] + xv @ p["att.v1"] @ p["att.v2"])
    a = sigmoid(p["att.a0"][0] + xa @ p["att.a1"] @ p["att.a2"])
    g = sigmoid(xg @ p["att.g1"]) @ p["att.g2"]
    kk = (k * p["att.k_k"][0]).reshape(-1, HEADS, N)
    kk = kk / np.maximum(np.linalg.norm(kk, axis=2, keepdims=True), 1e-12)
    k = k * (1 + (a - 1) * p["att.k_a"][0])
    r, decay, k, v, a = (y.reshape(-1, HEADS, N) for y in (r, decay, k, v, a))
    y, state = np.zeros_like(v), np.zeros((HEADS, N, N))
    for t in range(len(x)):
        for h in range(HEADS):
            S = state[h]  # values by keys
            removed = np.outer(S @ -kk[t, h], kk[t, h] * a[t, h])
            state[h] = S * decay[t, h] + removed + np.outer(v[t, h], k[t, h])
            y[t, h] = state[h] @ r[t, h]
    y = normed(y.reshape(len(x), D), p, "att.ln_x", 64e-5, HEADS)
    bonus = (r * k * p["att.r_k"]).sum(-1, keepdims=True) * v
    return ((y + bonus.reshape(len(x), D)) * g) @ p["att.output.weight"].T, v_first


def logits(p: dict[str, np.ndarray], ids: np.ndarray, layers: int = 2) -> np.ndarray:
    x, v_first = p["emb.weight"][ids], None
    for i in range(layers):
        own = {name.removeprefix(f"blocks.{i}."): y for name, y in p.items()}
        x = normed(x, own, "ln0") if i == 0 else x
        y, v_first = mixed_in_time(normed(x, own, "ln1"), own, v_first)
        x = x + y
        y = normed(x, own, "ln2")
        y = np.maximum((y + shifted(y) * own["ffn.x_k"][0]) @ own["ffn.key.weight"].T, 0) ** 2
        x = x + y @ own["ffn.value.weight"].T
    return normed(x, p, "ln_out") @ p["head.weight"].T


def test_logits(tmp_path: Path) -> None:
    p, ids = weights(), np.array([3, 1, 4, 1, 5, 9, 2])
    model = dsfjax.open(convert(saved(tmp_path / "x.pth", p), tmp_path / "out"))
    assert model.dtype == jnp.float64
    assert distance(model.logits(ids), logits(p, ids)) < 1e-12
    ((system, _),) = model.systems(ids)[1]
    assert isinstance(system, dsfjax.System) and system.state_shape == (HEADS, N, N)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    p = weights(1)

    def refused(message: str, tensors: dict[str, np.ndarray]) -> None:
        with pytest.raises(ValueError, match=message):
            convert(saved(tmp_path / "x.pth", tensors), tmp_path / "out")

    narrow = p | {"blocks.0.att.r_k": np.ones((4, 32))}
    refused("blocks.0.att.r_k: expected heads of 64 channels.* got 32", narrow)
    refused(
        r"emb.weight: expected a matrix, got one of shape \[3\]", p | {"emb.weight": np.ones(3)}
    )
    refused("head_dim: expected a divisor of 100", p | {"emb.weight": np.ones((11, 100))})
    refused("nothing reads: model.layers.0.moon", p | {"blocks.0.moon.weight": np.ones(2)})
    for name in ("blocks.0.ffn.key.weight", "blocks.0.att.w1", "blocks.0.att.r_k"):
        refused(f"{name}: expected a matrix, got none", {k: x for k, x in p.items() if k != name})
    refused("missing tensor 'model.norm.bias'", {k: x for k, x in p.items() if k != "ln_out.bias"})
