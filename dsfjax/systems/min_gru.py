r"""minGRU, a GRU whose gates do not read the state (Feng et al. 2024, arXiv:2410.01201)."""

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
    """W_z, W (d, d); bias_z (d,)."""

    W_z: Array
    W: Array
    bias_z: Array


class Signals(NamedTuple):
    """The gate before its sigmoid and the value (L, d)."""

    z: Array
    v: Array


def min_gru(*, d_model: int, init: Init = "published") -> Architecture:
    r"""A moving average whose rate reads the token.

    .. math:: h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ W u_t, \quad z_t = σ(W_z u_t + b), \quad y_t = h_t .

    Args:
        d_model: d, width of tokens, state and outputs.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Bias 0.

    Returns:
        The `Architecture`; state (1, 1, d).

    Example:
        >>> arch = min_gru(d_model=4)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4))).state_shape
        (1, 1, 4)
    """

    def init_params(key: Array) -> Params:
        square = (d_model, d_model)
        return Params(**maps(key, init, W_z=square, W=square), bias_z=jnp.zeros(d_model))

    def signals(params: Params, u: Array) -> Signals:
        return Signals(affine(params.W_z, u, params.bias_z, wide=True), affine(params.W, u))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return System(
            Diagonal(jax.nn.log_sigmoid(-signals.z)[:, None, None, :]),
            OuterInput(scale=jax.nn.sigmoid(signals.z)[:, None, :]),
            InnerOutput(),
            reset=reset,
            state_shape=(1, 1, d_model),
        )

    traits = Traits("diagonal, per channel", "d", "yes: z_t", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, lambda p: p.W, weights_decay, traits)
