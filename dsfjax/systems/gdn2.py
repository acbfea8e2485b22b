r"""GDN-2, a gated delta rule with gates of erasing and writing apart (flash-linear-attention)."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_gdn2
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    affine,
    decay_of_step,
    divide,
    log_rates,
    step_bias,
    weights_decay,
)
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import CONVOLVED

PRACTICE = CONVOLVED._replace(head_norm="rms", gate="silu")


class Params(NamedTuple):
    """W_q, W_k, W_erase, W_dt (H, n, d); W_v, W_write (H, p, d); bias_dt (H, n), A_log (H,)."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_erase: Array
    W_write: Array
    W_dt: Array
    bias_dt: Array
    A_log: Array


class Signals(NamedTuple):
    """q, k (L, H, n), v (L, H, p); gates b (L, H, n) and w (L, H, p); log a (L, H, n)."""

    q: Array
    k: Array
    v: Array
    b: Array
    w: Array
    log_a: Array


def gdn2(
    *, d_model: int, d_state: int = 64, num_heads: int = 1, init: Init = "published"
) -> Architecture:
    r"""The delta rule with a decay and a rate of erasing per feature, of writing per channel.

    .. math::
       h_t = (I - k_t (b_t ⊙ k_t)^\top) \mathrm{diag}(a_t) h_{t-1} + k_t ⊗ (w_t ⊙ v_t), \quad
       y_t = q_t^\top h_t / \sqrt{n},

    with q_t and k_t of unit length, gates b_t = σ(W_b u_t) and w_t = σ(W_w u_t), and the decay
    log a_t = −e^{A_log} softplus(W_Δ u_t + b_Δ).

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        init: "published": e^{A_log} uniform in [1, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1],
            weights N(0, 1/d); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    References:
        The op `gdn2` of flash-linear-attention 0.6.0.

    Example:
        >>> import jax.numpy as jnp
        >>> arch = gdn2(d_model=8, d_state=2, num_heads=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).B.scale.shape
        (3, 2, 4)
    """
    p = divide("gdn2", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        narrow, wide = (num_heads, d_state, d_model), (num_heads, p, d_model)
        keys = dict.fromkeys(("W_q", "W_k", "W_erase", "W_dt"), narrow)
        return Params(
            **maps(key, init, **keys, W_v=wide, W_write=wide),
            bias_dt=step_bias(key_dt, (num_heads, d_state), init),
            A_log=log_rates(key_a, (num_heads,), init, minimum=1.0),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        b, w = (jax.nn.sigmoid(affine(W, u, wide=True)) for W in (params.W_erase, params.W_write))
        step = affine(params.W_dt, u, params.bias_dt, wide=True)
        return Signals(q, k, v, b, w, decay_of_step(params.A_log, step))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, b, w, log_a = signals
        return chunk_gdn2.system(q, k, v, log_a, b, w, use_qk_l2norm_in_kernel=True, reset=reset)

    traits = Traits("diagonal plus rank 1", "d · n", "yes: k_t", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
