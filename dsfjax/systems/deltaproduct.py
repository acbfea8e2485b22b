r"""DeltaProduct (Siems et al. 2025, arXiv:2502.10297): several delta rules per token."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_gated_delta_product
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    affine,
    decay_of_step,
    divide,
    log_rates,
    step_bias,
    weights_decay,
)
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import CONVOLVED

PRACTICE = CONVOLVED._replace(head_norm="rms", gate="silu")


class Params(NamedTuple):
    """W_q (G, n, d), W_k (r, G, n, d), W_v (r, H, p, d), W_beta (r, H, d), W_dt (H, d).

    bias_dt, A_log (H,).
    """

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array
    W_dt: Array
    bias_dt: Array
    A_log: Array


class Signals(NamedTuple):
    """q (L, G, n), k (L, r, G, n), v (L, r, H, p), β (L, r, H) and log a (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_a: Array


def deltaproduct(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    num_householder: int = 2,
    allow_neg_eigval: bool = True,
    init: Init = "published",
) -> Architecture:
    r"""One decay, then r corrections of the state, each with a key and a value of its own.

    .. math::
       h_t = \prod_{j=r}^{1} (I - β_t^j k_t^j k_t^{j\top}) \, a_t h_{t-1}
       + \sum_j \prod_{i=r}^{j+1} (I - β_t^i k_t^i k_t^{i\top}) \, β_t^j k_t^j ⊗ v_t^j, \quad
       y_t = q_t^\top h_t / \sqrt{n},

    with q_t and k_t of unit length, β_t = 2 σ(W_β u_t), and a_t as in Gated DeltaNet. The product
    is the identity minus a matrix of rank r, W_t K_tᵀ, and the columns of W_t are what is written.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        num_groups: G, heads of q and k, divides H (grouped values); by default H.
        num_householder: r, corrections per token.
        allow_neg_eigval: Whether β is doubled, so that eigenvalues reach −1 and two corrections
            turn the state.
        init: "published": e^{A_log} uniform in [0, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1],
            weights N(0, 1/d); "authors": A_log = b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import jax.numpy as jnp
        >>> arch = deltaproduct(d_model=8, d_state=4, num_householder=3)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).A.describe()
        'diagonal plus rank 3'
    """
    p = divide("deltaproduct", d_model, num_heads, "d_model")
    groups = num_heads if num_groups is None else num_groups
    divide("deltaproduct", num_heads, groups, "num_heads")
    several = (num_householder, num_heads)

    def init_params(key: Array) -> Params:
        key, key_dt, key_a = jax.random.split(key, 3)
        weights = maps(
            key,
            init,
            W_q=(groups, d_state, d_model),
            W_k=(num_householder, groups, d_state, d_model),
            W_v=(*several, p, d_model),
            W_beta=(*several, d_model),
            W_dt=(num_heads, d_model),
        )
        return Params(
            **weights,
            bias_dt=step_bias(key_dt, (num_heads,), init),
            A_log=log_rates(key_a, (num_heads,), init),
        )

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta = jax.nn.sigmoid(affine(params.W_beta, u, wide=True))
        step = affine(params.W_dt, u, params.bias_dt, wide=True)
        beta = 2 * beta if allow_neg_eigval else beta
        return Signals(q, k, v, beta, decay_of_step(params.A_log, step))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta, log_a = signals
        k, v, beta = (x.reshape(-1, *x.shape[2:]) for x in (k, v, beta))  # a step per correction
        return chunk_gated_delta_product.system(
            *(q, k, v, log_a, beta, num_householder), use_qk_l2norm_in_kernel=True, reset=reset
        )

    bounds = "(−1, 1)" if allow_neg_eigval else "(0, 1)"
    structure = f"diagonal plus rank {num_householder}"
    traits = Traits(structure, "d · n", "yes: β_t, k_t", bounds, "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
