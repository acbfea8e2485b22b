r"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), the mixer of Qwen3-Next and Qwen3.5."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_gated_delta_rule
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
    """W_q, W_k (G, n, d); W_v (H, p, d); W_beta, W_dt (H, d); bias_dt, A_log (H,)."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array
    W_dt: Array
    bias_dt: Array
    A_log: Array


class Signals(NamedTuple):
    """q, k (L, G, n), v (L, H, p), β and log a (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_a: Array


def gated_deltanet(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    d_inner: int | None = None,
    allow_neg_eigval: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""The delta rule on a state that decays as that of Mamba-2.

    .. math::
       h_t = a_t (I - β_t k_t k_t^\top) h_{t-1} + β_t k_t ⊗ v_t, \quad
       y_t = q_t^\top h_t / \sqrt{n}, \quad
       \log a_t = -e^{A_{\log}} \mathrm{softplus}(w_Δ u_t + b_Δ),

    with q_t and k_t of unit length and β_t = σ(w_β u_t), one β and one a per head.

    Args:
        d_model: d, width of tokens.
        d_state: n, state expansion per head.
        num_heads: H, divides d_inner.
        num_groups: G, heads of q and k, divides H (grouped values); by default H.
        d_inner: Width of values and outputs, by default d; 2d in practice.
        allow_neg_eigval: Whether β is doubled, so that eigenvalues reach −1 (arXiv:2411.12537).
        init: "published": e^{A_log} uniform in [0, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1],
            weights N(0, 1/d); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import jax.numpy as jnp
        >>> arch = gated_deltanet(d_model=8, d_state=2, num_heads=2, num_groups=1)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> system.A.z.shape, system.state_shape
        ((3, 1, 2, 1), (2, 2, 4))
    """
    p = divide("gated_deltanet", d_inner or d_model, num_heads, "d_inner")
    groups = num_heads if num_groups is None else num_groups
    divide("gated_deltanet", num_heads, groups, "num_heads")

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        shape, wide = (groups, d_state, d_model), (num_heads, p, d_model)
        gate = (num_heads, d_model)
        return Params(
            **maps(key, init, W_q=shape, W_k=shape, W_v=wide, W_beta=gate, W_dt=gate),
            bias_dt=step_bias(key_dt, (num_heads,), init),
            A_log=log_rates(key_a, (num_heads,), init),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta = jax.nn.sigmoid(affine(params.W_beta, u, wide=True))
        step = affine(params.W_dt, u, params.bias_dt, wide=True)
        beta = 2 * beta if allow_neg_eigval else beta
        return Signals(q, k, v, beta, decay_of_step(params.A_log, step))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta, log_a = signals
        return chunk_gated_delta_rule.system(
            q, k, v, log_a, beta, use_qk_l2norm_in_kernel=True, reset=reset
        )

    bounds = "(−1, 1)" if allow_neg_eigval else "(0, 1)"
    traits = Traits("diagonal plus rank 1", "d · n", "yes: β_t, k_t", bounds, "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
