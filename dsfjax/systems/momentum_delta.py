r"""Momentum DeltaNet, the delta rule with momentum (Huang et al. 2026, arXiv:2605.05838)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.transitions import to_heads
from dsfjax.ops import chunk_momentum_delta_rule
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

PRACTICE = CONVOLVED._replace(head_norm="rms", gate="sigmoid")
LOWEST_LOG_MU = -2.0


class Params(NamedTuple):
    """W_q, W_k (G, n, d); W_v (H, p, d); W_beta, W_eta, W_mu, W_dt (H, d); bias_mu, bias_dt (H,).

    mu_log, A_log, angle_log (H,); output_log (G,): logarithms of c.
    """

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array
    W_eta: Array
    W_mu: Array
    W_dt: Array
    bias_mu: Array
    bias_dt: Array
    mu_log: Array
    A_log: Array
    angle_log: Array
    output_log: Array


class Signals(NamedTuple):
    """q, k (L, G, n), v (L, H, p); β, η, log μ and log α (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    eta: Array
    log_mu: Array
    log_alpha: Array


def momentum_delta(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    allow_neg_eigval: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""A state that follows the running mean of its corrections.

    .. math::
       M_t = μ_t M_{t-1} + η_t k_t (α_t k_t^\top S_{t-1} - v_t^\top), \quad
       S_t = α_t S_{t-1} - β_t M_t, \quad y_t = \tilde q_t^\top S_t / \sqrt{n}, \quad
       \tilde q_t = q_t - c k_t,

    with q̃_t and k_t brought to unit length, in this order. Rates and decays are

    .. math::
       η_t = 1 + \tanh(w_η u_t / \sqrt{d}), \quad β_t = \sin^2 θ_t \, σ(w_β u_t), \quad
       \tan θ_t = η_t e^{φ},

    .. math::
       \log α_t = \log \cos^2 θ_t - e^{A_{\log}} \mathrm{softplus}(w_Δ u_t + b_Δ), \quad
       \log μ_t = \max(-2, -e^{M_{\log}} \mathrm{softplus}(w_μ u_t + b_μ)) .

    The angle θ_t couples α_t and β_t: [S, M] is the state, and all eigenvalues of its transition
    lie within the unit circle, as α_t β_t η_t ≤ 1/2:

    .. math::
       \begin{pmatrix} α I - α β η k k^\top & -β μ I \\ α η k k^\top & μ I \end{pmatrix} .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head; the state has 2n.
        num_heads: H, divides d_model.
        num_groups: G, heads of q and k, divides H (grouped values); by default H.
        allow_neg_eigval: Whether β is doubled, as in flash-linear-attention.
        init: "published": e^{A_log} and e^{M_log} uniform in [0, 16], e^φ in [0, 4], c in [0, 1],
            b_μ = b_Δ with softplus(b_Δ) log-uniform in [1e-3, 0.1], weights N(0, 1/d); "authors":
            A_log = M_log = φ = b_Δ = b_μ = 0, c = 1, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, 2n, p).

    References:
        The authors' layer, github.com/HuuYuLong/MomentumDeltaNet, whose output gate is a sigmoid;
        that of flash-linear-attention is a SiLU.

    Example:
        >>> arch = momentum_delta(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 4, 8)
    """
    p = divide("momentum_delta", d_model, num_heads, "d_model")
    groups = num_heads if num_groups is None else num_groups
    divide("momentum_delta", num_heads, groups, "num_heads")

    def init_params(key: Array) -> Params:
        key, key_dt, *keys = jax.random.split(key, 6)
        shape, wide, heads = (groups, d_state, d_model), (num_heads, p, d_model), (num_heads,)
        bias = step_bias(key_dt, heads, init)
        gates = dict.fromkeys(("W_beta", "W_eta", "W_mu", "W_dt"), (num_heads, d_model))
        return Params(
            **maps(key, init, W_q=shape, W_k=shape, W_v=wide, **gates),
            bias_mu=bias,
            bias_dt=bias,
            mu_log=log_rates(keys[0], heads, init),
            A_log=log_rates(keys[1], heads, init),
            angle_log=log_rates(keys[2], heads, init, maximum=4.0),
            output_log=log_rates(keys[3], (groups,), init, maximum=1.0),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta, eta, mu, step = (
            affine(W, u, bias, wide=True)
            for W, bias in (
                (params.W_beta, None),
                (params.W_eta, None),
                (params.W_mu, params.bias_mu),
                (params.W_dt, params.bias_dt),
            )
        )
        eta = 1 + jnp.tanh(eta / math.sqrt(d_model))
        squared = jnp.square(eta * jnp.exp(params.angle_log)[None].astype(eta.dtype))  # tan² θ
        beta = (2 if allow_neg_eigval else 1) * squared / (1 + squared) * jax.nn.sigmoid(beta)
        log_mu = jnp.maximum(decay_of_step(params.mu_log, mu), LOWEST_LOG_MU)
        log_alpha = decay_of_step(params.A_log, step) - jnp.log1p(squared)
        return Signals(q, k, v, beta, eta, log_mu, log_alpha)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta, eta, log_mu, log_alpha = signals
        q = q - jnp.exp(params.output_log)[None, :, None].astype(k.dtype) * k
        q, k = (to_heads(x, num_heads) for x in (q, k))
        return chunk_momentum_delta_rule.system(
            q, k, v, log_alpha, log_mu, beta=beta, eta=eta, reset=reset
        )

    traits = Traits("momentum", "d · 2n", "yes: β_t, η_t, k_t", "[0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
