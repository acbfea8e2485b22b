"""What the architectures of the benchmark compute from a sequence: random signals, and the System.

Every contestant of a case gets the same signals, under the names used in the literature of the
architecture, and gradients are taken to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    DiagonalPlusLowRank,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Precision,
    Scalar,
    System,
    Transition,
)

Signals = dict[str, np.ndarray]
Draw = np.random.Generator


class Sizes(NamedTuple):
    """Sizes of a case.

    Attributes:
        batch: B, sequences.
        length: L, steps.
        heads: H.
        n: State expansion per head.
        p: Value channels per head.
    """

    batch: int
    length: int
    heads: int
    n: int
    p: int

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(H, n, p)."""
        return self.heads, self.n, self.p

    def __str__(self) -> str:
        return f"B={self.batch} L={self.length:,} H={self.heads} n={self.n} p={self.p}"


class Family(NamedTuple):
    """An architecture as the benchmark sees it.

    Attributes:
        draw: ``draw(rng, sizes) -> signals``, (B, L, …) but for those ``shared`` by the batch.
        build: ``build(signals of one sequence) -> (system, tokens)``.
        shared: Names of the signals without a batch axis.
        decays: Names of the signals that set the decays of the state.
    """

    draw: Callable[[Draw, Sizes], Signals]
    build: Callable[[Mapping[str, Array]], tuple[System | KernelSystem, Array]]
    shared: tuple[str, ...] = ()
    decays: tuple[str, ...] = ()


def in_precision(signals: Signals, precision: str, decays: tuple[str, ...]) -> Signals:
    """Signals in the dtype of a precision.

    Args:
        signals: By name.
        precision: As `Precision.named` takes it.
        decays: Names of what sets the decays of a state. It is float32 in every precision, as in
            the models: 8 bits of a decay near 1 would be another memory.

    Returns:
        The same, rounded.

    Example:
        >>> signals = {"g": np.array([-0.1]), "v": np.array([0.1])}
        >>> [x.dtype.name for x in in_precision(signals, "bfloat16", ("g",)).values()]
        ['float32', 'bfloat16']
    """
    dtype = jnp.dtype(Precision.named(precision).compute or "float32")
    return {k: np.asarray(x, np.float32 if k in decays else dtype) for k, x in signals.items()}


def _qkv(rng: Draw, s: Sizes) -> Signals:
    keys = {name: rng.normal(size=(s.batch, s.length, s.heads, s.n)) for name in ("q", "k")}
    return keys | {"v": rng.normal(size=(s.batch, s.length, s.heads, s.p))}


def _step_sizes(rng: Draw, *shape: int) -> np.ndarray:
    """Log-uniform in [1e-3, 0.1], as steps Δ are initialised."""
    return np.exp(rng.uniform(math.log(1e-3), math.log(0.1), size=shape))


def _gate(rng: Draw, *shape: int) -> np.ndarray:
    """The log decay of gated linear attention, log σ(x) / 16."""
    return -np.log1p(np.exp(-rng.normal(size=shape))) / 16


def _attend(
    s: Mapping[str, Array],
    A: Transition,
    scale: Array | None = None,
) -> tuple[System, Array]:
    """Queries scaled by 1/√n, keys and values around a transition."""
    length, heads, n = s["q"].shape
    p = s["v"].shape[-1]
    C = InnerOutput(s["q"] / math.sqrt(n))
    system = System(A, OuterInput(s["k"], scale), C, state_shape=(heads, n, p))
    return system, s["v"].reshape(length, heads * p)


def _ssd_signals(rng: Draw, s: Sizes) -> Signals:
    rate = rng.uniform(1, 16, size=s.heads)
    return _qkv(rng, s) | {"g": -_step_sizes(rng, s.batch, s.length, s.heads) * rate}


def _gla_signals(rng: Draw, s: Sizes) -> Signals:
    return _qkv(rng, s) | {"g": _gate(rng, s.batch, s.length, s.heads, s.n)}


def _signed_gla(s: Mapping[str, Array]) -> tuple[System, Array]:
    """Every third decay is negative."""
    log_a = s["g"][..., None]
    third = jnp.arange(log_a.size).reshape(log_a.shape) % 3 == 0
    return _attend(s, Diagonal(log_a, sign=jnp.where(third, -1, 1)))


def _rotated_gla_signals(rng: Draw, s: Sizes) -> Signals:
    signals = _gla_signals(rng, s)
    return signals | {"angle": rng.uniform(-np.pi, np.pi, size=signals["g"].shape)}


def _rotated_gla(s: Mapping[str, Array]) -> tuple[System, Array]:
    """Decays e^(g + i angle) between real keys and queries; the real part is read."""
    return _attend(s, Diagonal((s["g"] + 1j * s["angle"])[..., None]))


def _linear_attention(s: Mapping[str, Array]) -> tuple[System, Array]:
    return _attend(s, Scalar(jnp.zeros((1, s["q"].shape[1]), s["q"].dtype)))


def _s6_signals(rng: Draw, s: Sizes) -> Signals:
    lead = (s.batch, s.length)
    return {
        "delta": _step_sizes(rng, *lead, s.p),
        "A": -np.broadcast_to(np.arange(1.0, s.n + 1), (s.p, s.n)).copy(),
        "b": rng.normal(size=(*lead, s.n)),
        "c": rng.normal(size=(*lead, s.n)),
        "x": rng.normal(size=(*lead, s.p)),
    }


def _s6(s: Mapping[str, Array]) -> tuple[System, Array]:
    delta, rate = s["delta"][:, None, :], s["A"].T[None]
    system = System(
        Diagonal.factored(delta, rate),
        OuterInput(s["b"][:, None, :], delta),
        InnerOutput(s["c"][:, None, :]),
        state_shape=(1, rate.shape[1], rate.shape[2]),
    )
    return system, s["x"]


def _channel_signals(rng: Draw, s: Sizes) -> Signals:
    shape = (s.batch, s.length, s.p)
    return {"log_a": -8 * _step_sizes(rng, *shape), "x": rng.normal(size=shape)}


def _channels(s: Mapping[str, Array]) -> tuple[System, Array]:
    A = Diagonal(s["log_a"][:, None, None, :])
    shape = (1, 1, s["x"].shape[1])
    return System(A, OuterInput(), InnerOutput(), state_shape=shape), s["x"]


def _delta_signals(rng: Draw, s: Sizes) -> Signals:
    signals = _qkv(rng, s)
    signals["k"] /= np.linalg.norm(signals["k"], axis=-1, keepdims=True)
    return signals | {"beta": 1 / (1 + np.exp(-rng.normal(size=(s.batch, s.length, s.heads))))}


def _gated_delta_signals(rng: Draw, s: Sizes) -> Signals:
    return _delta_signals(rng, s) | {"g": _gate(rng, s.batch, s.length, s.heads)}


def _kda_signals(rng: Draw, s: Sizes) -> Signals:
    return _delta_signals(rng, s) | {"g": _gate(rng, s.batch, s.length, s.heads, s.n)}


def _delta(s: Mapping[str, Array]) -> tuple[System, Array]:
    r"""(I − β k kᵀ) diag(e^g) h + β k ⊗ v; without g, or with one per head or per state."""
    k, beta = s["k"], s["beta"][..., None]
    g = s["g"] if "g" in s else jnp.zeros((1, k.shape[1]), k.dtype)
    g = g if g.ndim == 3 else g[..., None]
    A = DiagonalPlusLowRank(g, k, jnp.exp(g) * k, scale=beta)
    return _attend(s, A, beta)


def _rwkv7_signals(rng: Draw, s: Sizes) -> Signals:
    shape = (s.batch, s.length, s.heads, s.n)
    removed = rng.normal(size=shape)
    removed /= np.linalg.norm(removed, axis=-1, keepdims=True)
    return _qkv(rng, s) | {
        "g": -math.exp(-0.5) / (1 + np.exp(-rng.normal(size=shape))),
        "a": -removed,
        "b": removed / (1 + np.exp(-rng.normal(size=shape))),
    }


def _rwkv7(s: Mapping[str, Array]) -> tuple[System, Array]:
    """(diag(e^g) + b aᵀ) h + k ⊗ v."""
    return _attend(s, DiagonalPlusLowRank(s["g"], s["b"][..., None], -s["a"][..., None]))


def _mamba2_signals(rng: Draw, s: Sizes) -> Signals:
    lead = (s.batch, s.length)
    return {
        "delta": _step_sizes(rng, *lead, s.heads),
        "A": -rng.uniform(1, 16, size=s.heads),
        "b": rng.normal(size=(*lead, 1, s.n)),
        "c": rng.normal(size=(*lead, 1, s.n)),
        "x": rng.normal(size=(*lead, s.heads, s.p)),
    }


def _mamba2(s: Mapping[str, Array]) -> tuple[System, Array]:
    """Scalar decays e^(Δ A); heads share b and c."""
    length, heads, p = s["x"].shape
    system = System(
        Scalar(s["delta"] * s["A"]),
        OuterInput(s["b"], s["delta"][..., None]),
        InnerOutput(s["c"]),
        state_shape=(heads, s["b"].shape[-1], p),
    )
    return system, s["x"].reshape(length, heads * p)


def _s4d_signals(rng: Draw, s: Sizes) -> Signals:
    vector = (s.heads, s.n)
    steps = _step_sizes(rng, s.heads)[:, None]
    signals = {name: rng.normal(size=vector) for name in ("b_re", "b_im", "c_re", "c_im")}
    return signals | {
        "log_a_re": -0.5 * steps * np.ones(vector),
        "log_a_im": np.pi * steps * np.arange(s.n),
        "x": rng.normal(size=(s.batch, s.length, s.heads)),
    }


def _complex(s: Mapping[str, Array], name: str) -> Array:
    return s[f"{name}_re"] + 1j * s[f"{name}_im"]


def _s4d(s: Mapping[str, Array]) -> tuple[System, Array]:
    log_a, b, c = (_complex(s, name)[None] for name in ("log_a", "b", "c"))
    C = InnerOutput(c, conjugate_pairs=True)
    _, heads, n = log_a.shape
    return System(Diagonal(log_a[..., None]), OuterInput(b), C, state_shape=(heads, n, 1)), s["x"]


def _lru_signals(rng: Draw, s: Sizes) -> Signals:
    width = s.p
    radius = rng.uniform(0.9**2, 0.999**2, size=s.n)
    matrices = {
        f"{name}_{part}": rng.normal(size=shape) / math.sqrt(2 * shape[1])
        for name, shape in (("B", (s.n, width)), ("C", (width, s.n)))
        for part in ("re", "im")
    }
    return matrices | {
        "log_a_re": 0.5 * np.log(radius),
        "log_a_im": rng.uniform(0, 2 * np.pi, size=s.n),
        "x": rng.normal(size=(s.batch, s.length, width)),
    }


def _lru(s: Mapping[str, Array]) -> tuple[System, Array]:
    log_a = _complex(s, "log_a")[None, None, :, None]
    B, C = DenseInput(_complex(s, "B")[None]), DenseOutput(_complex(s, "C")[None])
    return System(Diagonal(log_a), B, C, state_shape=(1, log_a.shape[2], 1)), s["x"]


def _dense_signals(rng: Draw, s: Sizes) -> Signals:
    matrices = rng.normal(size=(s.batch, s.length, s.heads, s.n, s.n)) / (2 * math.sqrt(s.n))
    return _qkv(rng, s) | {"A": matrices}


def _softmax(s: Mapping[str, Array]) -> tuple[KernelSystem, Array]:
    length, _, n = s["q"].shape
    system = KernelSystem(s["q"] / math.sqrt(n), s["k"], num_channels=s["v"].shape[-1])
    return system, s["v"].reshape(length, -1)


_LOG_A = ("log_a_re", "log_a_im")
_COMPLEX = ("b_re", "b_im", "c_re", "c_im", *_LOG_A)
_DENSE_MAPS = ("B_re", "B_im", "C_re", "C_im", *_LOG_A)

FAMILIES = {
    "ssd": Family(_ssd_signals, lambda s: _attend(s, Scalar(s["g"])), decays=("g",)),
    "linear_attention": Family(_qkv, _linear_attention),
    "gla": Family(_gla_signals, lambda s: _attend(s, Diagonal(s["g"][..., None])), decays=("g",)),
    "gla_signed": Family(_gla_signals, _signed_gla, decays=("g",)),
    "gla_complex": Family(_rotated_gla_signals, _rotated_gla, decays=("g", "angle")),
    "s6": Family(_s6_signals, _s6, ("A",), decays=("delta", "A")),
    "rg_lru": Family(_channel_signals, _channels, decays=("log_a",)),
    "delta_rule": Family(_delta_signals, _delta),
    "gated_delta_rule": Family(_gated_delta_signals, _delta, decays=("g",)),
    "kda": Family(_kda_signals, _delta, decays=("g",)),
    "rwkv7": Family(_rwkv7_signals, _rwkv7, decays=("g",)),
    "mamba2": Family(_mamba2_signals, _mamba2, ("A",), decays=("delta", "A")),
    "s4d": Family(_s4d_signals, _s4d, _COMPLEX, decays=_LOG_A),
    "lru": Family(_lru_signals, _lru, _DENSE_MAPS, decays=_LOG_A),
    "dense": Family(_dense_signals, lambda s: _attend(s, Dense(s["A"])), decays=("A",)),
    "softmax": Family(_qkv, _softmax),
}
