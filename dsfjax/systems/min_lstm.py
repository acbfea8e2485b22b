r"""minLSTM, an LSTM whose gates do not read the state (Feng et al. 2024, arXiv:2410.01201)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import Diagonal, InnerOutput, OuterInput, System
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, weights_decay
from dsfjax.systems.projections import maps
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(conv_width=4, conv_activation="identity")


class Params(NamedTuple):
    """W_f, W_i, W (d, d); bias_f, bias_i (d,)."""

    W_f: Array
    W_i: Array
    W: Array
    bias_f: Array
    bias_i: Array


class Signals(NamedTuple):
    """Logarithms of the forget and of the input gate, before they are normalised; value (L, d)."""

    log_f: Array
    log_i: Array
    v: Array


def min_lstm(*, d_model: int, init: Init = "published") -> Architecture:
    r"""A moving average whose rate is the share of one gate in two.

    .. math::
       h_t = \frac{f_t}{f_t + i_t} ⊙ h_{t-1} + \frac{i_t}{f_t + i_t} ⊙ W u_t, \quad
       f_t = σ(W_f u_t + b_f), \; i_t = σ(W_i u_t + b_i), \; y_t = h_t .

    Args:
        d_model: d, width of tokens, state and outputs.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`; state (1, 1, d).

    Example:
        >>> arch = min_lstm(d_model=4)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4))).state_shape
        (1, 1, 4)
    """

    def init_params(key: Array) -> Params:
        square, zero = (d_model, d_model), jnp.zeros(d_model)
        weights = maps(key, init, W_f=square, W_i=square, W=square)
        return Params(**weights, bias_f=zero, bias_i=zero)

    def signals(params: Params, u: Array) -> Signals:
        f = affine(params.W_f, u, params.bias_f, wide=True)
        i = affine(params.W_i, u, params.bias_i, wide=True)
        return Signals(jax.nn.log_sigmoid(f), jax.nn.log_sigmoid(i), affine(params.W, u))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        # f / (f + i) is a sigmoid of the difference of logarithms, also where both gates are 0.
        ratio = signals.log_f - signals.log_i
        return System(
            Diagonal(jax.nn.log_sigmoid(ratio)[:, None, None, :]),
            OuterInput(scale=jax.nn.sigmoid(-ratio)[:, None, :]),
            InnerOutput(),
            reset=reset,
            state_shape=(1, 1, d_model),
        )

    traits = Traits("diagonal, per channel", "d", "yes: f_t, i_t", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, lambda p: p.W, weights_decay, traits)
