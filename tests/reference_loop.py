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
    InnerOutput,
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


def decay(A: Any, log_a: np.ndarray, t: int) -> np.ndarray:
    """a_t from its logarithm of step t and the sign, where the transition has one."""
    a = np.exp(log_a)
    return a if getattr(A, "sign", None) is None else np.sign(at(A.sign, t).astype(float)) * a


def transition(A: Any, t: int, h: np.ndarray) -> np.ndarray:
    """A_t h."""
    heads, out = len(h), np.zeros_like(h)
    for i in range(heads):
        if isinstance(A, Scalar):
            out[i] = decay(A, at(A.log_a, t), t)[i] * h[i]
        elif isinstance(A, Dense):
            m = at(A.array, t)
            out[i] = (m if m.ndim == 2 else m[i]) @ h[i]
        elif isinstance(A, DiagonalPlusLowRank):
            # (n, r), or (n,) for r = 1
            w, z = (of_head(at(x, t), i, heads).reshape(h.shape[1], -1) for x in (A.w, A.z))
            s = np.ones(1) if A.scale is None else at(A.scale, t)[i]
            out[i] = decay(A, at(A.log_a, t), t)[i][:, None] * h[i] - (w * s) @ (z.T @ h[i])
        elif isinstance(A.log_a, Factored):
            log_a = at(A.log_a.step, t)[:, None, :] * np.asarray(A.log_a.rate)
            out[i] = decay(A, log_a, t)[i] * h[i]
        else:
            out[i] = decay(A, at(A.log_a, t), t)[i] * h[i]
    return out


def values(system: System, u: np.ndarray, t: int) -> np.ndarray:
    """(W u_t) as (r, H, p), or (H, p) for rank 1."""
    heads, _, p = system.state_shape
    assert isinstance(system.B, OuterInput)
    W = system.B.W
    shape = (heads, p) if system.B.rank == 1 else (system.B.rank, heads, p)
    return (u[t] if W is None else np.asarray(W) @ u[t]).reshape(shape)


def term(x: Any, t: int, k: int, rank: int) -> np.ndarray | None:
    """Term k of step t of an array (T, …), or (T, r, …) for a rank above 1; None if it is None."""
    if x is None:
        return None
    return at(x, t) if rank == 1 else at(x, t)[k]


def scaled_values(system: System, u: np.ndarray, t: int) -> list[np.ndarray]:
    """s ⊙ v of every term, (H, p) each."""
    B, heads = system.B, system.num_heads
    terms = values(system, u, t).reshape(B.rank, heads, -1)  # type: ignore[union-attr]
    scales = [term(B.scale, t, k, B.rank) for k in range(B.rank)]  # type: ignore[union-attr]
    return [x if s is None else s * x for x, s in zip(terms, scales, strict=True)]


def forcing(system: System, u: np.ndarray, t: int) -> np.ndarray:
    """B_t u_t, with a value of 1 in one more channel where the normaliser is summed."""
    heads, n, p = system.state_shape
    B = system.B
    if isinstance(B, DenseInput):
        return (at(B.array, t) @ u[t]).reshape(heads, n, p)
    assert isinstance(B, OuterInput)
    total = 0
    for k, x in enumerate(scaled_values(system, u, t)):
        if isinstance(system.eta, SummedNormalizer):
            x = np.concatenate([x, np.ones((heads, 1))], axis=1)
        b = term(B.b, t, k, B.rank)
        b = np.ones((1, 1)) if b is None else b
        total = total + np.stack([np.outer(of_head(b, i, heads), x[i]) for i in range(heads)])
    return total  # type: ignore[return-value]


def normalizer(eta: SummedNormalizer, s: np.ndarray, t: int) -> np.ndarray:
    """η_t per head from c_tᵀ z_t."""
    s = s if eta.bonus is None else s + at(eta.bonus, t)
    s = np.abs(s) if eta.modulus else s
    s = s if eta.floor is None else np.maximum(s, at(eta.floor, t))
    return s if eta.epsilon is None else s + at(eta.epsilon, t)


def read(system: System, u: np.ndarray, t: int, h: np.ndarray) -> np.ndarray:
    """C_t h / η_t, flat."""
    heads, _, p = system.state_shape
    C = system.C
    pairs = 2 if C.conjugate_pairs and system.is_complex else 1
    if isinstance(C, DenseOutput):
        return pairs * np.real(at(C.array, t) @ h.reshape(-1))
    assert isinstance(C, InnerOutput)
    rows = []
    for k in range(C.rank):
        c = term(C.c, t, k, C.rank)
        c = np.ones((1, 1)) if c is None else c
        of = [h[i] if C.over == "n" else h[i].T for i in range(heads)]
        s = pairs * np.real(np.stack([of_head(c, i, heads) @ of[i] for i in range(heads)]))
        if isinstance(system.eta, SummedNormalizer):
            eta = normalizer(system.eta, s[:, p], t)[:, None]
            s = s[:, :p]
            if system.eta.bonus is not None:
                s = s + at(system.eta.bonus, t)[:, None] * scaled_values(system, u, t)[0]
            s = s / eta
        elif isinstance(system.eta, GivenNormalizer):
            s = s / np.exp(at(system.eta.log_eta, t))[:, None]
        gate = term(C.gate, t, k, C.rank)
        rows.append(s if gate is None else gate * s)
    return np.stack(rows).reshape(-1)


def output(system: System, u: np.ndarray, t: int, h: np.ndarray) -> np.ndarray:
    """C_t h / η_t + D_t u_t; h is the state after or before the update, as C reads it."""
    y, D = read(system, u, t, h), system.D
    if isinstance(D, TokenSkip):
        return y + at(D.d, t) * u[t]
    if isinstance(D, ValueSkip):
        return y + (at(D.d, t) * values(system, u, t)).reshape(-1)
    return y if D is None else y + at(D.array, t) @ u[t]  # pyright: ignore[reportAttributeAccessIssue]


def run(system: System, u: Any, h0: Any = None, *, reverse: bool = False) -> Run:
    """Outputs, last state and all states, from the first step to the last or the other way.

    ``h0`` is the state before the first step, or one for every segment of the resets.
    """
    u = np.asarray(u)
    dtype = np.complex128 if system.is_complex else np.float64
    h = np.zeros(system.carried_shape, dtype) if h0 is None else np.asarray(h0).astype(dtype)
    rows, h = (h, h[0]) if h.ndim == 4 else (None, h)
    reset = np.zeros(len(u), bool) if system.reset is None else np.asarray(system.reset)
    segment = np.cumsum(reset | (np.arange(len(u)) == 0)) - 1
    y = np.zeros((len(u), system.output_width))
    states = np.zeros((len(u), *system.carried_shape), dtype)
    before = None
    for t in reversed(range(len(u))) if reverse else range(len(u)):
        # A reset at t separates t − 1 from t, whichever way one comes.
        if rows is not None and (before is None or segment[t] != segment[before]):
            h = rows[segment[t]]
        elif rows is None and ((t + 1 < len(u) and reset[t + 1]) if reverse else reset[t]):
            h = np.zeros_like(h)
        before, seen = t, h
        h = transition(system.A, t, h) + forcing(system, u, t)
        states[t], y[t] = h, output(system, u, t, seen if system.C.before_update else h)
    return Run(y, h, states)


def attention(system: KernelSystem, u: Any) -> tuple[np.ndarray, np.ndarray]:
    """Causal softmax attention, weight by weight: outputs (L, H·p) and map (H, L, L)."""
    u, (length, heads, _) = np.asarray(u), system.q.shape
    v = u if system.W is None else u @ np.asarray(system.W).T
    v = v.reshape(length, -1, system.num_channels)
    share = heads // v.shape[1]
    reset = np.zeros(length, bool) if system.reset is None else np.asarray(system.reset)
    document = np.cumsum(reset)
    phi = np.zeros((heads, length, length))
    y = np.zeros((length, heads, system.num_channels), v.dtype)
    for h in range(heads):
        for t in range(length):
            weight = np.zeros(length)
            for s in range(t + 1):
                near = system.window is None or t - s < system.window
                near = near or s - np.argmax(document == document[t]) < system.keep_first
                if near and document[s] == document[t]:
                    weight[s] = np.exp(score(system, h, t, s))
            sink = 0 if system.sink is None else np.exp(np.asarray(system.sink)[h])
            phi[h, t] = weight / (weight.sum() + sink)
        y[:, h] = phi[h] @ v[:, h // share]
    return y.reshape(length, -1), phi


def score(system: KernelSystem, h: int, t: int, s: int) -> float:
    """The score of query t and key s in head h."""
    q, k = np.asarray(system.q), np.asarray(system.k)
    key = k[s, h // (q.shape[1] // k.shape[1])]
    if (A := system.key_transition) is not None:
        matrices = np.asarray(A.matrix())
        matrices = np.broadcast_to(matrices, (len(q), *matrices.shape[1:]))
        for r in range(s + 1, t + 1):
            key = matrices[r, h * matrices.shape[1] // q.shape[1]] @ key
    x = key @ q[t, h]
    if system.soft_cap is not None:
        x = system.soft_cap * np.tanh(x / system.soft_cap)
    if system.weight_log_decay is not None:
        log_a = np.broadcast_to(np.asarray(system.weight_log_decay), (len(q), q.shape[1]))
        x = x + log_a[s + 1 : t + 1, h].sum()
    return x


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
