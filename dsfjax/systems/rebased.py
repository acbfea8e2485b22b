r"""ReBased (Aksenov et al. 2024, arXiv:2402.10644): attention by a learnt quadratic kernel."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.norms import layer_norm
from dsfjax.ops import parallel_rebased
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.retnet import Signals
from dsfjax.systems.surrounding import Surrounding

EPSILON = 1e-5
PRACTICE = Surrounding()  # in place of Based in the same model


class Params(NamedTuple):
    """W_q, W_k (H, m, d); W_v (H, p, d); scale and shift of the norms of q and of k (m,)."""

    W_q: Array
    W_k: Array
    W_v: Array
    scale_q: Array
    bias_q: Array
    scale_k: Array
    bias_k: Array


def rebased(
    *, d_model: int, d_state: int = 16, num_heads: int = 1, init: Init = "published"
) -> Architecture:
    r"""Attention by the square of an inner product, of queries and keys that are normalised.

    .. math::
       y_t = \frac{\sum_{s \le t} w_{ts} v_s}{\sum_{s \le t} w_{ts} + ε}, \quad
       w_{ts} = (\bar q_t^\top \bar k_s)^2 / m, \quad
       \bar q = γ_q ⊙ \mathrm{norm}(q) + β_q, \; \bar k = γ_k ⊙ \mathrm{norm}(k) + β_k,

    where norm brings the m features of a head to mean 0 and variance 1.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: m, width of q and k per head; the state has m(m + 1)/2 features.
        num_heads: H, divides d_model.
        init: "published": γ = 1, β = 0, weights N(0, 1/d); "authors": weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, m(m + 1)/2, p).

    Example:
        >>> arch = rebased(d_model=8, d_state=4)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 10, 8)
    """
    p = divide("rebased", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        shape, one, zero = (num_heads, d_state, d_model), jnp.ones(d_state), jnp.zeros(d_state)
        weights = maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model))
        return Params(**weights, scale_q=one, bias_q=zero, scale_k=one, bias_k=zero)

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*(affine(W, u) for W in (params.W_q, params.W_k, params.W_v)))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q = _normalized(signals.q, params.scale_q, params.bias_q)
        k = _normalized(signals.k, params.scale_k, params.bias_k)
        return parallel_rebased.system(q, k, signals.v, reset=reset)

    bounds, normalizer = "unbounded (η reads q_t)", "recurrent, Σ φ(q)ᵀφ(k)"
    traits = Traits("scalar", "d · m(m + 1)/2", "yes: W_K and η", bounds, normalizer)
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)


def _normalized(x: Array, scale: Array, bias: Array) -> Array:
    """Features of mean 0 and variance 1, scaled and shifted; at least float32."""
    return layer_norm(x.astype(state_dtype(x.dtype)), scale, bias, 1e-5)
