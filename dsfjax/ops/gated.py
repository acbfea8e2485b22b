"""Recurrences with a decay per channel: gated linear attention, HGRN."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import (
    Diagonal,
    InnerOutput,
    OuterInput,
    System,
)
from dsfjax.ops.batch import CuSeqlens, run, scaled, wide
from dsfjax.ops.linear import attention, no_decay
from dsfjax.ops.op import Assembled, op


def _gla(
    q: Array,
    k: Array,
    v: Array,
    gk: Array | None = None,
    gv: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    if gk is None and gv is None:
        return attention(no_decay(v), scaled(q, scale), k, v, reset)
    log_a = 0.0
    if gk is not None:
        log_a = wide(gk)[..., None]
    if gv is not None:
        log_a = log_a + wide(gv)[:, :, None]
    return attention(Diagonal(jnp.asarray(log_a)), scaled(q, scale), k, v, reset)


@op(_gla, "fla.ops.gla")
def fused_recurrent_gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    gk: Float[Array, "B T HV K"] | None = None,
    gv: Float[Array, "B T HV V"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Gated linear attention: decays per key channel, per value channel, or both.

    .. math:: S_t = \mathrm{diag}(e^{gk_t}) S_{t-1} \mathrm{diag}(e^{gv_t}) + k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    A is a diagonal over K, V or both; B = k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        gk: Log decay per key channel.
        gv: Log decay per value channel. With both the decay has K·V numbers per step and head.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        reverse: Whether time runs backwards.
        state_v_first: Whether states are [N, HV, V, K].
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Yang et al. (2023), arXiv:2312.06635.
    """
    return run(
        partial(_gla, scale=scale),
        (q, k, v, gk, gv),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


def _chunk_gla(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    return _gla(q, k, v, g, scale=scale, reset=reset)


@op(_chunk_gla, "fla.ops.gla")
def chunk_gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV K"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Gated linear attention: a decay per key channel.

    .. math:: S_t = \mathrm{diag}(e^{g_t}) S_{t-1} + k_t v_t^\top, \quad y_t = s\, S_t^\top q_t .

    A = diag(e^g), B = k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per key channel.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        state_v_first: Whether states are [N, HV, V, K].
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Yang et al. (2023), arXiv:2312.06635.
    """
    return fused_recurrent_gla(
        *(q, k, v, g, None, scale),
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


def _hgrn(x: Array, g: Array, *, reset: Array | None = None) -> Assembled:
    A = Diagonal(wide(g)[:, None, None])
    shape = (1, 1, x.shape[1])
    system = System(
        A, OuterInput(), InnerOutput(), reset=reset, state_shape=shape, length=x.shape[0]
    )
    return Assembled(system, x)


@op(_hgrn, "fla.ops.hgrn")
def fused_recurrent_hgrn(
    x: Float[Array, "B T D"],
    g: Float[Array, "B T D"],
    initial_state: Float[Array, "N D"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""A gated recurrence of single channels.

    .. math:: h_t = e^{g_t} h_{t-1} + x_t, \quad y_t = h_t .

    A = e^g per channel, B = 1, C = 1, D = 0.

    Args:
        x: Inputs.
        g: Log decay per channel.
        initial_state: h.
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, D]; h [N, D] at least float32, or None.

    References:
        Qin et al. (2023), arXiv:2311.04823.
    """
    o, state = run(
        _hgrn,
        (x, g),
        x.shape,
        initial_state=None if initial_state is None else initial_state[:, None, None],
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    return o, None if state is None else state[:, 0, 0]


@op(_hgrn, "fla.ops.hgrn")
def chunk_hgrn(
    x: Float[Array, "B T D"],
    g: Float[Array, "B T D"],
    initial_state: Float[Array, "B D"] | None = None,
    output_final_state: bool = False,
) -> tuple[Array, Array | None]:
    """A gated recurrence of single channels: `fused_recurrent_hgrn` without packed sequences."""
    return fused_recurrent_hgrn(x, g, initial_state, output_final_state)
