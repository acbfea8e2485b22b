r"""RWKV-6 "Finch" (Peng et al. 2024, arXiv:2404.05892)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_rwkv6
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, low_rank, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(token_shift=("r", "k", "v", "log_w", "gate"), head_norm="layer", gate="silu")


class Params(NamedTuple):
    """W_r, W_k (H, n, d); W_v (H, p, d); the decay's w_down (ρ, d), w_up (H, n, ρ), w_bias (H, n).

    bonus (H, n).
    """

    W_r: Array
    W_k: Array
    W_v: Array
    w_down: Array
    w_up: Array
    w_bias: Array
    bonus: Array


class Signals(NamedTuple):
    """r, k (L, H, n), v (L, H, p) and log of the decay w (L, H, n)."""

    r: Array
    k: Array
    v: Array
    log_w: Array


def rwkv6(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    gate_rank: int = 64,
    init: Init = "published",
) -> Architecture:
    r"""A decay per feature that reads the token, and a bonus for the present.

    .. math::
       y_t = r_t^\top (h_{t-1} + (ρ ⊙ k_t) ⊗ v_t), \quad h_t = w_t ⊙ h_{t-1} + k_t ⊗ v_t, \quad
       \log w_t = -e^{W_2 \tanh(W_1 u_t) + w_0} .

    y_t reads the state before the step. The published model shifts tokens, also those that its gate
    reads, by weights that read the token themselves; those of ``surroundings="practice"`` are
    constant, as in RWKV-5, and its heads share the weights of their norm, whose ε is 1e-5.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        gate_rank: Rank of the map to w_t.
        init: "published": w_0 from −6 to −1 over the features as c^0.7 (that of the first layer),
            ρ = −0.1, 0 or 0.1 in turn, W_1 = 0, W_2 N(0, 0.1²), r, k, v N(0, 1/d); "authors": the
            last N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = rwkv6(d_model=8, d_state=2, num_heads=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).C.before_update
        True
    """
    p = divide("rwkv6", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        key, key_w = jax.random.split(key)
        shape, features = (num_heads, d_state, d_model), (num_heads, d_state)
        c = jnp.arange(num_heads * d_state, dtype=float).reshape(features)
        return Params(
            **maps(key, init, W_r=shape, W_k=shape, W_v=(num_heads, p, d_model)),
            w_down=jnp.zeros((gate_rank, d_model)),
            w_up=0.1 * jax.random.normal(key_w, (*features, gate_rank)),
            w_bias=-6 + 5 * (c / max(c.size - 1, 1)) ** 0.7,
            bonus=0.1 * ((c + 1) % 3 - 1),
        )

    def signals(params: Params, u: Array) -> Signals:
        z = low_rank(params.w_down, params.w_up, u, params.w_bias, jnp.tanh)
        r, k, v = (affine(W, u) for W in (params.W_r, params.W_k, params.W_v))
        return Signals(r, k, v, -jnp.exp(z))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        r, k, v, log_w = signals
        return chunk_rwkv6.system(r, k, v, log_w, params.bonus, scale=1.0, reset=reset)

    traits = Traits("diagonal, per state", "d · n", "no", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
