r"""Gated linear attention (Yang et al. 2023, arXiv:2312.06635)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_gla
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, low_rank, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

TEMPERATURE = 16.0
PRACTICE = Surrounding(head_norm="rms", gate="silu")


class Params(NamedTuple):
    """W_q, W_k (H, n, d); W_v (H, p, d); W_a_down (r, d), W_a_up (H, n, r), bias_a (H, n)."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_a_down: Array
    W_a_up: Array
    bias_a: Array


class Signals(NamedTuple):
    """q, k (L, H, n), v (L, H, p) and log a (L, H, n)."""

    q: Array
    k: Array
    v: Array
    log_a: Array


def gla(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    gate_rank: int = 16,
    init: Init = "published",
) -> Architecture:
    r"""Linear attention with a decay per state that reads the token.

    .. math::
       h_t = a_t ⊙ h_{t-1} + k_t ⊗ v_t, \quad y_t = q_t^\top h_t / \sqrt{n}, \quad
       a_t = σ(W_2 W_1 u_t + b)^{1/16} .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        gate_rank: r, rank of the map to the decays.
        init: "published": weights N(0, 1/fan-in), b = 0, so that a starts about 0.96; "authors":
            weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = gla(d_model=8, d_state=2, num_heads=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).A.log_a.shape
        (3, 2, 2, 1)
    """
    p = divide("gla", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        key_shape = (num_heads, d_state, d_model)
        weights = maps(
            key,
            init,
            W_q=key_shape,
            W_k=key_shape,
            W_v=(num_heads, p, d_model),
            W_a_down=(gate_rank, d_model),
            W_a_up=(num_heads, d_state, gate_rank),
        )
        return Params(**weights, bias_a=jnp.zeros((num_heads, d_state)))

    def signals(params: Params, u: Array) -> Signals:
        z = low_rank(params.W_a_down, params.W_a_up, u, params.bias_a)
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        return Signals(q, k, v, jax.nn.log_sigmoid(z) / TEMPERATURE)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, log_a = signals
        return chunk_gla.system(q, k, v, log_a, reset=reset)

    traits = Traits("diagonal, per state", "d · n", "no", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
