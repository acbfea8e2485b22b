r"""RG-LRU, the real-gated linear recurrent unit of Griffin (De et al. 2024, arXiv:2402.19427)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.resets import starts
from dsfjax.ops.real_gated import complement, decay_and_gate, gated_channels
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    divide,
    inverse_softplus,
    labels_without_decay,
    projection,
)


class Params(NamedTuple):
    """a_param (H, p); W_r, W_i (H, p out, p in); bias_r, bias_i (H, p)."""

    a_param: Array
    W_r: Array
    bias_r: Array
    W_i: Array
    bias_i: Array


class Signals(NamedTuple):
    """log a (L, H, p), input gate i (L, H, p), value v (L, H, p), starts of documents (L,)."""

    log_a: Array
    i: Array
    v: Array
    start: Array


def rg_lru(
    *, d_model: int, num_heads: int = 1, coupled: bool = True, init: Init = "published"
) -> Architecture:
    r"""A diagonal recurrence whose input is scaled by what the transition forgets.

    .. math::
       h_t = a_t ⊙ h_{t-1} + \sqrt{1 - a_t^2} ⊙ i_t ⊙ u_t, \quad y_t = h_t, \quad
       a_t = e^{-8\, \mathrm{softplus}(Λ) ⊙ r_t},

    with gates r_t = σ(W_r u_t + b_r), i_t = σ(W_i u_t + b_i), block-diagonal over the heads. Λ_t
    and B_t share a_t. At the first step of a document, which no state precedes, √(1 − a²) is 1.

    Args:
        d_model: d, width of tokens, state and outputs.
        num_heads: H, blocks of the gates, divides d_model.
        coupled: Whether the input is scaled by √(1 − a_t²); without, Λ_t and B_t share nothing.
        init: "published": softplus(Λ) = −log r with r² uniform in [0.9², 0.999²], weights
            N(0, 1/p); "authors": weights N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`; state (H, 1, p).

    Numerics:
        The gradient of √(1 − a²) is bounded by 1000, as in the original, where a → 1.

    Example:
        >>> arch = rg_lru(d_model=4, num_heads=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4))).state_shape
        (2, 1, 2)
    """
    p = divide("rg_lru", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        key_a, key_r, key_i = jax.random.split(key, 3)
        squared = jax.random.uniform(key_a, (num_heads, p), minval=0.9**2, maxval=0.999**2)
        zero = jnp.zeros((num_heads, p))
        return Params(
            inverse_softplus(-0.5 * jnp.log(squared)),
            projection(key_r, (num_heads, p, p), init),
            zero,
            projection(key_i, (num_heads, p, p), init),
            zero,
        )

    def signals(params: Params, u: Array, start: Array | None = None) -> Signals:
        start = starts(u.shape[0]) if start is None else start
        v = u.reshape(u.shape[0], *params.a_param.shape)
        a_gate, input_gate = (
            (W.swapaxes(1, 2), bias)
            for W, bias in ((params.W_r, params.bias_r), (params.W_i, params.bias_i))
        )
        return Signals(*decay_and_gate(v, params.a_param, a_gate, input_gate), v, start)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        scale = signals.i
        if coupled:
            scale = complement(signals.log_a, signals.start, reset) * scale
        return gated_channels(signals.log_a, scale, reset=reset)

    shared = "yes: a_t, as √(1 − a_t²)" if coupled else "no"
    traits = Traits("diagonal, per channel", "d", shared, "(0, 1)", "none")
    labels = labels_without_decay("a_param")
    return Architecture(
        init_params, signals, assemble, labels=labels, traits=traits, reads_start=coupled
    )
