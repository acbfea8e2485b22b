r"""The delta rule with momentum (flash-linear-attention)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
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

PRACTICE = CONVOLVED._replace(head_norm="rms", gate="silu")


class Params(NamedTuple):
    """W_q, W_k (H, n, d); W_v (H, p, d); W_beta, W_eta, W_mu, W_dt (H, d); bias_mu, bias_dt (H,).

    A_log (H,).
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
    A_log: Array


class Signals(NamedTuple):
    """q, k (L, H, n), v (L, H, p); β, η, log μ and log α (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    eta: Array
    log_mu: Array
    log_alpha: Array


def momentum_delta(
    *, d_model: int, d_state: int = 64, num_heads: int = 1, init: Init = "published"
) -> Architecture:
    r"""A state that follows the running mean of its corrections.

    .. math::
       M_t = μ_t M_{t-1} + η_t k_t (α_t k_t^\top S_{t-1} - v_t^\top), \quad
       S_t = α_t S_{t-1} - β_t M_t, \quad y_t = q_t^\top S_t / \sqrt{n},

    with q_t and k_t of unit length, β_t, η_t and μ_t sigmoids of linear maps, and α_t as the decay
    of Gated DeltaNet. [S, M] is the state, and its transition the matrix

    .. math::
       \begin{pmatrix} α I - α β η k k^\top & -β μ I \\ α η k k^\top & μ I \end{pmatrix} .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head; the state has 2n.
        num_heads: H, divides d_model.
        init: "published": b_μ = 0, e^{A_log} uniform in [0, 16], softplus(b_Δ) log-uniform in
            [1e-3, 0.1], weights N(0, 1/d); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, 2n, p).

    References:
        The op `momentum_delta_rule` of flash-linear-attention 0.6.0.

    Example:
        >>> arch = momentum_delta(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 4, 8)
    """
    p = divide("momentum_delta", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        shape, wide = (num_heads, d_state, d_model), (num_heads, p, d_model)
        gates = dict.fromkeys(("W_beta", "W_eta", "W_mu", "W_dt"), (num_heads, d_model))
        return Params(
            **maps(key, init, W_q=shape, W_k=shape, W_v=wide, **gates),
            bias_mu=jnp.zeros(num_heads),
            bias_dt=step_bias(key_dt, (num_heads,), init),
            A_log=log_rates(key_a, (num_heads,), init),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta, eta = (jax.nn.sigmoid(affine(W, u, wide=True)) for W in (params.W_beta, params.W_eta))
        mu = jax.nn.log_sigmoid(affine(params.W_mu, u, params.bias_mu, wide=True))
        step = affine(params.W_dt, u, params.bias_dt, wide=True)
        return Signals(q, k, v, beta, eta, mu, decay_of_step(params.A_log, step))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta, eta, log_mu, log_alpha = signals
        return chunk_momentum_delta_rule.system(
            q, k, v, log_alpha, log_mu, beta=beta, eta=eta, reset=reset
        )

    traits = Traits("momentum", "d · 2n", "yes: β_t, η_t, k_t", "not bounded", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
