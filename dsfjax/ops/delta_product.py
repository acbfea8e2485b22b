"""Products of delta rules: several Householder-like steps per token."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import DiagonalPlusLowRank, InnerOutput, OuterInput, System
from dsfjax.core.transitions import to_heads
from dsfjax.ops.batch import CuSeqlens, run, scaled, wide
from dsfjax.ops.gates import unit
from dsfjax.ops.op import Assembled, op


def _gated_delta_product(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None,
    beta: Array,
    num_householder: int,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    q, k = unit(q, k) if use_qk_l2norm_in_kernel else (q, k)
    length, rank, heads = q.shape[0], num_householder, v.shape[1]
    if k.shape[0] != length * rank:
        raise ValueError(
            f"chunk_gated_delta_product: expected k, v and beta of T · num_householder = {length} "
            f"· {rank} steps, got {k.shape[0]}. q and g have T steps."
        )
    keys = k.reshape(length, rank, *k.shape[1:])
    strong = wide(to_heads(keys, heads))
    strong = strong * wide(beta).reshape(length, rank, heads, 1)
    # What is written j-th passes the reflections that follow it in the same step.
    written: list[Array] = []
    for j in range(rank):
        key = wide(to_heads(keys[:, j], heads))
        passed = [b - strong[:, j] * (key * b).sum(-1, keepdims=True) for b in written]
        written = [*passed, strong[:, j]]
    # The product of the reflections is I − Σ_j b_j k_jᵀ, as values v_j = k_j leave I unchanged.
    log_a = jnp.zeros((1, heads), wide(v).dtype) if g is None else wide(g)
    b = jnp.stack(written, axis=1)
    w = jnp.moveaxis(b * jnp.exp(log_a)[:, None, :, None], 1, -1).astype(k.dtype)
    b = b.astype(k.dtype)
    system = System(
        DiagonalPlusLowRank(log_a[..., None], w, jnp.moveaxis(keys, 1, -1)),
        OuterInput(b if rank > 1 else b[:, 0], rank=rank),
        InnerOutput(scaled(q, scale)),
        reset=reset,
        state_shape=(heads, k.shape[2], v.shape[2]),
        length=length,
    )
    return Assembled(system, v.reshape(length, -1))


@op(_gated_delta_product, "fla.ops.gated_delta_product")
def chunk_gated_delta_product(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B Tn H K"],
    v: Float[Array, "B Tn HV V"],
    g: Float[Array, "B T HV"] | None,
    beta: Float[Array, "B Tn HV"],
    num_householder: int,
    scale: float | None = None,
    initial_state: Float[Array, "N HV _ _"] | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, Array | None]:
    r"""Several delta rules in each step (Gated DeltaProduct).

    .. math:: S_t = \Big(\prod_j (I - β_{tj} k_{tj} k_{tj}^\top)\Big) e^{g_t} S_{t-1}
              + \sum_j b_{tj} v_{tj}^\top, \quad y_t = s\, S_t^\top q_t, \quad
              b_{tj} = \prod_{i > j} (I - β_{ti} k_{ti} k_{ti}^\top)\, β_{tj} k_{tj} .

    A = e^g (I − Σ_j b_j k_jᵀ), of low rank n = ``num_householder``; B = (b_1, …, b_n) writes n
    values; C = s q, D = 0. k, v and beta have T·n steps, q and g have T.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per step and head, or None.
        beta: β, how much is erased and written.
        num_householder: n, the number of delta rules in a step.
        scale: s, by default K^(-1/2).
        initial_state: S, [N, HV, K, V].
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q and k are brought to unit length.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, HV, V]; S at least float32, or None.

    References:
        Siems et al. (2025), arXiv:2502.10297.
    """
    return run(
        partial(
            _gated_delta_product,
            num_householder=num_householder,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        ),
        (q, k, v, g, beta),
        (*q.shape[:2], *v.shape[2:]),
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        segment_ids=segment_ids,
    )
