"""Delta rules: S_t = (I − β_t k_t k_tᵀ) e^{g_t} S_{t−1} + β_t k_t v_tᵀ."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import DiagonalPlusLowRank, InnerOutput, OuterInput, System
from dsfjax.core.transitions import to_heads
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, times, wide
from dsfjax.ops.gates import log_decay, unit, write_strength
from dsfjax.ops.op import Assembled, op


def low_rank(
    log_a: Array,
    w: Array,
    z: Array,
    *,
    scale: Array | None = None,
    b: Array,
    gate: Array | None = None,
    c: Array,
    v: Array,
    reset: Array | None,
) -> Assembled:
    """A = diag(e^log_a) − s w zᵀ, B = b with a gate on v, C = c; w, z, b and c may have groups."""
    system = System(
        DiagonalPlusLowRank(log_a, w, z, scale=scale),
        OuterInput(b, gate),
        InnerOutput(c),
        reset=reset,
        state_shape=(v.shape[1], b.shape[-1], v.shape[2]),
        length=v.shape[0],
    )
    return Assembled(system, flat(v))


def erase_and_write(
    q: Array,
    k: Array,
    v: Array,
    log_a: Array | None,
    beta: Array | None,
    *,
    written: Array | None = None,
    reset: Array | None,
) -> Assembled:
    """A = (I − β k̃ kᵀ) diag(e^log_a), B = β k̃, C = q, where k̃ is ``written``, by default k.

    Args:
        q: (T, H, K), scaled.
        k: (T, H, K).
        v: (T, HV, V).
        log_a: (T, HV), or (T, HV, K); None for no decay.
        beta: (T, HV); None for 1.
        written: k̃, (T, H, K).
        reset: (T,).
    """
    heads, dtype = v.shape[1], wide(v).dtype
    beta = jnp.ones((v.shape[0], heads, 1), dtype) if beta is None else wide(beta)[..., None]
    log_a = jnp.zeros((1, heads, 1), dtype) if log_a is None else wide(log_a)
    written = k if written is None else written
    if log_a.ndim == 2:
        log_a = log_a[..., None]
    if log_a.shape[-1] == 1:  # the decay commutes with k̃ kᵀ, so k keeps its groups
        scale, z = beta * jnp.exp(log_a), k
    else:
        scale, z = beta, times(to_heads(k, heads), jnp.exp(log_a))
    # W is the very array that is written.
    return low_rank(log_a, written, z, scale=scale, b=written, gate=beta, c=q, v=v, reset=reset)


def _delta_rule(
    q: Array,
    k: Array,
    v: Array,
    beta: Array | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    return erase_and_write(scaled(q, scale), k, v, None, beta, reset=reset)


@op(_delta_rule, "fla.ops.delta_rule", "fused_recurrent_delta_rule")
def chunk_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    beta: Float[Array, "B T HV"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The delta rule: what is stored under k_t is replaced by v_t, to a part β_t.

    .. math:: S_t = (I - β_t k_t k_t^\top) S_{t-1} + β_t k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    A = I − β k kᵀ, B = β k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        beta: β, how much is erased and written, by default 1.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Schlag et al. (2021), arXiv:2102.11174; Yang et al. (2024), arXiv:2406.06484.
    """
    return run(
        partial(_delta_rule, scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel),
        (q, k, v, beta),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_recurrent_delta_rule = chunk_delta_rule


def gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    A_log: Array | None = None,
    dt_bias: Array | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    """The gated delta rule with what the kernels do before it; g is (T, HV) or (T, HV, K)."""
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    beta = write_strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    g = log_decay(g, A_log, dt_bias, lower_bound) if use_gate_in_kernel else g
    return erase_and_write(scaled(q, scale), k, v, g, beta, reset=reset)


@op(gated_delta_rule, "fla.ops.gated_delta_rule", "chunk_gdn")
def chunk_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"],
    beta: Float[Array, "B T HV"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    use_gate_in_kernel: bool = False,
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The gated delta rule (Gated DeltaNet).

    .. math:: S_t = e^{g_t} (I - β_t k_t k_t^\top) S_{t-1} + β_t k_t v_t^\top, \quad
              y_t = s\, S_t^\top q_t .

    A = e^g (I − β k kᵀ), B = β k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per step and head.
        beta: β, how much is erased and written.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        use_beta_sigmoid_in_kernel: Whether beta is raw and its sigmoid counts.
        allow_neg_eigval: Whether that sigmoid is doubled.
        state_v_first: Whether states are [N, HV, V, K].
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.
        use_gate_in_kernel: Whether g is raw; see `A_log`.
        A_log: Log rate of the raw gate: g becomes −e^A_log softplus(g + dt_bias).
        dt_bias: Bias of the raw gate.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Yang et al. (2024), arXiv:2412.06464.
    """
    return run(
        partial(
            gated_delta_rule,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
            allow_neg_eigval=allow_neg_eigval,
            use_gate_in_kernel=use_gate_in_kernel,
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


chunk_gdn = chunk_gated_delta_rule


def _fused_gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    gk: Array | None = None,
    gv: Array | None = None,
    beta: Array | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Array | None = None,
    dt_bias: Array | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    beta = jnp.ones(v.shape[:2], wide(v).dtype) if beta is None else beta
    beta = write_strength(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    if use_gate_in_kernel:
        if g is None:
            raise ValueError("use_gate_in_kernel: expected a raw gate g, got None; give it.")
        g = log_decay(g, A_log, dt_bias)
    log_a, beta, v = by_channel(g, gk, gv, beta, v)
    return erase_and_write(scaled(q, scale), k, v, log_a, beta, reset=reset)


def by_channel(
    g: Array | None, gk: Array | None, gv: Array | None, beta: Array | None, v: Array
) -> tuple[Array | None, Array | None, Array]:
    """The log decay, β and the values, with every value channel as a head if any of them differ.

    A low rank A is one matrix for all value channels of a head. Where a decay gv or a β (T, HV, V)
    differs between them, each channel becomes a head of its own, with p = 1.
    """
    split = splits_channels(gv, beta)
    length, heads = v.shape[0], v.shape[1] * (v.shape[2] if split else 1)
    decays = []
    if g is not None:
        decays.append(to_heads(wide(g)[..., None], heads))
    if gk is not None:
        decays.append(to_heads(wide(gk), heads))
    if gv is not None:
        decays.append(wide(gv).reshape(length, heads, 1))
    log_a = sum(decays[1:], decays[0]) if decays else None
    if not split:
        return log_a, beta, v
    if beta is not None:
        beta = beta.reshape(length, heads) if beta.ndim == 3 else to_heads(beta, heads, 1)
    return log_a, beta, v.reshape(length, heads, 1)


def splits_channels(gv: Array | None, beta: Array | None, batch_axes: int = 0) -> bool:
    """Whether value channels of a head have decays or β of their own."""
    return gv is not None or (beta is not None and beta.ndim - batch_axes == 3)


def heads_of_channels(states: Array | None, v_first: bool) -> Array | None:
    """States [N, HV, K, V], or [N, HV, V, K], as those of HV·V heads, [N, HV·V, K, 1]."""
    if states is None:
        return None
    states = states if v_first else states.swapaxes(-1, -2)
    return states.reshape(states.shape[0], -1, states.shape[3], 1)


def channels_of_heads(states: Array | None, heads: int, v_first: bool) -> Array | None:
    """The inverse of `heads_of_channels`."""
    if states is None:
        return None
    states = states.reshape(states.shape[0], heads, -1, states.shape[2])
    return states if v_first else states.swapaxes(-1, -2)


@op(_fused_gated_delta_rule, "fla.ops.gated_delta_rule", "fused_recurrent_gdn")
def fused_recurrent_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"] | None = None,
    gk: Float[Array, "B T HV K"] | None = None,
    gv: Float[Array, "B T HV V"] | None = None,
    beta: Float[Array, "B T HV"] | Float[Array, "B T HV V"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Float[Array, " HV"] | None = None,
    dt_bias: Float[Array, " _"] | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""The gated delta rule with decays per head, key channel and value channel.

    .. math:: \bar S_t = e^{g_t} \mathrm{diag}(e^{gk_t}) S_{t-1} \mathrm{diag}(e^{gv_t}), \quad
              S_t = \bar S_t + k_t (β_t ⊙ (v_t - \bar S_t^\top k_t))^\top, \quad
              y_t = s\, S_t^\top q_t .

    A = (I − β_c k kᵀ) diag(e^{g + gk + gv_c}) in value channel c, B = β k, C = s q, D = 0. With gv,
    or β per value channel, every channel is a head of the System, with p = 1.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per head.
        gk: Log decay per key channel.
        gv: Log decay per value channel.
        beta: β, per head or per value channel, by default 1.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        use_gate_in_kernel: Whether g is raw; see `A_log`.
        A_log: Log rate of the raw gate: g becomes −e^A_log softplus(g + dt_bias).
        dt_bias: Bias of the raw gate.
        use_beta_sigmoid_in_kernel: Whether beta is raw and its sigmoid counts.
        allow_neg_eigval: Whether that sigmoid is doubled.
        state_v_first: Whether states are [N, HV, V, K].
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Yang et al. (2024), arXiv:2412.06464.
    """
    split, states = splits_channels(gv, beta, batch_axes=1), initial_state
    o, last = run(
        partial(
            _fused_gated_delta_rule,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            use_gate_in_kernel=use_gate_in_kernel,
            A_log=A_log,
            dt_bias=dt_bias,
            use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
            allow_neg_eigval=allow_neg_eigval,
        ),
        (q, k, v, g, gk, gv, beta),
        v.shape,
        initial_state=heads_of_channels(states, state_v_first) if split else states,
        output_final_state=output_final_state,
        state_v_first=state_v_first and not split,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    return o, channels_of_heads(last, v.shape[2], state_v_first) if split else last


fused_recurrent_gdn = fused_recurrent_gated_delta_rule
