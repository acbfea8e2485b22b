r"""mLSTM, the matrix memory of xLSTM (Beck et al. 2024, arXiv:2405.04517)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.ops.mlstm_kernels import matrix_memory
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding

EPSILON = 1e-6
PRACTICE = Surrounding(head_norm="layer", gate="sigmoid")


class Params(NamedTuple):
    """W_q, W_k (H, n, d); W_v (H, p, d); gates gate_i, gate_f (H, d), bias_i, bias_f (H,)."""

    W_q: Array
    W_k: Array
    W_v: Array
    gate_i: Array
    gate_f: Array
    bias_i: Array
    bias_f: Array


class Signals(NamedTuple):
    """q, k (L, H, n), v (L, H, p); logarithms of the input and the forget gate (L, H)."""

    q: Array
    k: Array
    v: Array
    log_i: Array
    log_f: Array


def mlstm(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    soft_cap: float | None = None,
    init: Init = "published",
) -> Architecture:
    r"""Linear attention with an exponential input gate and a floor of its normaliser.

    .. math::
       h_t = σ(\tilde f_t) h_{t-1} + e^{\tilde ı_t} k_t ⊗ v_t, \quad
       y_t = \frac{q_t^\top h_t / \sqrt{n}}{\max(|q_t^\top z_t| / \sqrt{n}, 1)},

    with z the same recurrence of values of 1. It is computed in coordinates that follow the running
    maximum m_t = max(log σ(f̃_t) + m_{t−1}, ı̃_t): there the floor is e^{−m_t}, and no gate
    overflows. m is carried next to the state.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        soft_cap: c: gates before their activation are c tanh(x/c), 15 in xLSTM-7B; None for x.
        init: "published": maps of the gates 0, b_f from 3 to 6 over the heads, b_i = −10, the other
            weights N(0, 1/d); "authors": those N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = mlstm(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.eta.modulus, system.carried_shape
        (True, (1, 2, 5))
    """
    p = divide("mlstm", d_model, num_heads, "d_model")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"mlstm: expected soft_cap above 0, got {soft_cap}; None is no cap.")

    def init_params(key: Array) -> Params:
        shape, gate = (num_heads, d_state, d_model), jnp.zeros((num_heads, d_model))
        return Params(
            **maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model)),
            gate_i=gate,
            gate_f=gate,
            bias_i=jnp.full(num_heads, -10.0),
            bias_f=jnp.linspace(3.0, 6.0, num_heads),
        )

    def signals(params: Params, u: Array) -> Signals:
        i = affine(params.gate_i, u, params.bias_i, wide=True)
        f = affine(params.gate_f, u, params.bias_f, wide=True)
        if soft_cap is not None:
            i, f = (soft_cap * jnp.tanh(x / soft_cap) for x in (i, f))
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        return Signals(q, k, v, i, jax.nn.log_sigmoid(f))

    def past(params: Params) -> Array:
        return jnp.full(num_heads, -jnp.inf, state_dtype(params.bias_i.dtype))

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Array
    ) -> tuple[System, Array]:
        q, k, _, log_i, log_f = signals
        gates = log_f, log_i, past
        system, last = matrix_memory(q, k, *gates, EPSILON, num_channels=p, reset=reset)
        return system, last.astype(past.dtype)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return carry(params, signals, reset=reset, past=past(params))[0]

    traits = Traits(
        "scalar", "d · n", "yes: m_t, η", "unbounded (η reads q_t)", "recurrent, max(|qᵀz|, 1)"
    )
    return Architecture(
        *(init_params, signals, assemble, value_map, weights_decay, traits), past=past, carry=carry
    )
