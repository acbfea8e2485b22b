r"""SSD, the state space model of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import InnerOutput, OuterInput, Scalar, System, ValueSkip
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import (
    Init,
    affine,
    divide,
    labels_without_decay,
    projection,
    step_bias,
)


class Params(NamedTuple):
    """W_v (H, p, d); W_b, W_c (G, n, d); W_dt (H, d); bias_dt, A_log, D (H,)."""

    W_v: Array
    W_b: Array
    W_c: Array
    W_dt: Array
    bias_dt: Array
    A_log: Array
    D: Array


class Signals(NamedTuple):
    """v (L, H, p); b, c (L, G, n); Δ (L, H)."""

    v: Array
    b: Array
    c: Array
    delta: Array


def ssd(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int = 1,
    d_inner: int | None = None,
    scaled_input: bool = True,
    init: Init = "published",
) -> Architecture:
    r"""A state space model with one decay per head.

    .. math::
       h_t = e^{-Δ_t a} h_{t-1} + b_t ⊗ Δ_t v_t, \quad y_t = c_t^\top h_t + D v_t, \quad
       Δ_t = \mathrm{softplus}(W_Δ u_t + b_Δ), \; a = e^{A_{\log}} > 0, \; v_t = W_V u_t .

    The decay is a reversed sigmoid to a power, σ(−z_t)^a with z_t = W_Δ u_t + b_Δ. Λ_t and B_t
    share Δ_t. b_t and c_t are shared by the heads of a group.

    Args:
        d_model: d, width of tokens.
        d_state: n, state expansion per head.
        num_heads: H, divides d_inner; p = d_inner/H.
        num_groups: G, divides H.
        d_inner: Width of values and outputs, by default d.
        scaled_input: Whether Δ_t scales what is written, too, as for S6.
        init: "published": a uniform in [1, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1], weights
            N(0, 1/d), D = 1. "authors" (the class behind their "SSD" rows): a = 1, b_Δ = 0, weights
            N(0, 0.02²), D = 1.

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import dsfjax
        >>> arch = ssd(d_model=8, d_state=2, num_heads=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> system.state_shape, bool((system.A.log_a < 0).all())
        ((2, 2, 4), True)
    """
    width = d_model if d_inner is None else d_inner
    p = divide("ssd", width, num_heads, "d_inner")
    divide("ssd", num_heads, num_groups, "num_heads")

    def init_params(key: Array) -> Params:
        keys = jax.random.split(key, 6)
        a = jax.random.uniform(keys[5], (num_heads,), minval=1.0, maxval=16.0)
        return Params(
            W_v=projection(keys[0], (num_heads, p, d_model), init),
            W_b=projection(keys[1], (num_groups, d_state, d_model), init),
            W_c=projection(keys[2], (num_groups, d_state, d_model), init),
            W_dt=projection(keys[3], (num_heads, d_model), init),
            bias_dt=step_bias(keys[4], (num_heads,), init),
            A_log=jnp.log(a) if init == "published" else jnp.zeros(num_heads),
            D=jnp.ones(num_heads),
        )

    def signals(params: Params, u: Array) -> Signals:
        delta = jax.nn.softplus(affine(params.W_dt, u, params.bias_dt, wide=True))
        return Signals(affine(params.W_v, u), affine(params.W_b, u), affine(params.W_c, u), delta)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return System(
            Scalar(-jnp.exp(params.A_log)[None].astype(signals.delta.dtype) * signals.delta),
            OuterInput(signals.b, signals.delta[:, :, None] if scaled_input else None),
            InnerOutput(signals.c),
            ValueSkip(params.D[None, :, None]),
            reset=reset,
            state_shape=(params.A_log.shape[0], signals.b.shape[-1], params.W_v.shape[1]),
        )

    def value_map(params: Params) -> Array:
        return params.W_v.reshape(-1, params.W_v.shape[-1])

    labels = labels_without_decay("A_log", "D")
    shared = Traits("scalar", "d · n", "yes: Δ_t", "(0, 1)", "none (Δ_t scales both A and B)")
    apart = Traits("scalar", "d · n", "no: Δ_t in A only", "(0, 1)", "none")
    traits = shared if scaled_input else apart
    return Architecture(init_params, signals, assemble, value_map, labels, traits)
