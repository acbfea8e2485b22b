"""Diagonals plus a product of other vectors than the key: Comba, DPLR, IPLR, Oja's rule."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import DiagonalPlusLowRank, InnerOutput, OuterInput, System, l2norm
from dsfjax.core.transitions import to_heads
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, times, wide
from dsfjax.ops.delta import low_rank
from dsfjax.ops.gates import unit
from dsfjax.ops.op import Assembled, op


def _comba(
    q: Array,
    k: Array,
    v: Array,
    p: Array | None,
    g: Array,
    beta: Array | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    p = k if p is None else p
    q, k, p = unit(q, k, p) if use_qk_l2norm_in_kernel else (q, k, p)
    beta = jnp.ones(v.shape[:2], wide(v).dtype) if beta is None else wide(beta)
    gate, c = beta[..., None], scaled(q, scale)
    return low_rank(wide(g)[..., None], k, p, scale=gate, b=k, gate=gate, c=c, v=v, reset=reset)


@op(_comba, "fla.ops.comba")
def chunk_comba(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    p: Float[Array, "B T H K"] | None,
    g: Float[Array, "B T HV"],
    beta: Float[Array, "B T HV"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The delta rule whose correction is read by a key of its own (Comba).

    .. math:: S_t = e^{g_t} S_{t-1} - β_t k_t p_t^\top S_{t-1} + β_t k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    A = e^g I − β k pᵀ, B = β k, C = s q, D = 0: p reads the state before it decays.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        p: What reads the state to be corrected; None for k.
        g: Log decay per step and head.
        beta: β, how much is erased and written, by default 1.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q, k and p are brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Hu et al. (2025), arXiv:2506.02475.
    """
    return run(
        partial(_comba, scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel),
        (q, k, v, p, g, beta),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


@op(_comba, "fla.ops.comba")
def fused_recurrent_comba(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    p: Float[Array, "B T H K"] | None,
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"],
    beta: Float[Array, "B T HV"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    """`chunk_comba` with p before v."""
    return chunk_comba(
        *(q, k, v, p, g, beta, scale),
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


def dplr(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    gk: Array | None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    """A = diag(e^gk) + b aᵀ, B = k, C = s q: a reads the state before it decays."""
    log_a = jnp.zeros((1, v.shape[1], 1), wide(v).dtype) if gk is None else wide(gk)
    return low_rank(log_a, -b, a, b=k, c=scaled(q, scale), v=v, reset=reset)


def _iplr(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    return dplr(q, k, v, a, b, None, scale, reset=reset)


@op(dplr, "fla.ops.generalized_delta_rule")
def chunk_dplr_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    gk: Float[Array, "B T HV K"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    reverse: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""A diagonal plus a product of any two vectors (the transition of RWKV-7).

    .. math:: S_t = \mathrm{diag}(e^{gk_t}) S_{t-1} + b_t a_t^\top S_{t-1} + k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    A = diag(e^gk) + b aᵀ, B = k, C = s q, D = 0: a reads the state before it decays.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        a: What reads the state.
        b: Where what was read is written.
        gk: Log decay per key channel.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        reverse: Whether time runs backwards.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Peng et al. (2025), arXiv:2503.14456.
    """
    return run(
        partial(dplr, scale=scale),
        (q, k, v, a, b, gk),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_recurrent_dplr_delta_rule = chunk_dplr_delta_rule.reordered(
    "fused_recurrent_dplr_delta_rule", "reverse", "cu_seqlens"
)


@op(_iplr, "fla.ops.generalized_delta_rule", "fused_recurrent_iplr_delta_rule")
def chunk_iplr_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The identity plus a product of any two vectors.

    .. math:: S_t = S_{t-1} + b_t a_t^\top S_{t-1} + k_t v_t^\top, \quad y_t = s\, S_t^\top q_t .

    A = I + b aᵀ, B = k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        a: What reads the state.
        b: Where what was read is written.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.
    """
    return run(
        partial(_iplr, scale=scale),
        (q, k, v, a, b),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_recurrent_iplr_delta_rule = chunk_iplr_delta_rule


def _gated_oja_rule(
    q: Array,
    k: Array,
    v: Array,
    gv: Array | None = None,
    beta: Array | None = None,
    scale: float | None = None,
    use_q_l2norm: bool = False,
    use_k_l2norm: bool = False,
    use_qk_l2norm_in_kernel: bool | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    (length, heads, channels), dtype = v.shape, wide(v).dtype
    if use_qk_l2norm_in_kernel is not None and not use_q_l2norm and not use_k_l2norm:
        use_q_l2norm = use_k_l2norm = True
    q, k = l2norm(q) if use_q_l2norm else q, l2norm(k) if use_k_l2norm else k
    strong = jnp.ones((length, heads, 1), dtype) if beta is None else wide(beta)[..., None]
    log_a = jnp.zeros((1, heads, 1), dtype) if gv is None else wide(gv)
    system = System(
        DiagonalPlusLowRank(log_a, v, times(v, jnp.exp(log_a)), scale=strong),
        OuterInput(v, strong),
        InnerOutput(scaled(q, scale), over="p"),
        reset=reset,
        state_shape=(heads, channels, k.shape[2]),
        length=length,
    )
    return Assembled(system, flat(to_heads(k, heads)))


@op(_gated_oja_rule, "fla.ops.gated_oja_rule", "fused_recurrent_gated_oja_rule")
def chunk_gated_oja_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    gv: Float[Array, "B T HV V"] | None = None,
    beta: Float[Array, "B T HV"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_q_l2norm: bool = False,
    use_k_l2norm: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    use_qk_l2norm_in_kernel: bool | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Oja's rule: the delta rule on the other side of the state.

    .. math:: S_t = S_{t-1} \mathrm{diag}(e^{gv_t}) (I - β_t v_t v_t^\top) + β_t k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    The state of the System is X = Sᵀ, with n = V and p = K: A = (I − β v vᵀ) diag(e^gv), B = β v
    with k as the values, C = s q over p, D = 0. v is taken as it is.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        gv: Log decay per value channel, by default 0.
        beta: β, how much is erased and written, by default 1.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_q_l2norm: Whether q is brought to unit length.
        use_k_l2norm: Whether k is brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        use_qk_l2norm_in_kernel: If it is given at all, even as False, and neither of the two above
            is set, both are.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.
    """
    return run(
        partial(
            _gated_oja_rule,
            scale=scale,
            use_q_l2norm=use_q_l2norm,
            use_k_l2norm=use_k_l2norm,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        ),
        (q, k, v, gv, beta),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
        state_v_first=True,  # of X, which has V first
    )


fused_recurrent_gated_oja_rule = chunk_gated_oja_rule
