r"""HGRN2, a gated linear RNN with state expansion (Qin et al. 2024, arXiv:2404.07904)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_gla
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(output_norm=True)


class Params(NamedTuple):
    """W_q, W_f (H, n, d); W_v (H, p, d)."""

    W_q: Array
    W_f: Array
    W_v: Array


class Signals(NamedTuple):
    """q (L, H, n), log of the forget gate (L, H, n), v (L, H, p)."""

    q: Array
    log_f: Array
    v: Array


def hgrn2(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    lower_bound: float = 0.0,
    init: Init = "published",
) -> Architecture:
    r"""A decay per state whose complement is the key.

    .. math::
       h_t = f_t ⊙ h_{t-1} + (1 - f_t) ⊗ v_t, \quad y_t = q_t^\top h_t, \quad
       f_t = β + (1 - β) σ(W_f u_t), \; q_t = \mathrm{silu}(W_Q u_t) .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        lower_bound: β in [0, 1), the smallest decay. It is learnt and grows from 0 in the first
            layer in the published model; here it is a number.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = hgrn2(d_model=8, d_state=2, lower_bound=0.5)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> bool((jnp.exp(system.A.log_a) > 0.5).all())
        True
    """
    p = divide("hgrn2", d_model, num_heads, "d_model")
    if not 0 <= lower_bound < 1:
        raise ValueError(f"hgrn2: expected 0 <= lower_bound < 1, got {lower_bound}.")

    def init_params(key: Array) -> Params:
        shape = (num_heads, d_state, d_model)
        return Params(**maps(key, init, W_q=shape, W_f=shape, W_v=(num_heads, p, d_model)))

    def signals(params: Params, u: Array) -> Signals:
        z = affine(params.W_f, u, wide=True)
        log_f = jax.nn.log_sigmoid(z)
        if lower_bound:
            log_f = jnp.log(lower_bound + (1 - lower_bound) * jax.nn.sigmoid(z))
        return Signals(jax.nn.silu(affine(params.W_q, u)), log_f, affine(params.W_v, u))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        k = -jnp.expm1(signals.log_f)  # 1 − f without the rounding of f near 1
        return chunk_gla.system(signals.q, k, signals.v, signals.log_f, scale=1.0, reset=reset)

    traits = Traits("diagonal, per state", "d · n", "yes: f_t", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
