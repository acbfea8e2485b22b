r"""Kimi Delta Attention (Kimi Team 2025, arXiv:2510.26692), the mixer of Kimi Linear."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_kda
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
    """W_q, W_k (G, n, d); W_v (H, p, d); W_beta (H, d); W_dt_down (r, d), W_dt_up (H, n, r).

    bias_dt (H, n), A_log (H,).
    """

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array
    W_dt_down: Array
    W_dt_up: Array
    bias_dt: Array
    A_log: Array


class Signals(NamedTuple):
    """q, k (L, G, n), v (L, H, p), β (L, H) and log a (L, H, n)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_a: Array


def kda(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    gate_rank: int | None = None,
    lower_bound: float | None = None,
    allow_neg_eigval: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""The delta rule on a state with a decay of its own for every feature.

    .. math::
       h_t = (I - β_t k_t k_t^\top) \mathrm{diag}(a_t) h_{t-1} + β_t k_t ⊗ v_t, \quad
       y_t = q_t^\top h_t / \sqrt{n}, \quad
       \log a_t = -e^{A_{\log}} \mathrm{softplus}(W_2 W_1 u_t + b_Δ),

    with q_t and k_t of unit length and β_t = σ(w_β u_t), one per head.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        num_groups: G, heads of q and k, divides H (grouped values); by default H.
        gate_rank: r, rank of the map to the decays, by default p = d/H.
        lower_bound: c < 0: log a_t = c σ(e^{A_log} (W_2 W_1 u_t + b_Δ)), which stays above c, as in
            the models after Kimi Linear; None for the formula above.
        allow_neg_eigval: Whether β is doubled, so that eigenvalues reach −1 (arXiv:2411.12537).
        init: "published": e^{A_log} uniform in [1, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1],
            weights N(0, 1/fan-in); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = kda(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).A.log_a.shape
        (3, 1, 2)
    """
    p = divide("kda", d_model, num_heads, "d_model")
    groups, rank = num_heads if num_groups is None else num_groups, gate_rank or p
    divide("kda", num_heads, groups, "num_heads")
    if lower_bound is not None and not lower_bound < 0:
        raise ValueError(f"kda: expected a lower_bound of log a below 0, got {lower_bound}.")

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        shape = (groups, d_state, d_model)
        weights = maps(
            key,
            init,
            W_q=shape,
            W_k=shape,
            W_v=(num_heads, p, d_model),
            W_beta=(num_heads, d_model),
            W_dt_down=(rank, d_model),
            W_dt_up=(num_heads, d_state, rank),
        )
        bias, rates = (num_heads, d_state), (num_heads,)
        return Params(
            **weights,
            bias_dt=step_bias(key_dt, bias, init),
            A_log=log_rates(key_a, rates, init, minimum=1.0),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta = jax.nn.sigmoid(affine(params.W_beta, u, wide=True))
        z = low_rank(params.W_dt_down, params.W_dt_up, u, params.bias_dt)
        if lower_bound is None:
            log_a = decay_of_step(params.A_log, z)
        else:
            rate = jnp.exp(params.A_log)[None, :, None].astype(z.dtype)
            log_a = lower_bound * jax.nn.sigmoid(rate * z)
        return Signals(q, k, v, 2 * beta if allow_neg_eigval else beta, log_a)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta, log_a = signals
        return chunk_kda.system(q, k, v, log_a, beta, use_qk_l2norm_in_kernel=True, reset=reset)

    bounds = "(−1, 1)" if allow_neg_eigval else "(0, 1)"
    traits = Traits("diagonal plus rank 1", "d · n", "yes: β_t, k_t", bounds, "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
