r"""Forgetting attention, the mixer of FoX (Lin et al. 2025, arXiv:2503.02130)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import KernelSystem
from dsfjax.ops import parallel_attn
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(head_norm="rms", gate="sigmoid")


class Params(NamedTuple):
    """W_q, W_k (H, m, d); W_v (H, p, d); W_f (H, d), bias_f (H,)."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_f: Array
    bias_f: Array


class Signals(NamedTuple):
    """q, k (L, H, m), v (L, H, p) and log of the forget gate (L, H)."""

    q: Array
    k: Array
    v: Array
    log_f: Array


def forgetting_attention(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    window: int | None = None,
    init: Init = "published",
) -> Architecture:
    r"""Softmax attention whose weights decay by a gate that reads the tokens in between.

    .. math::
       y_t = \sum_{s \le t} \frac{e^{q_t^\top k_s / \sqrt{m} + \sum_{r=s+1}^{t} \log f_r}}{η_t} v_s,
       \qquad f_t = σ(w_f u_t + b_f) .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: m, features of q and k per head.
        num_heads: H, divides d_model.
        window: The steps that a query sees; None for all.
        init: "published": weights N(0, 1/d), b_f = 0; "authors": weights N(0, 0.02²).

    Returns:
        The `Architecture`, with a `KernelSystem` in place of a System.

    Example:
        >>> arch = forgetting_attention(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.transition.log_a.shape
        (3, 1)
    """
    p = divide("forgetting_attention", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        shape, gate = (num_heads, d_state, d_model), (num_heads, d_model)
        weights = maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model), W_f=gate)
        return Params(**weights, bias_f=jnp.zeros(num_heads))

    def signals(params: Params, u: Array) -> Signals:
        log_f = jax.nn.log_sigmoid(affine(params.W_f, u, params.bias_f, wide=True))
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        return Signals(q, k, v, log_f)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> KernelSystem:
        q, k, v, log_f = signals
        return parallel_attn.system(q, k, v, log_f, window_size=window, reset=reset)

    state, bounds = "grows: t · (m + d)", "unbounded (η reads q_t)"
    traits = Traits("kernel, scalar", state, "yes: W_K, W_V and η", bounds, "Σ exp(qᵀk)")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
