r"""GDN-2, a gated delta rule with gates of erasing and writing apart (NVlabs/GatedDeltaNet-2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from dsfjax.core import System
from dsfjax.core.transitions import to_heads
from dsfjax.ops import chunk_gdn2
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    affine,
    decay_of_step,
    divide,
    log_rates,
    low_rank,
    step_bias,
    weights_decay,
)
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import CONVOLVED

PRACTICE = CONVOLVED._replace(head_norm="rms", gate="sigmoid", gate_rank="channels")


class Params(NamedTuple):
    """W_q, W_k, W_erase (G, n, d); W_v, W_write (H, p, d); W_dt_down (r, d), W_dt_up (G, n, r).

    bias_dt (G, n), A_log (G,).
    """

    W_q: Array
    W_k: Array
    W_v: Array
    W_erase: Array
    W_write: Array
    W_dt_down: Array
    W_dt_up: Array
    bias_dt: Array
    A_log: Array


class Signals(NamedTuple):
    """q, k (L, G, n), v (L, H, p); gates b (L, G, n) and w (L, H, p); log a (L, G, n)."""

    q: Array
    k: Array
    v: Array
    b: Array
    w: Array
    log_a: Array


def gdn2(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    gate_rank: int | None = None,
    allow_neg_eigval: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""The delta rule with a decay and a rate of erasing per feature, of writing per channel.

    .. math::
       h_t = (I - k_t (b_t ⊙ k_t)^\top) \mathrm{diag}(a_t) h_{t-1} + k_t ⊗ (w_t ⊙ v_t), \quad
       y_t = q_t^\top h_t / \sqrt{n},

    with q_t and k_t of unit length, gates b_t = σ(W_b u_t) and w_t = σ(W_w u_t), and the decay
    log a_t = −e^{A_log} softplus(W₂ W₁ u_t + b_Δ).

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        num_groups: G, heads of q, k, b and a, divides H (grouped values); by default H.
        gate_rank: r, rank of the map to the decays, by default p = d/H.
        allow_neg_eigval: Whether b is doubled, so that eigenvalues reach −1 (arXiv:2411.12537).
        init: "published": e^{A_log} uniform in [1, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1],
            weights N(0, 1/fan-in); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    References:
        The layer and the op `gdn2` of flash-linear-attention 0.6.0.

    Example:
        >>> import jax.numpy as jnp
        >>> arch = gdn2(d_model=8, d_state=2, num_heads=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).B.scale.shape
        (3, 2, 4)
    """
    p = divide("gdn2", d_model, num_heads, "d_model")
    groups, rank = num_heads if num_groups is None else num_groups, gate_rank or p
    divide("gdn2", num_heads, groups, "num_heads")

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        features, wide = (groups, d_state), (num_heads, p, d_model)
        shapes = dict.fromkeys(("W_q", "W_k", "W_erase"), (*features, d_model))
        shapes |= {"W_dt_down": (rank, d_model), "W_dt_up": (*features, rank)}
        return Params(
            **maps(key, init, **shapes, W_v=wide, W_write=wide),
            bias_dt=step_bias(key_dt, features, init),
            A_log=log_rates(key_a, (groups,), init, minimum=1.0),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        b, w = (jax.nn.sigmoid(affine(W, u, wide=True)) for W in (params.W_erase, params.W_write))
        step = low_rank(params.W_dt_down, params.W_dt_up, u, params.bias_dt)
        b = 2 * b if allow_neg_eigval else b
        return Signals(q, k, v, b, w, decay_of_step(params.A_log, step))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, b, w, log_a = signals
        b, log_a = (to_heads(x, num_heads) for x in (b, log_a))
        return chunk_gdn2.system(q, k, v, log_a, b, w, use_qk_l2norm_in_kernel=True, reset=reset)

    bounds = "(−1, 1)" if allow_neg_eigval else "(0, 1)"
    traits = Traits("diagonal plus rank 1", "d · n", "yes: k_t", bounds, "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
