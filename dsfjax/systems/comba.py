r"""Comba, a delta rule by closed-loop control (Hu et al. 2025, arXiv:2506.02475)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System, l2norm
from dsfjax.ops import chunk_comba
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


class Params(NamedTuple):
    """W_q, W_k (G, n, d); W_v (H, p, d); W_beta, W_dt (H, d); bias_dt, A_log (H,).

    inner, output (G,): δ and c.
    """

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array
    W_dt: Array
    bias_dt: Array
    A_log: Array
    inner: Array
    output: Array


class Signals(NamedTuple):
    """q, k (L, G, n), v (L, H, p), β and log a (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_a: Array


def comba(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    d_inner: int | None = None,
    init: Init = "published",
) -> Architecture:
    r"""The delta rule with feedback of its own strength, on the state and on the query.

    .. math::
       h_t = (a_t I - β_t k_t p_t^\top) h_{t-1} + β_t k_t ⊗ v_t, \quad
       y_t = \tilde q_t^\top h_t / \sqrt{n}, \quad
       p_t = σ(δ) k_t, \; \tilde q_t = q_t - c k_t,

    with q̃_t and k_t brought to unit length, in this order, β_t = σ(w_β u_t), and a_t as in Gated
    DeltaNet. What is corrected is read before the decay. The layer of flash-linear-attention has
    q_t − c p_t, with a c that starts at 1 and not at 0.02.

    Args:
        d_model: d, width of tokens.
        d_state: n, state expansion per head.
        num_heads: H, divides d_inner.
        num_groups: G, heads of q and k, divides H (grouped values); by default H.
        d_inner: Width of values and outputs, by default d; 2d in practice.
        init: "published": δ = 1, c = 0.02, e^{A_log} uniform in [0, 16], softplus(b_Δ) log-uniform
            in [1e-3, 0.1], weights N(0, 1/d); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = comba(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).A.describe()
        'diagonal plus rank 1'
    """
    p = divide("comba", d_inner or d_model, num_heads, "d_inner")
    groups = num_heads if num_groups is None else num_groups
    divide("comba", num_heads, groups, "num_heads")

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        shape, gate = (groups, d_state, d_model), (num_heads, d_model)
        wide = (num_heads, p, d_model)
        return Params(
            **maps(key, init, W_q=shape, W_k=shape, W_v=wide, W_beta=gate, W_dt=gate),
            bias_dt=step_bias(key_dt, (num_heads,), init),
            A_log=log_rates(key_a, (num_heads,), init),
            inner=jnp.ones(groups),
            output=jnp.full(groups, 0.02),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta = jax.nn.sigmoid(affine(params.W_beta, u, wide=True))
        step = affine(params.W_dt, u, params.bias_dt, wide=True)
        return Signals(q, k, v, beta, decay_of_step(params.A_log, step))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta, log_a = signals
        q = l2norm(q - params.output[None, :, None].astype(k.dtype) * k)
        k = l2norm(k)
        feedback = jax.nn.sigmoid(params.inner)[None, :, None].astype(k.dtype)
        return chunk_comba.system(q, k, v, feedback * k, log_a, beta, reset=reset)

    traits = Traits("diagonal plus rank 1", "d · n", "yes: β_t, k_t", "(−1, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
