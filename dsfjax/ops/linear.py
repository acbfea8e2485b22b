r"""Linear attention and its decays: S_t = A_t S_{t−1} + k_t v_tᵀ with a scalar or diagonal A_t."""

from __future__ import annotations

from functools import partial

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
    Transition,
    taylor_features,
)
from dsfjax.core.normalizers import Normalizer
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, times, wide
from dsfjax.ops.op import Assembled, op


def _attention(
    A: Transition, q: Array, k: Array, v: Array, reset: Array | None, eta: Normalizer | None = None
) -> Assembled:
    """k_t is written with v_t, and q_t reads: B = k, C = q."""
    shape = (v.shape[1], k.shape[2], v.shape[2])
    B, C, length = OuterInput(k), InnerOutput(q), q.shape[0]
    system = System(A, B, C, eta=eta, reset=reset, state_shape=shape, length=length)
    return Assembled(system, flat(v))


def _no_decay(v: Array) -> Scalar:
    return Scalar(jnp.zeros((1, v.shape[1]), wide(v).dtype))


def _linear_attn(
    q: Array,
    k: Array,
    v: Array,
    scale: float | None = None,
    normalize: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    eta = SummedNormalizer(epsilon=1e-10) if normalize else None
    return _attention(_no_decay(v), scaled(q, scale), k, v, reset, eta)


@op(_linear_attn, "fla.ops.linear_attn", "fused_chunk_linear_attn")
def chunk_linear_attn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV K V"] | tuple[Array, Array | None] | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | tuple[Array, Array] | None]:
    r"""Linear attention, normalised by default.

    .. math:: S_t = S_{t-1} + k_t v_t^\top, \quad z_t = z_{t-1} + k_t, \quad
              y_t = s\, S_t^\top q_t / (s\, q_t^\top z_t + 10^{-10}) .

    A = I, B = k, C = s q, D = 0, η = cᵀz + 1e-10 (1 without ``normalize``).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: s, by default K^(-1/2).
        initial_state: S, or with ``normalize`` S and z [N, 1, H, K].
        output_final_state: Whether to return the state at the end.
        normalize: Whether to divide by the sum of the weights.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S [N, HV, K, V] at least float32, or (S, z), or None.

    References:
        Katharopoulos et al. (2020), arXiv:2006.16236.
    """
    return _run_linear_attn(
        (q, k, v), scale, initial_state, output_final_state, normalize, cu_seqlens, segment_ids
    )


fused_chunk_linear_attn = chunk_linear_attn


@op(_linear_attn, "fla.ops.linear_attn")
def fused_recurrent_linear_attn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV K V"] | tuple[Array, Array | None] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | tuple[Array, Array] | None]:
    """Linear attention, as `chunk_linear_attn`, but not normalised by default.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: By default K^(-1/2).
        initial_state: S, or with ``normalize`` S and z [N, 1, H, K].
        output_final_state: Whether to return the state at the end.
        reverse: Whether time runs backwards.
        normalize: Whether to divide by the sum of the weights.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        As `chunk_linear_attn`.
    """
    return _run_linear_attn(
        (q, k, v),
        scale,
        initial_state,
        output_final_state,
        normalize,
        cu_seqlens,
        segment_ids,
        reverse,
    )


def _run_linear_attn(
    arrays: tuple[Array, Array, Array],
    scale: float | None,
    initial_state: Array | tuple[Array, Array | None] | None,
    output_final_state: bool,
    normalize: bool,
    cu_seqlens: CuSeqlens | None,
    segment_ids: Array | None,
    reverse: bool = False,
) -> tuple[Array, Array | tuple[Array, Array] | None]:
    v = arrays[2]
    per_key = v.shape[2] // arrays[1].shape[2]
    kv, z = initial_state if isinstance(initial_state, tuple) else (initial_state, None)
    if normalize and kv is not None:
        # The engines carry z as one more value channel. Ours has the heads of v, the peer's of k.
        z = jnp.zeros_like(kv[..., 0]) if z is None else jnp.repeat(z[:, 0], per_key, axis=1)
        kv = jnp.concatenate([kv, z[..., None].astype(kv.dtype)], axis=-1)
    o, state = run(
        partial(_linear_attn, scale=scale, normalize=normalize),
        arrays,
        v.shape,
        initial_state=kv,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    if normalize and state is not None:
        return o, (state[..., :-1], state[:, None, ::per_key, :, -1])
    return o, state


def _simple_gla(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    g_gamma: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    A = _no_decay(v)
    for log_a in (g, None if g_gamma is None else g_gamma[None]):
        A = A if log_a is None else Scalar(A.log_a + wide(log_a).astype(A.dtype))
    return _attention(A, scaled(q, scale), k, v, reset)


@op(_simple_gla, "fla.ops.simple_gla", "fused_chunk_simple_gla", "fused_recurrent_simple_gla")
def chunk_simple_gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"] | None = None,
    g_gamma: Float[Array, " HV"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    *,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Linear attention with one decay per head (Mamba-2, Lightning, retention).

    .. math:: S_t = e^{g_t + γ} S_{t-1} + k_t v_t^\top, \quad y_t = s\, S_t^\top q_t .

    A = e^{g + γ} I, B = k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per step and head.
        g_gamma: γ, log decay per head, constant in time.
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
        Dao & Gu (2024), arXiv:2405.21060.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 3, 1, 1))
        >>> g = jnp.log(one[..., 0] / 2)
        >>> o, S = chunk_simple_gla(one, one, one, g, output_final_state=True)
        >>> o[0, :, 0, 0].tolist(), S.shape
        ([1.0, 1.5, 1.75], (1, 1, 1, 1))
    """
    return run(
        partial(_simple_gla, g_gamma=g_gamma, scale=scale),
        (q, k, v, g),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_chunk_simple_gla = fused_recurrent_simple_gla = chunk_simple_gla


def _parallel_simple_gla(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    return _simple_gla(q, k, v, g, scale=scale, reset=reset)


@op(_parallel_simple_gla, "fla.ops.simple_gla")
def parallel_simple_gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"] | None = None,
    scale: float | None = None,
    *,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    """The outputs of `chunk_simple_gla`, without states.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per step and head.
        scale: By default K^(-1/2).
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, None)``: o [B, T, HV, V]; the attention is ``dsfjax.materialize(op.system(…))``.
    """
    assemble = partial(_parallel_simple_gla, scale=scale)
    return run(assemble, (q, k, v, g), v.shape, cu_seqlens=cu_seqlens, segment_ids=segment_ids)


def _retention(
    q: Array, k: Array, v: Array, scale: float | None = None, *, reset: Array | None = None
) -> Assembled:
    gamma = jnp.log1p(-jnp.exp2(-5 - jnp.arange(v.shape[1], dtype=wide(v).dtype)))
    return _simple_gla(q, k, v, None, gamma, scale, reset=reset)


@op(_retention, "fla.ops.retention", "fused_chunk_retention", "fused_recurrent_retention")
def chunk_retention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    *,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Retention: a constant decay for each head h = 0, 1, ….

    .. math:: S_t = (1 - 2^{-5-h}) S_{t-1} + k_t v_t^\top, \quad y_t = s\, S_t^\top q_t .

    A = (1 − 2^(−5−h)) I, B = k, C = s q, D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
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
        Sun et al. (2023), arXiv:2307.08621.
    """
    return run(
        partial(_retention, scale=scale),
        (q, k, v),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_chunk_retention = fused_recurrent_retention = chunk_retention


@op(_retention, "fla.ops.retention")
def parallel_retention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    *,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    """The outputs of `chunk_retention`, without states.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: By default K^(-1/2).
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, None)``: o [B, T, HV, V]; the attention is ``dsfjax.materialize(op.system(…))``.
    """
    assemble = partial(_retention, scale=scale)
    return run(assemble, (q, k, v), v.shape, cu_seqlens=cu_seqlens, segment_ids=segment_ids)


def _lightning_attn(
    q: Array,
    k: Array,
    v: Array,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    heads = v.shape[1]
    slope = -8 / heads * (1 - layer_idx / num_layers)
    gamma = slope * jnp.arange(heads, dtype=wide(v).dtype)
    return _simple_gla(q, k, v, None, gamma, scale, reset=reset)


@op(_lightning_attn, "fla.ops.lightning_attn", "fused_recurrent_lightning_attn")
def chunk_lightning_attn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    *,
    reverse: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Lightning attention: a constant decay for each head h = 0, 1, …, by the depth of the layer.

    .. math:: S_t = e^{γ_h} S_{t-1} + k_t v_t^\top, \quad y_t = s\, S_t^\top q_t, \quad
              γ_h = -\tfrac{8}{H} (1 - \mathrm{layer} / \mathrm{layers})\, h .

    A = e^γ I, B = k, C = s q, D = 0. These are the decays of flash-linear-attention, where head 0
    forgets nothing; those of MiniMax's models are others.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        layer_idx: Index of the layer, from 0.
        num_layers: Number of layers.
        scale: s, by default K^(-1/2).
        initial_state: S.
        output_final_state: Whether to return the state at the end.
        reverse: Whether time runs backwards.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S [N, HV, K, V] at least float32, or None.

    References:
        Qin et al. (2024), arXiv:2401.04658.
    """
    return run(
        partial(_lightning_attn, layer_idx=layer_idx, num_layers=num_layers, scale=scale),
        (q, k, v),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_recurrent_lightning_attn = chunk_lightning_attn


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
        return _attention(_no_decay(v), scaled(q, scale), k, v, reset)
    log_a = 0.0
    if gk is not None:
        log_a = wide(gk)[..., None]
    if gv is not None:
        log_a = log_a + wide(gv)[:, :, None]
    return _attention(Diagonal(jnp.asarray(log_a)), scaled(q, scale), k, v, reset)


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
    return run(
        partial(_chunk_gla, scale=scale),
        (q, k, v, g),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


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


def _hgrn(x: Array, g: Array, *, reset: Array | None = None) -> Assembled:
    A = Diagonal(wide(g)[:, None, None])
    shape = (1, 1, x.shape[1])
    system = System(
        A, OuterInput(), InnerOutput(), reset=reset, state_shape=shape, length=x.shape[0]
    )
    return Assembled(system, x)


@op(_hgrn, "fla.ops.hgrn")
def chunk_hgrn(
    x: Float[Array, "B T D"],
    g: Float[Array, "B T D"],
    initial_state: Float[Array, "B D"] | None = None,
    output_final_state: bool = False,
) -> tuple[Array, Array | None]:
    r"""A gated recurrence of single channels.

    .. math:: h_t = e^{g_t} h_{t-1} + x_t, \quad y_t = h_t .

    A = e^g per channel, B = 1, C = 1, D = 0. It takes no packed sequences;
    `fused_recurrent_hgrn` does.

    Args:
        x: Inputs.
        g: Log decay per channel.
        initial_state: h.
        output_final_state: Whether to return the state at the end.

    Returns:
        ``(o, final_state)``: o [B, T, D]; h [B, D] at least float32, or None.

    References:
        Qin et al. (2023), arXiv:2311.04823.
    """
    return _run_hgrn(x, g, initial_state, output_final_state, None, None)


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
    """A gated recurrence of single channels, as `chunk_hgrn`, also on packed sequences.

    Args:
        x: Inputs.
        g: Log decay per channel.
        initial_state: h.
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, D]; h [N, D] at least float32, or None.
    """
    return _run_hgrn(x, g, initial_state, output_final_state, cu_seqlens, segment_ids)


def _run_hgrn(
    x: Array,
    g: Array,
    initial_state: Array | None,
    output_final_state: bool,
    cu_seqlens: CuSeqlens | None,
    segment_ids: Array | None,
) -> tuple[Array, Array | None]:
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


def _based(
    q: Array,
    k: Array,
    v: Array,
    scale: float | None = None,
    use_norm: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    c, b = (taylor_features(x, 2) for x in (scaled(q, scale), k))
    eta = SummedNormalizer(epsilon=1e-6) if use_norm else None
    return _attention(_no_decay(v), c, b, v, reset, eta)


@op(_based, "fla.ops.based", "fused_chunk_based")
def parallel_based(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    use_norm: bool = True,
) -> Array:
    r"""Linear attention with the exponential up to its second order.

    .. math:: y_t = \frac{\sum_{r ≤ t} w_{tr} v_r}{\sum_{r ≤ t} w_{tr} + 10^{-6}}, \quad
              w_{tr} = 1 + x + x^2/2, \; x = s\, q_t^\top k_r .

    A = I, B = φ(k), C = φ(s q), D = 0 with the features φ(x) = (1, x, products x_i x_j of weights
    that make φ(q)ᵀφ(k) = w); η = cᵀz + 1e-6 (1 without ``use_norm``). n = 1 + K + K(K + 1)/2.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: s, by default K^(-1/2).
        use_norm: Whether to divide by the sum of the weights.

    Returns:
        o [B, T, HV, V].

    References:
        Arora et al. (2024), arXiv:2402.18668.
    """
    return run(partial(_based, scale=scale, use_norm=use_norm), (q, k, v), v.shape)[0]


fused_chunk_based = parallel_based


def _rebased(
    q: Array,
    k: Array,
    v: Array,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    # The second order of the Taylor features gives (qᵀk)²/2.
    first = 1 + q.shape[-1]
    c, b = (taylor_features(x, 2)[..., first:] for x in (scaled(q, None if use_scale else 1.0), k))
    eta = SummedNormalizer(epsilon=eps) if use_normalize else None
    return _attention(_no_decay(v), times(c, 2.0), b, v, reset, eta)


@op(_rebased, "fla.ops.rebased")
def parallel_rebased(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
) -> Array:
    r"""Linear attention with squared scores.

    .. math:: y_t = \frac{\sum_{r ≤ t} w_{tr} v_r}{\sum_{r ≤ t} w_{tr} + ε}, \quad
              w_{tr} = (s\, q_t^\top k_r)^2 .

    A = I, B = φ(k), C = φ(s q), D = 0 with φ the products x_i x_j, n = K(K + 1)/2; η = cᵀz + ε (1
    without ``use_normalize``).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        eps: ε.
        use_scale: Whether s is K^(-1/2), or 1; it is squared with the scores.
        use_normalize: Whether to divide by the sum of the weights.

    Returns:
        o [B, T, HV, V].

    References:
        Aksenov et al. (2024), arXiv:2402.10644.
    """
    assemble = partial(_rebased, eps=eps, use_scale=use_scale, use_normalize=use_normalize)
    return run(assemble, (q, k, v), v.shape)[0]
