r"""Normalized attention, the proposal of Sieber et al. (2024), arXiv:2405.15731."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.names import choose
from dsfjax.core import GivenNormalizer, System, separable_system
from dsfjax.systems import projections
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    affine,
    elu1,
    labels_without_decay,
    log_softplus,
    projection,
)

NormalizerName = Literal["exp", "softplus", "sigmoid", "exp_relu"]

LOG_NORMALIZERS = {
    "exp": lambda n: n,
    "softplus": log_softplus,
    "sigmoid": jax.nn.log_sigmoid,
    "exp_relu": jax.nn.relu,
}


class Params(NamedTuple):
    """As linear attention; W_eta (H, d), bias_eta (H,), offset (H,) or None."""

    W_q: Array
    bias_q: Array | None
    W_k: Array
    bias_k: Array | None
    W_v: Array
    bias_v: Array | None
    W_eta: Array
    bias_eta: Array
    offset: Array | None


class Signals(NamedTuple):
    """q, k (L, H, n), v (L, H, p) and log η (L, H)."""

    q: Array
    k: Array
    v: Array
    log_eta: Array


def normalized_attention(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    normalizer: NormalizerName = "exp",
    feature_map: Literal["none", "elu1"] = "none",
    offset: bool = False,
    scale: bool = False,
    bias: bool = False,
    recurrent: bool = True,
    init: Init = "published",
) -> Architecture:
    r"""Linear attention whose normaliser is learnt from the token, apart from q and k.

    .. math::
       y_t = \frac{1}{η_t} \sum_{s \le t} φ(q_t)^\top φ(k_s) \, v_s, \qquad
       η_t = f(w_η^\top u_t + b_η + o),

    f = exp, softplus, sigmoid, or exp ∘ ReLU, one η per head. In the paper's form
    :math:`Λ_t = (η_{t-1}/η_t) I`, :math:`B_t = (φ(k_t) ⊗ I) W_V / η_t`,
    :math:`C_t = φ(q_t)^\top ⊗ I`.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        normalizer: f, one of "exp", "softplus", "sigmoid", "exp_relu".
        feature_map: φ, "none" (identity, as published) or "elu1".
        offset: Whether a learnt offset o per head is added, initially 4 to 9 over the heads.
        scale: Whether φ(q) is divided by √n.
        bias: Whether q, k, v have biases.
        recurrent: Whether η_t divides the whole sum. Otherwise it only divides what is written at
            step t: Λ_t = I and B_t = (φ(k_t) ⊗ I) W_V / η_t, the ablation of the ratio.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import dsfjax
        >>> arch = normalized_attention(d_model=4, d_state=2, normalizer="sigmoid")
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.eta.log_eta.shape, system.state_shape
        ((3, 1), (1, 2, 4))
    """
    projections.check_heads("normalized_attention", d_model, num_heads)
    choose("normalizer of normalized_attention", normalizer, LOG_NORMALIZERS)
    choose("feature_map of normalized_attention", feature_map, ("none", "elu1"))
    phi = elu1 if feature_map == "elu1" else lambda x: x

    def init_params(key: Array) -> Params:
        key, key_eta = jax.random.split(key)
        qkv = projections.init_qkv(
            key, d_model=d_model, d_state=d_state, num_heads=num_heads, bias=bias, init=init
        )
        return Params(
            **qkv,
            W_eta=projection(key_eta, (num_heads, d_model), init),
            bias_eta=jnp.zeros(num_heads),
            offset=jnp.linspace(4.0, 9.0, num_heads) if offset else None,
        )

    def signals(params: Params, u: Array) -> Signals:
        n = affine(params.W_eta, u, params.bias_eta, wide=True)
        if params.offset is not None:
            n = n + params.offset[None].astype(n.dtype)
        return Signals(*projections.project_qkv(params, u), LOG_NORMALIZERS[normalizer](n))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q = phi(signals.q) / math.sqrt(d_state) if scale else phi(signals.q)
        k, eta = phi(signals.k), GivenNormalizer(signals.log_eta)
        if not recurrent:
            written = jnp.exp(-signals.log_eta)[:, :, None]
            k, eta = (k * written).astype(k.dtype), None
        return separable_system(q, k, eta, num_channels=params.W_v.shape[1], reset=reset)

    ratio = Traits(
        "scalar", "d · n", "yes: η", "unbounded (η_{t−1}/η_t)", f"recurrent, {normalizer}(w·u)"
    )
    instant = Traits(
        "scalar", "d · n", "no: η in B only", "1", f"{normalizer}(w·u) of what is written"
    )
    traits = ratio if recurrent else instant
    return Architecture(
        init_params,
        signals,
        assemble,
        projections.value_map,
        labels_without_decay("offset"),
        traits,
    )
