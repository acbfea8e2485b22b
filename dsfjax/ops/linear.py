r"""Linear attention with at most one decay per head: S_t = a_t S_{t−1} + k_t v_tᵀ."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import (
    InnerOutput,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    Transition,
)
from dsfjax.core.normalizers import Normalizer
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, wide
from dsfjax.ops.op import Assembled, op

StateAndSum = tuple[Float[Array, "N HV K V"], Float[Array, "N 1 H K"] | None]
"""S and z, the sum of the keys."""


def attention(
    A: Transition, q: Array, k: Array, v: Array, reset: Array | None, eta: Normalizer | None = None
) -> Assembled:
    """k_t is written with v_t, and q_t reads: B = k, C = q."""
    shape = (v.shape[1], k.shape[2], v.shape[2])
    B, C, length = OuterInput(k), InnerOutput(q), q.shape[0]
    system = System(A, B, C, eta=eta, reset=reset, state_shape=shape, length=length)
    return Assembled(system, flat(v))


def no_decay(v: Array) -> Scalar:
    """A = I, constant in time."""
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
    return attention(no_decay(v), scaled(q, scale), k, v, reset, eta)


@op(_linear_attn, "fla.ops.linear_attn", "fused_chunk_linear_attn")
def chunk_linear_attn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV K V"] | StateAndSum | None = None,
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
    initial_state: Float[Array, "N HV K V"] | StateAndSum | None = None,
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


def simple_gla(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    g_gamma: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    """A = e^{g + γ} I, B = k, C = s q."""
    A = no_decay(v)
    for log_a in (g, None if g_gamma is None else g_gamma[None]):
        A = A if log_a is None else Scalar(A.log_a + wide(log_a).astype(A.dtype))
    return attention(A, scaled(q, scale), k, v, reset)


@op(simple_gla, "fla.ops.simple_gla")
def chunk_simple_gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    g: Float[Array, "B T HV"] | None = None,
    g_gamma: Float[Array, " HV"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    reverse: bool = False,
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
        state_v_first: Whether states are [N, HV, V, K].
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        reverse: Whether time runs backwards.
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
        partial(simple_gla, g_gamma=g_gamma, scale=scale),
        (q, k, v, g),
        v.shape,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )


fused_chunk_simple_gla = chunk_simple_gla.reordered("fused_chunk_simple_gla", "cu_seqlens")
fused_recurrent_simple_gla = chunk_simple_gla.reordered(
    "fused_recurrent_simple_gla", "reverse", "state_v_first", "cu_seqlens"
)


def _parallel_simple_gla(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    return simple_gla(q, k, v, g, scale=scale, reset=reset)


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
    return simple_gla(q, k, v, None, gamma, scale, reset=reset)


@op(_retention, "fla.ops.retention", "fused_chunk_retention")
def chunk_retention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    reverse: bool = False,
    state_v_first: bool = False,
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
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        reverse: Whether time runs backwards.
        state_v_first: Whether states are [N, HV, V, K].
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


fused_chunk_retention = chunk_retention
fused_recurrent_retention = chunk_retention.reordered(
    "fused_recurrent_retention", "reverse", "state_v_first", "cu_seqlens"
)


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
    return simple_gla(q, k, v, None, gamma, scale, reset=reset)


@op(_lightning_attn, "fla.ops.lightning_attn")
def chunk_lightning_attn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    reverse: bool = False,
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
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        reverse: Whether time runs backwards.
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


fused_recurrent_lightning_attn = chunk_lightning_attn.reordered(
    "fused_recurrent_lightning_attn", "reverse", "cu_seqlens"
)
