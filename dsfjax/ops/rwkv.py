r"""RWKV-4, -6 and -7."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import (
    Diagonal,
    InnerOutput,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    ValueSkip,
    stabilized,
)
from dsfjax.core.rows import inner
from dsfjax.core.transitions import to_heads
from dsfjax.engines import scan
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, wide
from dsfjax.ops.dplr import dplr
from dsfjax.ops.op import Assembled, op


def wkv(
    w: Array,
    u: Array,
    k: Array,
    log_scale: Array | None = None,
    *,
    gate: Array | None = None,
    reset: Array | None = None,
) -> tuple[System, Array]:
    """The System of one sequence in coordinates e^{m_t}, and their last log scale m_T (C,).

    k is in the exponent, so the coordinates follow its running maximum; ``log_scale`` is m_0 and
    ``gate`` multiplies the outputs, (T, C, 1).
    """
    k = wide(k)
    w, u = w.astype(k.dtype), u.astype(k.dtype)
    if log_scale is None:
        log_scale = jnp.full_like(w, -1e38)
    log_a = jnp.broadcast_to(-jnp.exp(w), k.shape)
    m = stabilized(log_a, k, reset=reset, before=log_scale.astype(k.dtype))
    # What is read is scaled once more, as the bonus may exceed all that is in the state.
    present = u[None] + k
    top = jnp.maximum(present, m.log_max_prev)
    system = System(
        Scalar(m.log_a),
        OuterInput(jnp.exp(m.log_b)[..., None]),
        InnerOutput(jnp.exp(m.log_max_prev - top)[..., None], gate, before_update=True),
        eta=SummedNormalizer(bonus=jnp.exp(present - top)),
        reset=reset,
        state_shape=(k.shape[1], 1, 1),
        length=k.shape[0],
    )
    return system, m.log_max[-1]


def _rwkv4_system(
    w: Array,
    u: Array,
    k: Array,
    v: Array,
    log_scale: Array | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    return Assembled(wkv(w, u, k, log_scale, reset=reset)[0], v)


@op(_rwkv4_system, "fla.ops.rwkv4")
def fused_recurrent_rwkv4(
    w: Float[Array, " C"],
    u: Float[Array, " C"],
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"],
    state: Float[Array, "B 3 1 C"],
) -> tuple[Array, Array]:
    r"""The weighted average of RWKV-4, per channel.

    .. math:: y_t = \frac{a_{t-1} + e^{u + k_t} v_t}{b_{t-1} + e^{u + k_t}}, \quad
              a_t = e^{-e^w} a_{t-1} + e^{k_t} v_t, \quad b_t = e^{-e^w} b_{t-1} + e^{k_t} .

    Channels are heads: A = exp(−e^w), B = e^k, C = 1 on the state before the update, η the same
    recurrence of ones, with a bonus e^{u + k} for the present value in both. All in coordinates
    that follow the running maximum of what is in the exponents.

    Args:
        w: Raw decay, constant in time.
        u: Bonus of the present value.
        k: Keys, in the exponent.
        v: Values.
        state: (α, β, ε) with a = α e^ε and b = β e^ε; before the first token (0, 0, −1e38).

    Returns:
        ``(y, state)``: y [B, T, C] and the new state [B, 3, 1, C], at least float32.

    References:
        Peng et al. (2023), arXiv:2305.13048.
    """

    def one(k: Array, v: Array, state: Array) -> tuple[Array, Array]:
        system, log_scale = wkv(w, u, k, wide(state)[2, 0])
        y, last = scan(system, v, jnp.moveaxis(state[:2], 0, -1).swapaxes(0, 1))
        return y, jnp.concatenate([last[:, 0].T, log_scale[None].astype(last.dtype)])[:, None]

    return jax.vmap(one)(k, v, state)


def _rwkv6(
    r: Array,
    k: Array,
    v: Array,
    w: Array,
    u: Array,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    heads = v.shape[1]
    r = scaled(r, scale)
    bonus = inner(wide(r) * wide(u)[None].astype(wide(r).dtype), wide(k))
    system = System(
        Diagonal(wide(w)[..., None]),
        OuterInput(k),
        InnerOutput(r, before_update=True),
        ValueSkip(to_heads(bonus, heads)),
        reset=reset,
        state_shape=(heads, k.shape[2], v.shape[2]),
        length=r.shape[0],
    )
    return Assembled(system, flat(v))


@op(_rwkv6, "fla.ops.rwkv6")
def chunk_rwkv6(
    r: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    w: Float[Array, "B T HV K"],
    u: Float[Array, "H K"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    reverse: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Gated linear attention that reads before it writes, with a bonus for the present (RWKV-6).

    .. math:: y_t = s\, (S_{t-1} + \mathrm{diag}(u) k_t v_t^\top)^\top r_t, \quad
              S_t = \mathrm{diag}(e^{w_t}) S_{t-1} + k_t v_t^\top .

    A = diag(e^w), B = k, C = s r on the state before the update, D = s r·(u ⊙ k) on v.

    Args:
        r: Receptances, what reads.
        k: Keys.
        v: Values.
        w: Log decay per key channel.
        u: Bonus of the present token.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        reverse: Whether time runs backwards.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Peng et al. (2024), arXiv:2404.05892.
    """
    return run(
        partial(_rwkv6, u=u, scale=scale),
        (r, k, v, w),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_recurrent_rwkv6 = chunk_rwkv6.reordered("fused_recurrent_rwkv6", "reverse", "cu_seqlens")


def _rwkv7(
    r: Array,
    w: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    scale: float | None = 1.0,
    *,
    reset: Array | None = None,
) -> Assembled:
    return dplr(r, k, v, a, b, w, scale, reset=reset)


@op(_rwkv7, "fla.ops.rwkv7")
def chunk_rwkv7(
    r: Float[Array, "B T H K"],
    w: Float[Array, "B T HV K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    scale: float | None = 1.0,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The recurrence of RWKV-7, without a scale by default.

    .. math:: S_t = \mathrm{diag}(e^{w_t}) S_{t-1} + b_t a_t^\top S_{t-1} + k_t v_t^\top, \quad
              y_t = s\, S_t^\top r_t .

    A = diag(e^w) + b aᵀ, B = k, C = s r, D = 0.

    Args:
        r: Receptances, what reads.
        w: Log decay per key channel.
        k: Keys.
        v: Values.
        a: What reads the state.
        b: Where what was read is written.
        scale: s; None for K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Peng et al. (2025), arXiv:2503.14456.
    """
    return run(
        partial(_rwkv7, scale=scale),
        (r, w, k, v, a, b),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


@op(_rwkv7, "fla.ops.rwkv7")
def fused_recurrent_rwkv7(
    r: Float[Array, "B T H K"],
    w: Float[Array, "B T HV K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = True,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    """`chunk_rwkv7`, by default with the scale K^(-1/2) and with the final state."""
    scale = r.shape[-1] ** -0.5 if scale is None else scale
    return chunk_rwkv7(
        *(r, w, k, v, a, b, scale),
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
