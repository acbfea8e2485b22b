"""The equations of a `System` as a NumPy loop over its structured fields, one step at a time."""

from typing import Any, NamedTuple

import numpy as np

from dsfjax import (
    Dense,
    DenseInput,
    DenseOutput,
    DiagonalPlusLowRank,
    Factored,
    GivenNormalizer,
    KernelSystem,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    TokenSkip,
    ValueSkip,
)


class Run(NamedTuple):
    y: np.ndarray
    h_last: np.ndarray
    states: np.ndarray


def at(x: Any, t: int) -> np.ndarray:
    """x_t, where a time axis of size 1 means constant."""
    x = np.asarray(x)
    return x[t] if x.shape[0] > 1 else x[0]


def of_head(x: np.ndarray, h: int, num_heads: int) -> np.ndarray:
    """Row of head h among G groups of neighbouring heads."""
    return x[h // (num_heads // x.shape[0])]


def transition(A: Any, t: int, h: np.ndarray) -> np.ndarray:
    """A_t h."""
    out = np.zeros_like(h)
    for i in range(len(h)):
        if isinstance(A, Scalar):
            out[i] = np.exp(at(A.log_a, t)[i]) * h[i]
        elif isinstance(A, Dense):
            m = at(A.matrix, t)
            out[i] = (m if m.ndim == 2 else m[i]) @ h[i]
        elif isinstance(A, DiagonalPlusLowRank):
            w, z = at(A.w, t)[i], at(A.z, t)[i]
            out[i] = np.exp(at(A.log_a, t)[i])[:, None] * h[i] - w @ (z.T @ h[i])
        elif isinstance(A.log_a, Factored):
            out[i] = np.exp(at(A.log_a.step, t)[i] * np.asarray(A.log_a.rate)[i]) * h[i]
        else:
            out[i] = np.exp(at(A.log_a, t)[i]) * h[i]
    return out


def values(system: System, u: np.ndarray, t: int) -> np.ndarray:
    """(W u_t) as (H, p)."""
    heads, _, p = system.state_shape
    assert isinstance(system.B, OuterInput)
    W = system.B.W
    return (u[t] if W is None else np.asarray(W) @ u[t]).reshape(heads, p)


def forcing(system: System, u: np.ndarray, t: int) -> np.ndarray:
    """B_t u_t, with a value of 1 in one more channel where the normaliser is summed."""
    heads, n, p = system.state_shape
    B = system.B
    if isinstance(B, DenseInput):
        return (at(B.matrix, t) @ u[t]).reshape(heads, n, p)
    x = values(system, u, t)
    if B.scale is not None:
        x = at(B.scale, t) * x
    if isinstance(system.eta, SummedNormalizer):
        x = np.concatenate([x, np.ones((heads, 1))], axis=1)
    b = np.ones((1, 1)) if B.b is None else at(B.b, t)
    return np.stack([np.outer(of_head(b, i, heads), x[i]) for i in range(heads)])


def output(system: System, u: np.ndarray, t: int, h: np.ndarray) -> np.ndarray:
    """C_t h / η_t + D_t u_t."""
    heads, _, p = system.state_shape
    C = system.C
    pairs = 2 if C.conjugate_pairs and system.is_complex else 1
    if isinstance(C, DenseOutput):
        y = pairs * np.real(at(C.matrix, t) @ h.reshape(-1))
    else:
        c = np.ones((1, 1)) if C.c is None else at(C.c, t)
        s = pairs * np.real(np.stack([of_head(c, i, heads) @ h[i] for i in range(heads)]))
        if isinstance(system.eta, SummedNormalizer):
            s = s[:, :p] / s[:, p:]
        elif isinstance(system.eta, GivenNormalizer):
            s = s / np.exp(at(system.eta.log_eta, t))[:, None]
        if C.gate is not None:
            s = at(C.gate, t) * s
        y = s.reshape(-1)
    D = system.D
    if isinstance(D, TokenSkip):
        return y + at(D.d, t) * u[t]
    if isinstance(D, ValueSkip):
        return y + (at(D.d, t) * values(system, u, t)).reshape(-1)
    return y if D is None else y + at(D.matrix, t) @ u[t]


def run(system: System, u: Any, h0: Any = None, *, reverse: bool = False) -> Run:
    """Outputs, last state and all states, from the first step to the last or the other way."""
    u = np.asarray(u)
    dtype = np.complex128 if system.is_complex else np.float64
    h = np.zeros(system.carried_shape, dtype) if h0 is None else np.asarray(h0).astype(dtype)
    reset = np.zeros(len(u), bool) if system.reset is None else np.asarray(system.reset)
    y = np.zeros((len(u), system.output_width))
    states = np.zeros((len(u), *system.carried_shape), dtype)
    for t in reversed(range(len(u))) if reverse else range(len(u)):
        # A reset at t separates t − 1 from t, whichever way one comes.
        if (t + 1 < len(u) and reset[t + 1]) if reverse else reset[t]:
            h = np.zeros_like(h)
        h = transition(system.A, t, h) + forcing(system, u, t)
        states[t], y[t] = h, output(system, u, t, h)
    return Run(y, h, states)


def attention(system: KernelSystem, u: Any) -> tuple[np.ndarray, np.ndarray]:
    """Textbook causal softmax attention within documents: outputs (L, H·p) and map (H, L, L)."""
    u, q, k = (np.asarray(x) for x in (u, system.q, system.k))
    length, heads, _ = q.shape
    v = u if system.W is None else u @ np.asarray(system.W).T
    v = v.reshape(length, heads, -1)
    reset = np.zeros(length, bool) if system.reset is None else np.asarray(system.reset)
    document = np.cumsum(reset)
    phi = np.zeros((heads, length, length))
    y = np.zeros_like(v)
    for h in range(heads):
        key = k[:, h // (heads // k.shape[1])]
        for t in range(length):
            seen = [s for s in range(t + 1) if document[s] == document[t]]
            weight = np.exp(key[seen] @ q[t, h])
            phi[h, t, seen] = weight / weight.sum()
        y[:, h] = phi[h] @ v[:, h]
    return y.reshape(length, -1), phi


def error(value: Any, reference: Any) -> float:
    """Normwise: the largest deviation over the largest entry of the reference; NaN counts as ∞."""
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape, f"shapes {value.shape} and {reference.shape}"
    if not value.size:
        return 0.0
    deviation, size = np.abs(value - reference).max(), np.abs(reference).max()
    if np.isnan(deviation):
        return np.inf
    return float(deviation / size) if size else float(deviation)
