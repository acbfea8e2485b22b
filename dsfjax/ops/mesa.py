"""MesaNet: the least squares of all that was written so far."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import InnerOutput, OuterInput, Scalar, System, l2norm
from dsfjax.engines import scan
from dsfjax.ops.batch import CuSeqlens, flat, run, wide
from dsfjax.ops.gates import unit
from dsfjax.ops.op import Assembled, op


def covariance(
    k: Array,
    g: Array,
    beta: Array,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    """The sum of k kᵀ: A = e^g, B = β k with k as values; all rows of the state are read."""
    k = l2norm(k) if use_qk_l2norm_in_kernel else k
    n = k.shape[2]
    rows = InnerOutput(jnp.eye(n, dtype=k.dtype)[None, :, None], rank=n)
    return _sum(wide(k), k, g, beta, rows if n > 1 else InnerOutput(), reset)


def _sum(
    v: Array, k: Array, g: Array, beta: Array, C: InnerOutput, reset: Array | None
) -> Assembled:
    system = System(
        Scalar(wide(g)),
        OuterInput(k, wide(beta)[..., None]),
        C,
        reset=reset,
        state_shape=(v.shape[1], k.shape[2], v.shape[2]),
        length=v.shape[0],
    )
    return Assembled(system, flat(v))


def solved(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    rows: Array,
    lamb: Array,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    """The sum of k vᵀ, read by c = (K + diag(λ))⁻¹ q, with the rows (T, K, H, K) of K_t."""
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    dtype = rows.dtype
    ridge = lamb.astype(dtype)[None, :, :, None] * jnp.eye(k.shape[2], dtype=dtype)[None, None]
    c = jnp.linalg.solve(rows.swapaxes(1, 2) + ridge, q.astype(dtype)[..., None])[..., 0]
    return _sum(v, k, g, beta, InnerOutput(c), reset)


def _mesa_net(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    lamb: Array,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    reset: Array | None = None,
) -> tuple[Assembled, Assembled]:
    first = covariance(k, g, beta, use_qk_l2norm_in_kernel, reset=reset)
    rows = scan(*first)[0].reshape(k.shape[0], k.shape[2], *k.shape[1:])
    return first, solved(q, k, v, g, beta, rows, lamb, use_qk_l2norm_in_kernel, reset=reset)


@op(_mesa_net, "fla.ops.mesa_net")
def chunk_mesa_net(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    lamb: Float[Array, "H K"],
    h_kk_init: Float[Array, "N H K K"] | None = None,
    h_kv_init: Float[Array, "N H K V"] | None = None,
    output_final_state: bool = False,
    *,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None, Array | None]:
    r"""The least squares of all that was written so far, read exactly (MesaNet).

    .. math:: H_t = e^{g_t} H_{t-1} + β_t k_t k_t^\top, \quad
              S_t = e^{g_t} S_{t-1} + β_t k_t v_t^\top, \quad
              y_t = S_t^\top (H_t + \mathrm{diag}(λ))^{-1} q_t .

    Two Systems with A = e^g I and B = β k, of H with k as values and of S with v, which is read by
    C = (H + diag(λ))⁻¹ q. D = 0; there is no scale. The peer stops an iteration; here the equations
    are solved.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per step and head.
        beta: β, the weight of a step.
        lamb: λ > 0.
        h_kk_init: H.
        h_kv_init: S.
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, H, S)``: o [B, T, H, V]; states at least float32, or None.

    References:
        von Oswald et al. (2025), arXiv:2506.05233.
    """
    batch, length, heads, n = k.shape
    rows, h_kk = run(
        partial(covariance, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel),
        (k, g, beta),
        (batch, length, n, heads, n),
        initial_state=h_kk_init,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    o, h_kv = run(
        partial(solved, lamb=lamb, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel),
        (q, k, v, g, beta, rows),
        v.shape,
        initial_state=h_kv_init,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
    return o, h_kk, h_kv


def _one_step(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    lamb: Array,
    beta: Array,
    prev_h_kk: Array,
) -> tuple[Assembled, Assembled]:
    q, k, v, g, beta = (x[None] for x in (q, k, v, g, beta))
    first = covariance(k, g, beta)
    rows = scan(*first, prev_h_kk)[0].reshape(1, k.shape[2], *k.shape[1:])
    return first, solved(q, k, v, g, beta, rows, lamb)


@op(_one_step, "fla.ops.mesa_net")
def mesa_net_decoding_one_step(
    q: Float[Array, "B H K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    g: Float[Array, "B H"],
    lamb: Float[Array, "H K"],
    beta: Float[Array, "B H"],
    prev_h_kk: Float[Array, "B H K K"],
    prev_h_kv: Float[Array, "B H K V"],
) -> tuple[Array, Array, Array]:
    r"""One step of `chunk_mesa_net`, without an axis of time.

    .. math:: H = e^{g} H' + β k k^\top, \quad S = e^{g} S' + β k v^\top, \quad
              y = S^\top (H + \mathrm{diag}(λ))^{-1} q .

    The Systems are those of one step, as of `chunk_mesa_net`; λ comes before β.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per head.
        lamb: λ > 0.
        beta: β, the weight of the step.
        prev_h_kk: H', of the steps before.
        prev_h_kv: S', of the steps before.

    Returns:
        ``(o, H, S)``: o [B, H, V]; states at least float32.

    References:
        von Oswald et al. (2025), arXiv:2506.05233.

    Example:
        >>> one, state = jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1, 1))
        >>> o, *states = mesa_net_decoding_one_step(
        ...     *(one, one, one, jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1))),
        ...     *(state, state),
        ... )
        >>> round(o.item(), 4), [state.item() for state in states]
        (0.6667, [2.0, 2.0])
    """
    q, k, v, g, beta = (x[:, None] for x in (q, k, v, g, beta))
    o, h_kk, h_kv = chunk_mesa_net(q, k, v, g, beta, lamb, prev_h_kk, prev_h_kv, True)
    assert h_kk is not None and h_kv is not None
    return o[:, 0], h_kk, h_kv
