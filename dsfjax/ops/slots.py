r"""Attention through slots: two Systems with a softmax between them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import Diagonal, InnerOutput, OuterInput, System
from dsfjax.core.resets import starts
from dsfjax.engines import scan
from dsfjax.ops.batch import CuSeqlens, flat, run, scaled, wide
from dsfjax.ops.op import Assembled, op

SlotStates = tuple[Float[Array, "N H K M"], Float[Array, "N H M V"]]
"""S and Z, the slots of keys and of values."""


def slots_of_keys(
    q: Array,
    k: Array,
    s: Array,
    g: Array | None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> Assembled:
    """The slots of keys: A = diag(e^g) over the slots, B = k with s as values, C = scale q."""
    s, log_a = _gates(s, g, reset)
    (length, heads, n), slots = k.shape, s.shape[2]
    rank, c = _by_key_head(scaled(q, scale), heads)
    system = System(
        Diagonal(log_a[:, :, None]),
        OuterInput(k),
        InnerOutput(c, rank=rank),
        reset=reset,
        state_shape=(heads, n, slots),
        length=length,
    )
    return Assembled(system, flat(s))


def slots_of_values(
    a: Array, v: Array, s: Array, g: Array | None, *, reset: Array | None = None
) -> Assembled:
    """The slots of values: A = diag(e^g) over the slots, B = s, C = a (T, HQ, M)."""
    s, log_a = _gates(s, g, reset)
    (length, heads, p), slots = v.shape, s.shape[2]
    rank, c = _by_key_head(a, heads)
    system = System(
        Diagonal(log_a[..., None]),
        OuterInput(s),
        InnerOutput(c, rank=rank),
        reset=reset,
        state_shape=(heads, slots, p),
        length=length,
    )
    return Assembled(system, flat(v))


def _by_key_head(c: Array, heads: int) -> tuple[int, Array]:
    """Queries (T, HQ, ·) as HQ/H of them that read the state of each head, (T, HQ/H, H, ·)."""
    rank = c.shape[1] // heads
    c = c.reshape(c.shape[0], heads, rank, c.shape[2]).swapaxes(1, 2)
    return rank, c if rank > 1 else c[:, 0]


def _by_query_head(y: Array, rank: int) -> Array:
    """Outputs [..., HQ/H, H, ·] in the order of the query heads, [..., HQ, ·]."""
    y = y.swapaxes(-2, -3)
    return y.reshape(*y.shape[:-3], y.shape[-3] * rank, y.shape[-1])


def _gates(s: Array, g: Array | None, reset: Array | None) -> tuple[Array, Array]:
    """What is written into the slots, and their log decays; without g those of a softmax over time.

    With z_t the logarithm of Σ_{r ≤ t} e^{s_r} these are e^{s_t − z_t} and z_{t−1} − z_t.
    """
    if g is not None:
        return s, wide(g)
    x = wide(s)
    start = starts(s.shape[0], reset)[:, None, None]

    def add(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        z = jnp.where(late[0], late[1], jnp.logaddexp(early[1], late[1]))
        return early[0] | late[0], z

    if reset is None:
        z = jax.lax.cumlogsumexp(x)
    else:
        z = jax.lax.associative_scan(add, (jnp.broadcast_to(start, x.shape), x))[1]
    before = jnp.concatenate([z[:1], z[:-1]])
    return jnp.exp(x - z).astype(s.dtype), jnp.where(start, 0, before - z)


def _gsa(
    q: Array,
    k: Array,
    v: Array,
    s: Array,
    g: Array | None = None,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> tuple[Assembled, Assembled]:
    first = slots_of_keys(q, k, s, g, scale, reset=reset)
    heads, slots = k.shape[1], s.shape[2]
    y = scan(*first)[0].reshape(q.shape[0], -1, heads, slots)
    a = jax.nn.softmax(_by_query_head(wide(y), y.shape[1]), axis=-1).astype(q.dtype)
    return first, slots_of_values(a, v, s, g, reset=reset)


def _run_gsa(
    q: Array,
    k: Array,
    v: Array,
    s: Array,
    g: Array | None,
    scale: float | None,
    initial_state: tuple[Array, Array] | None,
    output_final_state: bool,
    reverse: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Array | None = None,
) -> tuple[Array, tuple[Array, Array] | None]:
    batch, length, heads = k.shape[:3]
    rank = q.shape[2] // heads
    hk, hv = (None, None) if initial_state is None else initial_state
    y, hk = run(
        partial(slots_of_keys, scale=scale),
        (q, k, s, g),
        (batch, length, rank, heads, s.shape[3]),
        initial_state=hk,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    a = jax.nn.softmax(_by_query_head(wide(y), rank), axis=-1).astype(q.dtype)
    y, hv = run(
        slots_of_values,
        (a, v, s, g),
        (batch, length, rank, heads, v.shape[3]),
        initial_state=hv,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    # Without states None as of every op, where the peer has a list of two.
    return _by_query_head(y, rank), None if hk is None or hv is None else (hk, hv)


@op(_gsa, "fla.ops.gsa")
def chunk_gsa(
    q: Float[Array, "B T HQ K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    s: Float[Array, "B T H M"],
    g: Float[Array, "B T H M"] | None = None,
    scale: float | None = None,
    initial_state: SlotStates | None = None,
    output_final_state: bool = False,
    *,
    reverse: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, tuple[Array, Array] | None]:
    r"""Gated slot attention.

    .. math:: S_t = S_{t-1} \mathrm{diag}(e^{g_t}) + k_t s_t^\top, \quad
              a_t = \mathrm{softmax}(c\, S_t^\top q_t), \quad
              Z_t = \mathrm{diag}(e^{g_t}) Z_{t-1} + s_t v_t^\top, \quad y_t = Z_t^\top a_t .

    Two Systems with diagonal decays over the slots: of S, A = diag(e^g) on its columns, B = k with
    s as values, C = c q; of Z, A = diag(e^g), B = s, C = a. D = 0.

    Args:
        q: Queries; HQ/H of them read the slots of a key head.
        k: Keys.
        v: Values.
        s: What is written into the M slots.
        g: Log decay per slot; None for a softmax of s over time.
        scale: c, by default K^(-1/2).
        initial_state: (S, Z): [N, H, K, M] and [N, H, M, V].
        output_final_state: Whether to return the state at the end.
        reverse: Whether time runs backwards.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HQ, V]; (S, Z) at least float32, or None.

    References:
        Zhang et al. (2024), arXiv:2409.07146.
    """
    return _run_gsa(
        q,
        k,
        v,
        s,
        g,
        scale,
        initial_state,
        output_final_state,
        reverse,
        cu_seqlens,
        segment_ids,
    )


fused_recurrent_gsa = chunk_gsa.reordered("fused_recurrent_gsa", "reverse", "cu_seqlens")


def _abc(
    q: Array, k: Array, v: Array, s: Array, *, reset: Array | None = None
) -> tuple[Assembled, Assembled]:
    return _gsa(q, k, v, s, reset=reset)


@op(_abc, "fla.ops.abc")
def chunk_abc(
    q: Float[Array, "B T HQ K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    s: Float[Array, "B T H M"],
    initial_state: SlotStates | None = None,
    output_final_state: bool = False,
) -> tuple[Array, tuple[Array, Array] | None]:
    r"""Attention with bounded memory: `chunk_gsa` without g, its scale K^(-1/2).

    .. math:: z_t = \log \sum_{r ≤ t} e^{s_r}, \quad g_t = z_{t-1} - z_t, \quad
              s_t → e^{s_t - z_t} .

    A, B, C and D are those of `chunk_gsa`.

    Args:
        q: Queries; HQ/H of them read the slots of a key head.
        k: Keys.
        v: Values.
        s: What is written into the M slots.
        initial_state: (S, Z): [N, H, K, M] and [N, H, M, V].
        output_final_state: Whether to return the state at the end.

    Returns:
        ``(o, final_state)``: o [B, T, HQ, V]; (S, Z) at least float32, or None.

    References:
        Peng et al. (2022), arXiv:2110.02488.
    """
    return _run_gsa(q, k, v, s, None, None, initial_state, output_final_state)
