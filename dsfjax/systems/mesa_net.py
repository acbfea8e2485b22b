r"""MesaNet, a locally optimal test-time trainer (von Oswald et al. 2025, arXiv:2506.05233)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.engines import scan
from dsfjax.ops.mesa import covariance, solved
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    affine,
    divide,
    inverse_softplus,
    weights_decay,
)
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import CONVOLVED

LOWEST = 0.25
PRACTICE = CONVOLVED._replace(conv_on=("q", "k"), head_norm="rms")


class Params(NamedTuple):
    """W_q, W_k (H, n, d); W_v (H, p, d); W_beta, W_a (H, d); bias_beta, bias_a (H,).

    ridge (H, n).
    """

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array
    W_a: Array
    bias_beta: Array
    bias_a: Array
    ridge: Array


class Signals(NamedTuple):
    """q, k (L, H, n), v (L, H, p), β and log a (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_a: Array


def mesa_net(
    *, d_model: int, d_state: int = 64, num_heads: int = 1, init: Init = "published"
) -> Architecture:
    r"""Linear attention whose query solves the regression of values on keys.

    .. math::
       y_t = V_t^\top (K_t + Λ)^{-1} q_t, \quad
       K_t = a_t K_{t-1} + β_t k_t k_t^\top, \quad V_t = a_t V_{t-1} + β_t k_t ⊗ v_t,

    with q_t and k_t of unit length, β_t = σ(w_β u_t + b_β), a_t = σ(w_a u_t + b_a) and a diagonal
    Λ = 0.25 + softplus(ridge). V is the state of the System, which reads it with the solution; K is
    the state of a System of its own, carried next to it. The solution is exact, where
    flash-linear-attention takes 30 steps of conjugate gradients; a_t is that of its released layer,
    which had the decay of Gated DeltaNet at first.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        init: "published": Λ = 1, b_β = b_a = 0, weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p), and (H, n, n) next to it.

    Numerics:
        O(L n²) memory for the matrices K_t, and O(n³) work per step.

    Example:
        >>> arch = mesa_net(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 2, 8)
    """
    p = divide("mesa_net", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        shape, gate = (num_heads, d_state, d_model), (num_heads, d_model)
        wide = (num_heads, p, d_model)
        return Params(
            **maps(key, init, W_q=shape, W_k=shape, W_v=wide, W_beta=gate, W_a=gate),
            bias_beta=jnp.zeros(num_heads),
            bias_a=jnp.zeros(num_heads),
            ridge=jnp.full((num_heads, d_state), inverse_softplus(jnp.array(1 - LOWEST))),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta = jax.nn.sigmoid(affine(params.W_beta, u, params.bias_beta, wide=True))
        log_a = jax.nn.log_sigmoid(affine(params.W_a, u, params.bias_a, wide=True))
        return Signals(q, k, v, beta, log_a)

    def past(params: Params) -> Array:
        return jnp.zeros((num_heads, d_state, d_state), state_dtype(params.W_k.dtype))

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Array
    ) -> tuple[Any, Array]:
        q, k, v, beta, log_a = signals
        keys = covariance(k, log_a, beta, True, reset=reset)
        rows, last = scan(*keys, past.astype(keys.system.dtype))
        rows = rows.reshape(k.shape[0], d_state, *k.shape[1:])
        ridge = LOWEST + jax.nn.softplus(params.ridge)
        values = solved(q, k, v, log_a, beta, rows, ridge, True, reset=reset)
        return values.system, last.astype(past.dtype)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return carry(params, signals, reset=reset, past=past(params))[0]

    traits = Traits("scalar", "H · n² next to d · n", "no", "(0, 1)", "none")
    return Architecture(
        *(init_params, signals, assemble, value_map, weights_decay, traits), past=past, carry=carry
    )
