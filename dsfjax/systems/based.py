r"""Based (Arora et al. 2024, arXiv:2402.18668): linear attention by the Taylor features of exp."""

from __future__ import annotations

from jax import Array

from dsfjax.core import System
from dsfjax.ops import parallel_based
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.retnet import Params, Signals
from dsfjax.systems.surrounding import Surrounding

EPSILON = 1e-6
PRACTICE = Surrounding()  # its layers alternate with convolutions and windowed attention


def based(
    *, d_model: int, d_state: int = 16, num_heads: int = 1, init: Init = "published"
) -> Architecture:
    r"""Attention whose exponential is its Taylor polynomial of second order.

    .. math::
       y_t = \frac{\sum_{s \le t} w_{ts} v_s}{\sum_{s \le t} w_{ts} + ε}, \quad
       w_{ts} = 1 + x + x^2 / 2, \; x = q_t^\top k_s / \sqrt{m} .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: m, width of q and k per head; the state has (m + 1)(m + 2)/2 features.
        num_heads: H, divides d_model.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, (m + 1)(m + 2)/2, p).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> arch = based(d_model=8, d_state=4)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 15, 8)
    """
    p = divide("based", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        shape = (num_heads, d_state, d_model)
        return Params(**maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model)))

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*(affine(W, u) for W in (params.W_q, params.W_k, params.W_v)))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return parallel_based.system(*signals, reset=reset)

    bounds, normalizer = "unbounded (η reads q_t)", "recurrent, Σ φ(q)ᵀφ(k)"
    traits = Traits("scalar", "d · (m + 1)(m + 2)/2", "yes: W_K and η", bounds, normalizer)
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
