r"""Softmax attention with windows, sinks, decays and moving keys, by a KernelSystem."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import Diagonal, DiagonalPlusLowRank, KernelSystem, Scalar
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, times, wide
from dsfjax.ops.op import Assembled, op


def _kernel(q: Array, k: Array, v: Array, reset: Array | None, **options: Any) -> Assembled:
    """Scores of q (T, HQ, K) and k (T, H, K); the queries of a key head share its values."""
    _, heads, channels = v.shape
    system = KernelSystem(q, k, reset=reset, num_channels=channels, value_heads=heads, **options)
    return Assembled(system, flat(v))


def _attn(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    sink_bias: Array | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    decay = None if g is None else Scalar(wide(g))
    sink = None if sink_bias is None else wide(sink_bias)
    q = scaled(q, scale)
    return _kernel(q, k, v, reset, transition=decay, sink=sink, window=window_size)


@op(_attn, "fla.ops.attn")
def parallel_attn(
    q: Float[Array, "B T HQ K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T HQ"] | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: CuSeqlens | None = None,
    *,
    sink_bias: Float[Array, " HQ"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Array:
    r"""Softmax attention with a window, a sink and decays.

    .. math:: y_t = \frac{\sum_r e^{x_{tr}} v_r}{\sum_r e^{x_{tr}} + e^{σ}}, \quad
              x_{tr} = s\, q_t^\top k_r + \sum_{i=r+1}^{t} g_i, \quad t - W < r ≤ t .

    A `KernelSystem`, which has no finite state: its transition is the scalar e^g.

    Args:
        q: Queries; HQ/H of them share a key head.
        k: Keys.
        v: Values.
        g: Log decay of the weights per step and query head, not scaled.
        scale: s, by default K^(-1/2).
        window_size: W, how many steps a query sees, itself included; None for all.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        sink_bias: σ, the score of a sink that has no value, not scaled; None for no sink.
        segment_ids: Documents of each row.

    Returns:
        o [B, T, HQ, V].
    """
    assemble = partial(_attn, scale=scale, window_size=window_size, sink_bias=sink_bias)
    shape = (*q.shape[:3], v.shape[3])
    return run(assemble, (q, k, v, g), shape, cu_seqlens=cu_seqlens, segment_ids=segment_ids)[0]


@op(_attn, "fla.ops.forgetting_attn")
def parallel_forgetting_attn(
    q: Float[Array, "B T HQ K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T HQ"],
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Array:
    r"""Softmax attention whose weights decay (forgetting attention).

    .. math:: y_t = \sum_r \mathrm{softmax}_r\Big(s\, q_t^\top k_r + \sum_{i=r+1}^{t} g_i\Big) v_r,
              \quad t - W < r ≤ t .

    A `KernelSystem` whose transition is the scalar e^g.

    Args:
        q: Queries; HQ/H of them share a key head.
        k: Keys.
        v: Values.
        g: Log decay of the weights per step and query head, not scaled.
        scale: s, by default K^(-1/2).
        window_size: W, how many steps a query sees, itself included; None for all.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        o [B, T, HQ, V].

    References:
        Lin et al. (2025), arXiv:2503.02130.
    """
    assemble = partial(_attn, scale=scale, window_size=window_size)
    shape = (*q.shape[:3], v.shape[3])
    return run(assemble, (q, k, v, g), shape, cu_seqlens=cu_seqlens, segment_ids=segment_ids)[0]


def _wall_attn(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    g_scalar: Array | None = None,
    sink_bias: Array | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    return _kernel(
        scaled(q, scale),
        k,
        v,
        reset,
        transition=Diagonal(wide(g)[..., None]),
        log_decay=None if g_scalar is None else wide(g_scalar),
        sink=None if sink_bias is None else wide(sink_bias),
        window=window_size,
    )


@op(_wall_attn, "fla.ops.wall_attn")
def parallel_wall_attn(
    q: Float[Array, "B T HQ K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T HQ K"],
    *,
    g_scalar: Float[Array, "B T HQ"] | None = None,
    sink_bias: Float[Array, " HQ"] | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Array:
    r"""Softmax attention whose keys decay per channel.

    .. math:: y_t = \frac{\sum_r e^{x_{tr}} v_r}{\sum_r e^{x_{tr}} + e^{σ}}, \quad
              x_{tr} = s \sum_n q_{tn} k_{rn} e^{\sum_{i=r+1}^{t} g_{in}}
              + \sum_{i=r+1}^{t} g^{scalar}_i .

    A `KernelSystem` whose transition is diag(e^g).

    Args:
        q: Queries; HQ/H of them share a key head.
        k: Keys.
        v: Values.
        g: Log decay per key channel and query head.
        g_scalar: Log decay of the weights per step and query head, not scaled.
        sink_bias: σ, the score of a sink that has no value, not scaled; None for no sink.
        scale: s, by default K^(-1/2).
        window_size: W, how many steps a query sees, itself included; None for all.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        o [B, T, HQ, V].
    """
    assemble = partial(_wall_attn, sink_bias=sink_bias, scale=scale, window_size=window_size)
    shape = (*q.shape[:3], v.shape[3])
    arrays = (q, k, v, g, g_scalar)
    return run(assemble, arrays, shape, cu_seqlens=cu_seqlens, segment_ids=segment_ids)[0]


def _path_attn(
    q: Array,
    k: Array,
    v: Array,
    w: Array,
    beta: Array,
    g: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    still = jnp.zeros((1, w.shape[1], 1), wide(w).dtype)
    moves = DiagonalPlusLowRank(still, w, w, scale=wide(beta)[..., None])
    decay = None if g is None else factor * wide(g)
    return _kernel(times(q, factor), k, v, reset, transition=moves, log_decay=decay)


@op(_path_attn, "fla.ops.path_attn")
def parallel_path_attn(
    q: Float[Array, "B T HQ K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    w: Float[Array, "B T H K"],
    beta: Float[Array, "B T H"],
    g: Float[Array, "B T HQ"] | None = None,
    scale: float | None = None,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Softmax attention whose keys pass Householder matrices (PaTH).

    .. math:: y_t = \sum_{r ≤ t} \mathrm{softmax}_r\Big(s \big(q_t^\top H_t ⋯ H_{r+1} k_r
              + \sum_{i=r+1}^{t} g_i\big)\Big) v_r, \quad H_t = I - β_t w_t w_t^\top .

    A `KernelSystem` whose transition is H and whose weights decay by e^{s g}: g is scaled, other
    than in `parallel_forgetting_attn`.

    Args:
        q: Queries; HQ/H of them share a key head.
        k: Keys.
        v: Values.
        w: Directions, of unit length.
        beta: β, how much of a direction is taken away.
        g: Log decay of the weights per step and query head, scaled.
        scale: s, by default K^(-1/2).
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, None)``: o [B, T, HQ, V].

    References:
        Yang et al. (2025), arXiv:2505.16381.
    """
    shape = (*q.shape[:3], v.shape[3])
    return run(
        partial(_path_attn, scale=scale),
        (q, k, v, w, beta, g),
        shape,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
