r"""Mamba-3: SSD whose keys rotate and whose write is a trapezoid, with one or several values.

.. math::
   S_t = a_t S_{t-1} + (1 - λ_t) Δ_t a_t \, \tilde k_{t-1} v_{t-1}^\top + λ_t Δ_t \, \tilde k_t
   v_t^\top, \qquad a_t = e^{(AΔ)_t}, \quad λ_t = σ(\mathrm{Trap}_t),

with keys and queries turned by θ_t = θ_{t−1} + π tanh(Angles_t) Δ_t: a complex state written in
real numbers. One step writes two vectors, this key and the last: an input map of rank 2, or 2R
where a token has R keys and values (MIMO).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from dsfjax.core import DenseSkip, InnerOutput, OuterInput, Scalar, System
from dsfjax.engines import scan
from dsfjax.ops.batch import CuSeqlens, checked, wide
from dsfjax.ops.op import Assembled, op
from dsfjax.ops.turning import rotate

SisoStates = tuple[
    Float[Array, "K H S"], Float[Array, "K H P N"], Float[Array, "K H N"], Float[Array, "K H P"]
]
"""Angle, S, k̃ and v of K sequences, with one key and value per step."""

MimoStates = tuple[
    Float[Array, "K H S"],
    Float[Array, "K H P N"],
    Float[Array, "K R H N"],
    Float[Array, "K H P"] | Float[Array, "K H R P"],
]
"""The same with R of them, and V or v^r as the values."""


class _Before(NamedTuple):
    """What one sequence is given by the one before: angle (H, S), k (R, H, N), v (R, H, P)."""

    angle: Array
    k: Array
    v: Array


class _Turned(NamedTuple):
    """Angles (T, H, S), turned keys and queries (T, R, H, N), values (T, R, H, P)."""

    angle: Array
    k: Array
    q: Array
    v: Array


def _turned(
    Q: Array,
    K: Array,
    v: Array,
    DT: Array,
    Angles: Array,
    before: _Before,
    start: Array,
    segment: Array,
    neighbours: bool,
) -> _Turned:
    """Turn keys and queries (T, R, H, N) by the sum of the angles since the start of a segment."""
    step = math.pi * jnp.tanh(wide(Angles)) * wide(DT).T[:, :, None]
    total = jnp.cumsum(step, axis=0)
    # The sum before the segment of every step began.
    first = jax.lax.cummax(jnp.where(start, jnp.arange(len(start)), 0))
    angle = total - (total - step)[first] + before.angle[segment]
    k, q = (rotate(wide(x), angle[:, None], neighbours) for x in (K, Q))
    return _Turned(angle, k, q, v)


def _assembled(
    turned: _Turned,
    ADT: Array,
    DT: Array,
    Trap: Array,
    before: _Before,
    start: Array,
    segment: Array,
    reset: Array | None,
) -> Assembled:
    """The System that writes the keys and values of this step and those of the last one."""
    _, k, q, v = turned
    length, rank, heads, p = v.shape

    def last(x: Array, entering: Array) -> Array:
        moved = jnp.concatenate([x[:1], x[:-1]])
        return jnp.where(start[:, None, None, None], entering.astype(x.dtype)[segment], moved)

    ADT, DT, lam = wide(ADT).T, wide(DT).T, jax.nn.sigmoid(wide(Trap).T)
    now, then = lam * DT, (1 - lam) * DT * jnp.exp(ADT)
    scale = jnp.concatenate([jnp.repeat(x[:, None], rank, axis=1) for x in (now, then)], axis=1)
    keys = jnp.concatenate([k, last(k, before.k)], axis=1)
    values = jnp.concatenate([v, last(v, before.v)], axis=1)
    system = System(
        Scalar(ADT),
        OuterInput(keys, scale[..., None], rank=2 * rank),
        InnerOutput(q, rank=rank) if rank > 1 else InnerOutput(q[:, 0]),
        reset=reset,
        state_shape=(heads, k.shape[3], p),
        length=length,
    )
    return Assembled(system, values.reshape(length, -1))


class _Packing(NamedTuple):
    """Which sequence every step belongs to (T,), where they start (T,), where they end (S,)."""

    segment: Array
    start: Array
    ends: Array
    full: Array

    @classmethod
    def of(
        cls, owner: str, length: int, cu_seqlens: CuSeqlens | None, batch: int, before: Any = None
    ) -> _Packing:
        states = None if before is None else before[0].shape[0]
        if cu_seqlens is None:
            cu: Any = np.array([0, length])
            if states not in (None, batch):
                raise ValueError(
                    f"{owner}: expected Input_States of each of {batch} sequences, got {states}. "
                    "Sequences that are packed need cu_seqlens."
                )
        else:
            cu = checked(cu_seqlens, batch, length, states)
        cu = jnp.asarray(cu)
        segment = jnp.searchsorted(cu, jnp.arange(length, dtype=cu.dtype), side="right") - 1
        start = jnp.zeros(length, bool).at[cu].set(True, mode="drop")
        return cls(segment, start, jnp.clip(cu[1:] - 1, 0, length - 1), cu[1:] > cu[:-1])


def _zero(count: int, heads: int, angles: int, rank: int, n: int, p: int, dtype: Any) -> _Before:
    shapes = (heads, angles), (rank, heads, n), (rank, heads, p)
    return _Before(*(jnp.zeros((count, *shape), dtype) for shape in shapes))


def _run(
    assembled: Assembled,
    turned: _Turned,
    before: _Before,
    h0: Array | None,
    packing: _Packing,
    whole: bool,
) -> tuple[Array, Array, _Before]:
    """Outputs, the states (S, H, n, p) at the ends of the sequences, and what they leave."""
    system, u = assembled
    if whole:
        y, last = scan(system, u, None if h0 is None else h0[0])
        states = last[None]
    else:
        # States enter at the sequences that have tokens, in their order.
        order = jnp.argsort(~packing.full, stable=True)
        entering = None if h0 is None else h0[order]
        y, _, states = scan(system, u, entering, return_states=packing.ends)
        kept = jnp.zeros_like(states) if h0 is None else h0.astype(states.dtype)
        states = jnp.where(packing.full[:, None, None, None], states, kept)

    def left(x: Array, entering: Array) -> Array:
        full = packing.full.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(full, x[packing.ends], entering.astype(x.dtype))

    after = _Before(*map(left, (turned.angle, turned.k, turned.v), before))
    return y, states, after


def _siso(
    Q: Array,
    K: Array,
    V: Array,
    ADT: Array,
    DT: Array,
    Trap: Array,
    Q_bias: Array,
    K_bias: Array,
    Angles: Array,
    D: Array | None = None,
) -> Assembled:
    """The System of one sequence, without its gate."""
    packing = _Packing.of("mamba3_siso_combined", V.shape[0], None, 1)
    given = (Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles)
    (system, u), *_ = _siso_parts(*given, None, packing, None)
    if D is not None:  # of the values only those of this step are skipped to the output
        now = jnp.diag(jnp.repeat(wide(D), V.shape[2]))
        skip = DenseSkip(jnp.concatenate([now, jnp.zeros_like(now)], axis=1)[None])
        system = dataclasses.replace(system, D=skip)
    return Assembled(system, u)


def _siso_parts(
    Q: Array,
    K: Array,
    V: Array,
    ADT: Array,
    DT: Array,
    Trap: Array,
    Q_bias: Array,
    K_bias: Array,
    Angles: Array,
    before: _Before | None,
    packing: _Packing,
    reset: Array | None,
) -> tuple[Assembled, _Turned, _Before]:
    heads, p = V.shape[1:]
    q, k = (
        (jnp.repeat(wide(x), heads // x.shape[1], axis=1) + wide(bias)[None])[:, None]
        for x, bias in ((Q, Q_bias), (K, K_bias))
    )
    if before is None:
        count, n = packing.ends.shape[0], q.shape[3]
        before = _zero(count, heads, Angles.shape[2], 1, n, p, q.dtype)
    at = packing.start, packing.segment
    turned = _turned(q, k, wide(V)[:, None], DT, Angles, before, *at, True)
    return _assembled(turned, ADT, DT, Trap, before, *at, reset), turned, before


@op(_siso, "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")
def mamba3_siso_combined(
    Q: Float[Array, "B T G N"],
    K: Float[Array, "B T G N"],
    V: Float[Array, "B T H P"],
    ADT: Float[Array, "B H T"],
    DT: Float[Array, "B H T"],
    Trap: Float[Array, "B H T"],
    Q_bias: Float[Array, "H N"],
    K_bias: Float[Array, "H N"],
    Angles: Float[Array, "B T H S"],
    D: Float[Array, " H"] | None = None,
    Z: Float[Array, "B T H P"] | None = None,
    Input_States: SisoStates | None = None,
    chunk_size: int | None = 64,
    return_final_states: bool = False,
    cu_seqlens: CuSeqlens | None = None,
) -> Array | tuple[Array, ...]:
    r"""The scan of Mamba-3 with one key and value per step.

    .. math:: y_t = (S_t^\top \tilde q_t + D v_t) \, \mathrm{silu}(Z_t), \quad
              \tilde q_t = R(θ_t)(Q_t + b_Q), \quad \tilde k_t = R(θ_t)(K_t + b_K),

    with S as in this module. R turns the pairs (2i, 2i + 1), i < S. A = a I, B of rank 2, C = q̃, D;
    the gate silu(Z) acts on y and is not in the System.

    Args:
        Q: Queries of G groups; head h has those of group h // (H / G).
        K: Keys, alike.
        V: Values.
        ADT: Log decays A Δ, time last.
        DT: Δ, time last.
        Trap: λ before its sigmoid, time last.
        Q_bias: Added to the queries of every head.
        K_bias: Added to the keys of every head.
        Angles: Angles of S ≤ N / 2 pairs, before tanh.
        D: Skip.
        Z: Gate, before its silu.
        Input_States: (angle [K, H, S], S [K, H, P, N], k̃ [K, H, N], v [K, H, P]) before the first
            steps of K = B, or of the K packed sequences; by default 0.
        chunk_size: No number depends on it; the engine chooses its own.
        return_final_states: Whether to return these states at the ends; the angle modulo 2π, with
            the gradient of the angle.
        cu_seqlens: Starts and end of packed sequences, [K + 1]; then B is 1.

    Returns:
        y [B, T, H, P] in the dtype of V; with ``return_final_states`` also the four states.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Lahoti et al. (2026), arXiv:2603.15569.
    """
    batch, length = V.shape[:2]
    _check("mamba3_siso_combined", Q.shape[-1], Angles.shape[-1], chunk_size)
    packing = _Packing.of("mamba3_siso_combined", length, cu_seqlens, batch, Input_States)
    before, h0 = None, None
    if Input_States is not None:
        angle, ssm, k, v = (wide(x) for x in Input_States)
        before = _Before(angle, k[:, None], v[:, None])
        h0 = ssm.swapaxes(2, 3)
    whole = cu_seqlens is None

    def one(arrays: Any, before: _Before | None, h0: Array | None) -> Any:
        Q, K, V, ADT, DT, Trap, Angles = arrays
        given = (Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles)
        reset: Any = None if whole else packing.start
        assembled, turned, entering = _siso_parts(*given, before, packing, reset)
        return _run(assembled, turned, entering, h0, packing, whole)

    # One sequence per row, or all of them in the only row.
    rows = (lambda x: x[:, None]) if whole else (lambda x: x[None])
    arrays = (Q, K, V, ADT, DT, Trap, Angles)
    y, states, after = jax.vmap(one)(arrays, jax.tree.map(rows, before), jax.tree.map(rows, h0))
    y = y.reshape(V.shape)
    y = y if D is None else y + wide(D)[None, None, :, None] * wide(V)
    y = (y if Z is None else y * jax.nn.silu(wide(Z))).astype(V.dtype)
    if not return_final_states:
        return y
    states, after = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (states, after))
    turns = jax.lax.stop_gradient(jnp.floor(after.angle / (2 * math.pi)))
    angle = after.angle - 2 * math.pi * turns
    return y, angle, states.swapaxes(2, 3), after.k[:, 0], after.v[:, 0]


def _check(owner: str, n: int, pairs: int, chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{owner}: expected chunk_size >= 1, got {chunk_size}.")
    if 2 * pairs > n:
        raise ValueError(
            f"{owner}: expected Angles of at most N / 2 = {n // 2} pairs, got {pairs}."
        )


def _mimo(
    Q: Array,
    K: Array,
    V: Array,
    ADT: Array,
    DT: Array,
    Trap: Array,
    Q_bias: Array,
    K_bias: Array,
    MIMO_V: Array,
    Angles: Array,
    rotate_pairwise: bool = False,
) -> Assembled:
    """The System of one sequence, before skip, gate and the sum over the outputs."""
    packing = _Packing.of("mamba3_mimo", V.shape[0], None, 1)
    given = (Q, K, V, ADT, DT, Trap, Q_bias, K_bias, MIMO_V, Angles)
    return _mimo_parts(*given, rotate_pairwise, None, packing, None)[0]


def _mimo_parts(
    Q: Array,
    K: Array,
    V: Array,
    ADT: Array,
    DT: Array,
    Trap: Array,
    Q_bias: Array,
    K_bias: Array,
    MIMO_V: Array,
    Angles: Array,
    rotate_pairwise: bool,
    before: _Before | None,
    packing: _Packing,
    reset: Array | None,
) -> tuple[Assembled, _Turned, _Before]:
    heads, p = V.shape[1:]
    q, k = (
        jnp.repeat(wide(x), heads // x.shape[2], axis=2) + wide(bias).swapaxes(0, 1)[None]
        for x, bias in ((Q, Q_bias), (K, K_bias))
    )
    v = wide(V)[:, None] * wide(MIMO_V).swapaxes(0, 1)[None]
    if before is None:
        count, (rank, n) = packing.ends.shape[0], (q.shape[1], q.shape[3])
        before = _zero(count, heads, Angles.shape[2], rank, n, p, q.dtype)
    at = packing.start, packing.segment
    turned = _turned(q, k, v, DT, Angles, before, *at, rotate_pairwise)
    return _assembled(turned, ADT, DT, Trap, before, *at, reset), turned, before


@op(_mimo, "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo")
def mamba3_mimo(
    Q: Float[Array, "B T R G N"],
    K: Float[Array, "B T R G N"],
    V: Float[Array, "B T H P"],
    ADT: Float[Array, "B H T"],
    DT: Float[Array, "B H T"],
    Trap: Float[Array, "B H T"],
    Q_bias: Float[Array, "H R N"],
    K_bias: Float[Array, "H R N"],
    MIMO_V: Float[Array, "H R P"],
    MIMO_Z: Float[Array, "H R P"] | None,
    MIMO_Out: Float[Array, "H R P"] | None,
    Angles: Float[Array, "B T H S"],
    D: Float[Array, " H"] | None = None,
    Z: Float[Array, "B T H P"] | None = None,
    chunk_size: int | None = None,
    rotary_dim_divisor: int = 4,
    dtype: DTypeLike | None = None,
    return_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    Input_States: MimoStates | None = None,
    rotate_pairwise: bool = False,
) -> Array | tuple[Array, ...]:
    r"""The scan of Mamba-3 with R keys, queries and values per step.

    .. math:: v^r = \mathrm{MIMO\_V}^r V, \quad o^r_t = S_t^\top \tilde q^r_t + D v^r_t, \quad
              y_t = \sum_r \mathrm{MIMO\_Out}^r \, o^r_t \, \mathrm{silu}(\mathrm{MIMO\_Z}^r Z_t) .

    A = a I, B of rank 2 R, C of rank R; skip, gate and the sum over r are not in the System.

    Args:
        Q: R queries of G groups.
        K: R keys, alike.
        V: Values.
        ADT: Log decays A Δ, time last.
        DT: Δ, time last.
        Trap: λ before its sigmoid, time last.
        Q_bias: Added to the queries.
        K_bias: Added to the keys.
        MIMO_V: Makes R values of one.
        MIMO_Z: Makes R gates of one; only without Z it may be None.
        MIMO_Out: Weighs the R outputs; None for all of them.
        Angles: Angles of S = N / ``rotary_dim_divisor`` pairs, before tanh.
        D: Skip, or None.
        Z: Gate, before its silu, or None.
        chunk_size: No number depends on it; the engine chooses its own.
        rotary_dim_divisor: N / S.
        dtype: Of y; by default that of V.
        return_state: Whether to return states at the ends, which have gradients here.
        cu_seqlens: Starts and end of packed sequences, [K + 1]; then B is 1.
        Input_States: The states before the first steps as they are returned; the last values may
            also be given as v^r, [K, H, R, P].
        rotate_pairwise: Whether R turns pairs (2i, 2i + 1), as the step of the peer and
            `mamba3_siso_combined` do, and not (i, i + N / 2), as the peer's kernel does.

    Returns:
        y [B, T, H, P], or [B, T, R, H, P] without MIMO_Out; with ``return_state`` also the angle
        [K, H, S] (not reduced modulo 2π), S [K, H, P, N], k̃ [K, R, H, N], and the last V
        [K, H, P].

    Raises:
        ValueError: If shapes do not fit.

    References:
        Lahoti et al. (2026), arXiv:2603.15569.
    """
    batch, length, heads, p = V.shape
    n, rank = Q.shape[-1], Q.shape[2]
    _check("mamba3_mimo", n, Angles.shape[-1], chunk_size)
    if Angles.shape[-1] * rotary_dim_divisor != n:
        raise ValueError(
            f"mamba3_mimo: expected Angles of N / rotary_dim_divisor = {n} / {rotary_dim_divisor} "
            f"pairs, got {Angles.shape[-1]}."
        )
    if Z is not None and MIMO_Z is None:
        raise ValueError(
            "mamba3_mimo: expected MIMO_Z next to Z, got None; give both, or leave Z out."
        )
    packing = _Packing.of("mamba3_mimo", length, cu_seqlens, batch, Input_States)
    before, h0 = None, None
    if Input_States is not None:
        angle, ssm, k, v = (wide(x) for x in Input_States)
        v = (v[:, :, None] * wide(MIMO_V)[None] if v.ndim == 3 else v).swapaxes(1, 2)
        before, h0 = _Before(angle, k, v), ssm.swapaxes(2, 3)
    whole = cu_seqlens is None

    def one(arrays: Any, before: _Before | None, h0: Array | None) -> Any:
        *first, Angles = arrays
        given: Any = (*first, Q_bias, K_bias, MIMO_V, Angles)
        reset: Any = None if whole else packing.start
        more: Any = (rotate_pairwise, before, packing, reset)
        assembled, turned, entering = _mimo_parts(*given, *more)
        return _run(assembled, turned, entering, h0, packing, whole)

    rows = (lambda x: x[:, None]) if whole else (lambda x: x[None])
    arrays = (Q, K, V, ADT, DT, Trap, Angles)
    y, states, after = jax.vmap(one)(arrays, jax.tree.map(rows, before), jax.tree.map(rows, h0))
    o = y.reshape(batch, length, rank, heads, p)

    def each(weights: Array, x: Array) -> Array:
        """Weights (H, R, P) times [B, T, 1 or R, H, P]."""
        return wide(weights).swapaxes(0, 1)[None, None] * wide(x)

    if D is not None:
        o = o + wide(D)[None, None, None, :, None] * each(MIMO_V, V[:, :, None])
    if Z is not None and MIMO_Z is not None:
        o = o * jax.nn.silu(each(MIMO_Z, Z[:, :, None]))
    y = o if MIMO_Out is None else each(MIMO_Out, o).sum(axis=2)
    y = y.astype(V.dtype if dtype is None else dtype)
    if not return_state:
        return y
    states, after = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (states, after))
    values = V[:, -1] if whole else V[0][packing.ends]
    if not whole:  # one without tokens gives back what it was given; of v^r no V is known
        entering = jnp.zeros_like(values) if Input_States is None else Input_States[3]
        entering = entering if entering.ndim == 3 else jnp.full_like(values, jnp.nan)
        values = jnp.where(packing.full[:, None, None], values, entering.astype(values.dtype))
    return y, after.angle, states.swapaxes(2, 3), after.k, values
