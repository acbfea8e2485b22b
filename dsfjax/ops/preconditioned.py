"""Delta rules that write under keys corrected by a sum of their squares, a System before them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import InnerOutput, OuterInput, Scalar, System, l2norm
from dsfjax.engines import scan
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, wide
from dsfjax.ops.delta import (
    by_channel,
    channels_of_heads,
    erase_and_write,
    heads_of_channels,
    splits_channels,
)
from dsfjax.ops.gates import log_decay, unit
from dsfjax.ops.op import Assembled, op


def _squares(
    k: Array,
    g_atk: Array,
    beta_atk: Array,
    use_qk_l2norm_in_kernel: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    """A sum of squares of keys that decays: A = e^g_atk, B = β_atk, C = 1 on values k²."""
    k = l2norm(k) if use_qk_l2norm_in_kernel else k
    length, heads, n = k.shape
    system = System(
        Scalar(wide(g_atk)),
        OuterInput(scale=wide(beta_atk)[..., None]),
        InnerOutput(),
        reset=reset,
        state_shape=(heads, 1, n),
        length=length,
    )
    return Assembled(system, flat(wide(k) ** 2))


def _corrected(
    q: Array,
    k: Array,
    v: Array,
    squares: Array,
    g: Array | None,
    gk: Array | None,
    gv: Array | None,
    beta: Array | None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Array | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    """The delta rule that writes under k̃ = k x^(−l / (1 + |l|)), l = log(squares + ε) − c."""
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    c = jnp.full(k.shape[1], -0.2) if log_atk_scale is None else log_atk_scale
    size = jnp.log(squares + eps) - c[None, :, None].astype(squares.dtype)
    written = wide(k) * jnp.exp(-jnp.log(x) * size / (1 + jnp.abs(size))).astype(wide(k).dtype)
    log_a, beta, v = by_channel(g, gk, gv, beta, v)
    return erase_and_write(
        scaled(q, scale), k, v, log_a, beta, written=written.astype(k.dtype), reset=reset
    )


def _precond_gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    g_atk: Array,
    beta_atk: Array,
    g: Array | None = None,
    gk: Array | None = None,
    gv: Array | None = None,
    beta: Array | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Array | None = None,
    *,
    reset: Array | None = None,
) -> tuple[Assembled, Assembled]:
    first = _squares(k, g_atk, beta_atk, use_qk_l2norm_in_kernel, reset=reset)
    second = _corrected(
        q,
        k,
        v,
        scan(*first)[0].reshape(k.shape),
        g,
        gk,
        gv,
        beta,
        scale,
        use_qk_l2norm_in_kernel,
        x,
        eps,
        log_atk_scale,
        reset=reset,
    )
    return first, second


def _precond_kda(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    g_atk: Array,
    beta_atk: Array,
    beta: Array,
    scale: float | None = None,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    A_log: Array | None = None,
    dt_bias: Array | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Array | None = None,
    *,
    reset: Array | None = None,
) -> tuple[Assembled, Assembled]:
    g = log_decay(g, A_log, dt_bias, lower_bound) if use_gate_in_kernel else g
    return _precond_gated_delta_rule(
        *(q, k, v, g_atk, beta_atk, None, g, None, beta, scale, use_qk_l2norm_in_kernel),
        *(x, eps, log_atk_scale),
        reset=reset,
    )


@op(_precond_gated_delta_rule, "fla.ops.precond_gated_delta_rule")
def chunk_precond_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g_atk: Float[Array, "B T H"],
    g: Float[Array, "B T HV"],
    beta_atk: Float[Array, "B T H"],
    beta: Float[Array, "B T HV"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    initial_A_state: Float[Array, "N H K"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: CuSeqlens | None = None,
    *,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Float[Array, " H"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None, Array | None]:
    r"""The gated delta rule that writes under keys corrected by their squares so far.

    .. math:: A_t = e^{g^{atk}_t} A_{t-1} + β^{atk}_t k_t^2, \quad l_t = \log(A_t + ε) - c, \quad
              \tilde k_t = k_t\, x^{-l_t / (1 + |l_t|)}, \quad
              S_t = (I - β_t \tilde k_t k_t^\top) e^{g_t} S_{t-1} + β_t \tilde k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    Two Systems: of A with n = 1, a scalar decay, B = β_atk, C = 1; of S the transition above, B =
    β k̃, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g_atk: Log decay of A.
        g: Log decay per step and head.
        beta_atk: What k² is multiplied by in A.
        beta: β, how much is erased and written.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        initial_A_state: A.
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        transpose_state_layout: Whether states are [N, HV, V, K].
        x: Base of the correction of k.
        eps: ε, added to A in the logarithm.
        log_atk_scale: c per head of k, by default −0.2.
        segment_ids: Documents of each row.

    Returns:
        ``(o, S, A)``: o [B, T, HV, V]; S [N, HV, K, V] and A [N, H, K] at least float32, or None.
    """
    return fused_recurrent_precond_gated_delta_rule(
        *(q, k, v, g, None, None, beta, g_atk, beta_atk, scale, initial_state),
        initial_A_state=initial_A_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        transpose_state_layout=transpose_state_layout,
        x=x,
        eps=eps,
        log_atk_scale=log_atk_scale,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


@op(_precond_gated_delta_rule, "fla.ops.precond_gated_delta_rule")
def fused_recurrent_precond_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"] | None = None,
    gk: Float[Array, "B T HV K"] | None = None,
    gv: Float[Array, "B T HV V"] | None = None,
    beta: Float[Array, "B T HV"] | Float[Array, "B T HV V"] | None = None,
    g_atk: Float[Array, "B T H"] | None = None,
    beta_atk: Float[Array, "B T H"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    initial_A_state: Float[Array, "N H K"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    cu_seqlens: CuSeqlens | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Float[Array, " H"] | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None, Array | None]:
    r"""`chunk_precond_gated_delta_rule` with decays per key and value channel, in another order.

    The recurrence and the Systems are those of `fused_recurrent_gated_delta_rule` that writes under
    k̃ instead of k.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per head.
        gk: Log decay per key channel.
        gv: Log decay per value channel.
        beta: β, per head or per value channel, by default 1.
        g_atk: Log decay of A; required.
        beta_atk: What k² is multiplied by in A; required.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        initial_A_state: A.
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        transpose_state_layout: Whether states are [N, HV, V, K].
        x: Base of the correction of k.
        eps: ε, added to A in the logarithm.
        log_atk_scale: c per head of k, by default −0.2.
        segment_ids: Documents of each row.

    Returns:
        ``(o, S, A)``: o [B, T, HV, V]; S [N, HV, K, V] and A [N, H, K] at least float32, or None.
    """
    if g_atk is None or beta_atk is None:
        raise ValueError(
            "fused_recurrent_precond_gated_delta_rule: expected g_atk and beta_atk, got None; give "
            "both."
        )
    squares, last = run(
        partial(_squares, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel),
        (k, g_atk, beta_atk),
        k.shape,
        initial_state=None if initial_A_state is None else initial_A_state[:, :, None],
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    split, states = splits_channels(gv, beta, batch_axes=1), initial_state
    v_first = transpose_state_layout
    o, state = run(
        partial(
            _corrected,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            x=x,
            eps=eps,
            log_atk_scale=log_atk_scale,
        ),
        (q, k, v, squares, g, gk, gv, beta),
        v.shape,
        initial_state=heads_of_channels(states, v_first) if split else states,
        output_final_state=output_final_state,
        state_v_first=v_first and not split,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    state = channels_of_heads(state, v.shape[2], v_first) if split else state
    return o, state, None if last is None else last[:, :, 0]


@op(_precond_kda, "fla.ops.precond_kda")
def chunk_precond_kda(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H K"],
    g_atk: Float[Array, "B T H"],
    beta_atk: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    initial_A_state: Float[Array, "N H K"] | None = None,
    output_final_state: bool = False,
    use_gate_in_kernel: bool = False,
    *,
    lower_bound: float | None = None,
    cu_seqlens: CuSeqlens | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Float[Array, " H"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
) -> tuple[Array, Array | None, Array | None]:
    r"""Kimi Delta Attention that writes under keys corrected by their squares so far.

    Always with q and k of unit length.

    .. math:: A_t = e^{g^{atk}_t} A_{t-1} + β^{atk}_t k_t^2, \quad l_t = \log(A_t + ε) - c, \quad
              \tilde k_t = k_t\, x^{-l_t / (1 + |l_t|)}, \quad
              S_t = (I - β_t \tilde k_t k_t^\top) \mathrm{diag}(e^{g_t}) S_{t-1}
              + β_t \tilde k_t v_t^\top, \quad y_t = s\, S_t^\top q_t .

    Two Systems: of A with n = 1, a scalar decay, B = β_atk, C = 1; of S the transition above, B =
    β k̃, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per key channel.
        g_atk: Log decay of A.
        beta_atk: What k² is multiplied by in A.
        beta: β, how much is erased and written.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        initial_A_state: A.
        output_final_state: Whether to return the state at the end.
        use_gate_in_kernel: Whether g is raw; see `A_log`.
        lower_bound: ℓ < 0: g becomes ℓ σ(e^A_log (g + dt_bias)), without A_log with a factor of 1.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        transpose_state_layout: Whether states are [N, HV, V, K].
        x: Base of the correction of k.
        eps: ε, added to A in the logarithm.
        log_atk_scale: c per head of k, by default −0.2.
        segment_ids: Documents of each row.
        A_log: Log rate of the raw gate: g becomes −e^A_log softplus(g + dt_bias).
        dt_bias: Bias of the raw gate.

    Returns:
        ``(o, S, A)``: o [B, T, HV, V]; S [N, HV, K, V] and A [N, H, K] at least float32, or None.
    """
    return fused_recurrent_precond_kda(
        *(q, k, v, g, g_atk, beta_atk, beta, A_log, dt_bias, scale, initial_state),
        initial_A_state=initial_A_state,
        output_final_state=output_final_state,
        use_gate_in_kernel=use_gate_in_kernel,
        transpose_state_layout=transpose_state_layout,
        x=x,
        eps=eps,
        log_atk_scale=log_atk_scale,
        lower_bound=lower_bound,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


@op(_precond_kda, "fla.ops.precond_kda")
def fused_recurrent_precond_kda(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H K"],
    g_atk: Float[Array, "B T H"],
    beta_atk: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    initial_A_state: Float[Array, "N H K"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    cu_seqlens: CuSeqlens | None = None,
    transpose_state_layout: bool = False,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Float[Array, " H"] | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """`chunk_precond_kda` with another order of arguments, and without unit length if asked."""
    log_a = g
    if use_gate_in_kernel:
        raw = partial(log_decay, A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound)
        log_a = jax.vmap(raw)(g)
    return fused_recurrent_precond_gated_delta_rule(
        *(q, k, v, None, log_a, None, beta, g_atk, beta_atk, scale, initial_state),
        initial_A_state=initial_A_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        transpose_state_layout=transpose_state_layout,
        x=x,
        eps=eps,
        log_atk_scale=log_atk_scale,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
