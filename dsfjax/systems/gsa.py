r"""Gated slot attention (Zhang et al. 2024, arXiv:2409.07146)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.engines import scan
from dsfjax.ops.slots import slots_of_keys, slots_of_values
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

TEMPERATURE = 8.0
PRACTICE = Surrounding(conv_on=("q", "k", "v"), output_activation="silu", output_norm=True)


class Params(NamedTuple):
    """W_q (H, m, d); W_k (G, m, d), W_v (G, p, d), W_a (G, n, d)."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_a: Array


class Signals(NamedTuple):
    """q (L, H, m), k (L, G, m), v (L, G, p) and log a (L, G, n)."""

    q: Array
    k: Array
    v: Array
    log_a: Array


def gsa(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    d_key: int | None = None,
    init: Init = "published",
) -> Architecture:
    r"""Softmax attention over n slots, whose keys and values are moving averages.

    .. math::
       y_t = \mathrm{softmax}(K_t q_t)^\top V_t, \quad
       K_t = a_t ⊙ K_{t-1} + (1 - a_t) ⊗ k_t, \quad V_t = a_t ⊙ V_{t-1} + (1 - a_t) ⊗ v_t,

    with a decay per slot, a_t = σ(W_a u_t)^{1/8}. V is the state of the System, which reads it with
    c_t = softmax(K_t q_t); K is the state of a System of its own, carried next to it. Scores have
    no factor 1/√m, as in the layer of flash-linear-attention (whose op has it by default).

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, slots per head.
        num_heads: H, divides d_model.
        num_groups: G, heads of k, v and a, divides H; by default H. Outputs are then in the order
            (H/G, G, p).
        d_key: m, width of q and k per head, by default d/H.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (G, n, p), and (G, m, n) next to it.

    Example:
        >>> arch = gsa(d_model=8, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> system.C.c.sum(axis=-1).round(3).tolist()
        [[1.0], [1.0], [1.0]]
    """
    p = divide("gsa", d_model, num_heads, "d_model")
    m, groups = d_key or p, num_groups or num_heads
    divide("gsa", num_heads, groups, "num_heads")

    def init_params(key: Array) -> Params:
        shapes = {"W_q": (num_heads, m, d_model), "W_k": (groups, m, d_model)}
        shapes |= {"W_v": (groups, p, d_model), "W_a": (groups, d_state, d_model)}
        return Params(**maps(key, init, **shapes))

    def signals(params: Params, u: Array) -> Signals:
        log_a = jax.nn.log_sigmoid(affine(params.W_a, u, wide=True)) / TEMPERATURE
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        return Signals(q, k, v, log_a)

    def past(params: Params) -> Array:
        return jnp.zeros((groups, m, d_state), state_dtype(params.W_k.dtype))

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Array
    ) -> tuple[Any, Array]:
        q, k, v, log_a = signals
        share = -jnp.expm1(log_a)
        keys = slots_of_keys(q, k, share, log_a, 1.0, reset=reset)
        scores, last = scan(*keys, past.astype(keys.system.dtype))
        c = jax.nn.softmax(scores.reshape(len(q), -1, groups, d_state).astype(log_a.dtype))
        c = c.swapaxes(1, 2).reshape(len(q), num_heads, d_state)
        values = slots_of_values(c, v, share, log_a, reset=reset)
        return values.system, last.astype(past.dtype)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return carry(params, signals, reset=reset, past=past(params))[0]

    traits = Traits("diagonal, per state", "H · m · n next to d · n", "yes: a_t", "(0, 1)", "none")
    return Architecture(
        *(init_params, signals, assemble, value_map, weights_decay, traits), past=past, carry=carry
    )
