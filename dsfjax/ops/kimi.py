"""Delta rules with a decay per key channel: Kimi Delta Attention, Gated DeltaNet-2."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core.transitions import to_heads
from dsfjax.ops.batch import CuSeqlens, run, scaled, times, wide
from dsfjax.ops.delta import gated_delta_rule, low_rank
from dsfjax.ops.gates import log_decay, unit
from dsfjax.ops.op import Assembled, op


@op(gated_delta_rule, "fla.ops.kda")
def chunk_kda(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV K"],
    beta: Float[Array, "B T HV"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    *,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The delta rule with a decay per key channel (Kimi Delta Attention).

    .. math:: S_t = (I - β_t k_t k_t^\top) \mathrm{diag}(e^{g_t}) S_{t-1} + β_t k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    A = (I − β k kᵀ) diag(e^g), B = β k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per key channel.
        beta: β, how much is erased and written.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        use_gate_in_kernel: Whether g is raw; see `A_log`.
        use_beta_sigmoid_in_kernel: Whether beta is raw and its sigmoid counts.
        allow_neg_eigval: Whether that sigmoid is doubled.
        lower_bound: ℓ < 0: g becomes ℓ σ(e^A_log (g + dt_bias)), without A_log with a factor of 1.
        state_v_first: Whether states are [N, HV, V, K].
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.
        A_log: Log rate of the raw gate: g becomes −e^A_log softplus(g + dt_bias).
        dt_bias: Bias of the raw gate.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Kimi Team (2025), arXiv:2510.26692.
    """
    return run(
        partial(
            gated_delta_rule,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
            allow_neg_eigval=allow_neg_eigval,
            use_gate_in_kernel=use_gate_in_kernel,
            lower_bound=lower_bound,
            A_log=A_log,
            dt_bias=dt_bias,
        ),
        (q, k, v, g, beta),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


@op(gated_delta_rule, "fla.ops.kda")
def fused_recurrent_kda(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV K"],
    beta: Float[Array, "B T HV"],
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    """`chunk_kda` with another order of arguments."""
    return chunk_kda(
        *(q, k, v, g, beta, scale),
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
        allow_neg_eigval=allow_neg_eigval,
        lower_bound=lower_bound,
        state_v_first=state_v_first,
        A_log=A_log,
        dt_bias=dt_bias,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


def _gdn2(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    b: Array,
    w: Array,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    A_log: Array | None = None,
    dt_bias: Array | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    log_a = log_decay(g, A_log, dt_bias, lower_bound) if use_gate_in_kernel else wide(g)
    z = times(to_heads(k, v.shape[1]), wide(b) * jnp.exp(log_a))
    return low_rank(log_a, k, z, b=k, gate=w, c=scaled(q, scale), v=v, reset=reset)


@op(_gdn2, "fla.ops.gdn2")
def chunk_gdn2(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV K"],
    b: Float[Array, "B T HV K"],
    w: Float[Array, "B T HV V"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The delta rule that erases and writes by gates of their own (Gated DeltaNet-2).

    .. math:: S_t = (I - k_t (b_t ⊙ k_t)^\top) \mathrm{diag}(e^{g_t}) S_{t-1}
              + k_t (w_t ⊙ v_t)^\top, \quad y_t = s\, S_t^\top q_t .

    A = (I − k (b ⊙ k)ᵀ) diag(e^g), B = k with a gate w on the values, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per key channel.
        b: How much is erased, per key channel.
        w: How much is written, per value channel.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        use_gate_in_kernel: Whether g is raw; see `A_log`.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        lower_bound: ℓ < 0: g becomes ℓ σ(e^A_log (g + dt_bias)), without A_log with a factor of 1.
        state_v_first: Whether states are [N, HV, V, K].
        segment_ids: Documents of each row.
        A_log: Log rate of the raw gate: g becomes −e^A_log softplus(g + dt_bias).
        dt_bias: Bias of the raw gate.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.
    """
    return run(
        partial(
            _gdn2,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            use_gate_in_kernel=use_gate_in_kernel,
            lower_bound=lower_bound,
            A_log=A_log,
            dt_bias=dt_bias,
        ),
        (q, k, v, g, b, w),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        state_v_first=state_v_first,
        segment_ids=segment_ids,
    )


@op(_gdn2, "fla.ops.gdn2")
def fused_recurrent_gdn2(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV K"],
    b: Float[Array, "B T HV K"],
    w: Float[Array, "B T HV V"],
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    """`chunk_gdn2` with another order of arguments."""
    return chunk_gdn2(
        *(q, k, v, g, b, w, scale),
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel,
        lower_bound=lower_bound,
        state_v_first=state_v_first,
        A_log=A_log,
        dt_bias=dt_bias,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
