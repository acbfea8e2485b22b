r"""Forgetting attention, the mixer of FoX (Lin et al. 2025, arXiv:2503.02130)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import KernelSystem
from dsfjax.ops import parallel_attn
from dsfjax.systems import softmax_heads
from dsfjax.systems.architecture import Architecture, Place, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(head_norm="rms", gate="sigmoid")


class Params(NamedTuple):
    """W_q (H, m, d), W_k (G, m, d); W_v (G, p, d); W_f (H, d), bias_f (H,); norms (m,) or None."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_f: Array
    bias_f: Array
    q_norm: Array | None
    k_norm: Array | None


class Signals(NamedTuple):
    """q (L, H, m), k (L, G, m), v (L, G, p) and log of the forget gate (L, H)."""

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
    num_groups: int | None = None,
    rope_base: float | None = None,
    qk_norm: bool = False,
    soft_cap: float | None = None,
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
        num_groups: G, heads of k and v, divides H; by default H.
        rope_base: As of `dsfjax.systems.softmax_attention.softmax_attention`.
        qk_norm: Whether q and k have an RMS norm per head.
        soft_cap: c: the product of q and k is c tanh(x/c), before the decay; None for x.
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
    groups = softmax_heads.groups_of("forgetting_attention", num_heads, num_groups)
    angles = softmax_heads.frequencies("forgetting_attention", d_state, rope_base)

    def init_params(key: Array) -> Params:
        shapes = {
            "W_q": (num_heads, d_state, d_model),
            "W_k": (groups, d_state, d_model),
            "W_v": (groups, p, d_model),
            "W_f": (num_heads, d_model),
        }
        norms = softmax_heads.norms(d_state, qk_norm)
        return Params(**maps(key, init, **shapes), bias_f=jnp.zeros(num_heads), **norms)

    def signals(params: Params, u: Array) -> Signals:
        log_f = jax.nn.log_sigmoid(affine(params.W_f, u, params.bias_f, wide=True))
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        return Signals(q, k, v, log_f)

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Place | None = None
    ) -> tuple[KernelSystem, Place | None]:
        q, k, v, log_f = signals
        q, k, past = softmax_heads.placed(params, q, k, angles, reset=reset, past=past)
        system = parallel_attn.system(q, k, v, log_f, window_size=window, reset=reset)
        return dataclasses.replace(system, soft_cap=soft_cap), past

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> KernelSystem:
        return carry(params, signals, reset=reset)[0]

    state, bounds = "grows: t · (m + d)", "unbounded (η reads q_t)"
    traits = Traits("kernel, scalar", state, "yes: W_K, W_V and η", bounds, "Σ exp(qᵀk)")
    return Architecture(
        *(init_params, signals, assemble, value_map, weights_decay, traits),
        past=softmax_heads.start if angles else None,
        carry=carry,
    )
