r"""DeltaNet, the delta rule (Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2406.06484)."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from dsfjax.core import System
from dsfjax.ops import chunk_delta_rule
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import CONVOLVED

PRACTICE = CONVOLVED._replace(head_norm="rms")


class Params(NamedTuple):
    """W_q, W_k (G, n, d); W_v (H, p, d); W_beta (H, d)."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_beta: Array


class Signals(NamedTuple):
    """q, k (L, G, n), v (L, H, p) and β (L, H)."""

    q: Array
    k: Array
    v: Array
    beta: Array


def deltanet(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    allow_neg_eigval: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""A state that is corrected: what a key reads is replaced by its value.

    .. math::
       h_t = (I - β_t k_t k_t^\top) h_{t-1} + β_t k_t ⊗ v_t, \quad y_t = q_t^\top h_t / \sqrt{n},

    with q_t and k_t of unit length and β_t = σ(w_β u_t), one per head.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        num_groups: G, heads of q and k, divides H; by default H.
        allow_neg_eigval: Whether β is doubled, so that eigenvalues reach −1 (arXiv:2411.12537).
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import jax.numpy as jnp
        >>> arch = deltanet(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).A.describe()
        'diagonal plus rank 1'
    """
    p = divide("deltanet", d_model, num_heads, "d_model")
    groups = num_heads if num_groups is None else num_groups
    divide("deltanet", num_heads, groups, "num_heads")

    def init_params(key: Array) -> Params:
        shape, wide = (groups, d_state, d_model), (num_heads, p, d_model)
        beta = (num_heads, d_model)
        return Params(**maps(key, init, W_q=shape, W_k=shape, W_v=wide, W_beta=beta))

    def signals(params: Params, u: Array) -> Signals:
        q, k, v = (affine(W, u) for W in (params.W_q, params.W_k, params.W_v))
        beta = jax.nn.sigmoid(affine(params.W_beta, u, wide=True))
        return Signals(q, k, v, 2 * beta if allow_neg_eigval else beta)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k, v, beta = signals
        return chunk_delta_rule.system(q, k, v, beta, use_qk_l2norm_in_kernel=True, reset=reset)

    bounds = "[−1, 1]" if allow_neg_eigval else "[0, 1]"
    traits = Traits("diagonal plus rank 1", "d · n", "yes: β_t, k_t", bounds, "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
