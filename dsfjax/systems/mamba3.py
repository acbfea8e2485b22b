r"""Mamba-3 (arXiv:2603.15569): a complex state, and values that enter by the trapezoidal rule."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import InnerOutput, OuterInput, System, Transition, ValueSkip, pytree
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.norms import rms_norm
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, step_bias, weights_decay
from dsfjax.systems.projections import maps, pairs, value_map
from dsfjax.systems.surrounding import Surrounding

RATE_FLOOR = 1e-4
PRACTICE = Surrounding(gate="silu")


@pytree
class Trapezoid(Transition):
    r"""The transition of [S, P], a state and what was written in the step before.

    .. math:: S_t = a_t ⊙ (S_{t-1} + β_t P_{t-1}) + …, \qquad P_t = 0 + … .

    Attributes:
        log_a: log a_t (T, H, n), complex.
        beta: β_t (T, H).
    """

    log_a: Array
    beta: Array

    def matrix(self) -> Array:
        """A_t of every step and head, (T, H, 2n, 2n)."""
        a = jnp.exp(self.log_a)
        eye = jnp.eye(a.shape[-1], dtype=a.dtype)[None, None]
        top = a[..., None] * eye
        late = self.beta[:, :, None, None].astype(a.dtype) * top
        upper = jnp.concatenate([top, late], axis=-1)
        return jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-2)

    def apply(self, h: Array, precision: str = "highest") -> Array:
        """A_t h_t in O(n p) per head and step."""
        S, P = jnp.split(h, 2, axis=-2)
        S = S + self.beta[:, :, None, None].astype(h.dtype) * P
        S = jnp.exp(self.log_a)[..., None].astype(h.dtype) * S
        return jnp.concatenate([S, jnp.zeros_like(S)], axis=-2)


class Params(NamedTuple):
    """W_v (H, p, d); W_b, W_c (2n, d); W_dt, W_a, W_trap (H, d); W_angle (r, d).

    bias_b, bias_c (H, 2n); norm_b, norm_c (2n,); bias_dt, D (H,).
    """

    W_v: Array
    W_b: Array
    W_c: Array
    W_dt: Array
    W_a: Array
    W_trap: Array
    W_angle: Array
    bias_b: Array
    bias_c: Array
    norm_b: Array
    norm_c: Array
    bias_dt: Array
    D: Array


class Signals(NamedTuple):
    """v (L, H, p); b, c (L, H, n) complex; Δ, rate and λ (L, H); angle (L, r)."""

    v: Array
    b: Array
    c: Array
    delta: Array
    rate: Array
    trap: Array
    angle: Array


def mamba3(
    *,
    d_model: int,
    d_state: int = 32,
    num_heads: int = 1,
    d_inner: int | None = None,
    rope_fraction: float = 0.5,
    init: Init = "published",
) -> Architecture:
    r"""A state of complex numbers that turns and decays, driven by the tokens t and t − 1.

    .. math::
       h_t = a_t ⊙ (h_{t-1} + (1 - λ_t) Δ_t b_{t-1} ⊗ v_{t-1}) + λ_t Δ_t b_t ⊗ v_t, \quad
       y_t = \mathrm{Re}(c_t^* h_t) + D v_t, \quad
       \log a_t = -Δ_t α_t - i Δ_t θ_t,

    with Δ_t = softplus(w_Δ u_t + b_Δ), α_t = max(softplus(w_α u_t), 1e-4), λ_t = σ(w_λ u_t) per
    head and θ_t = π tanh(W_θ u_t) for the first r states, 0 for the others; b_t and c_t are linear
    maps of the token, of root mean square 1 and with biases per head. A complex state that turns by
    −Δθ is what the published code computes by turning q and k by the sum of all angles. The state
    holds h_t and b_t ⊗ v_t (`Trapezoid`).

    Args:
        d_model: d, width of tokens.
        d_state: n, complex states per head; b and c have 2n features.
        num_heads: H, divides d_inner.
        d_inner: Width of values and outputs, by default d; 2d in practice.
        rope_fraction: r/n, the part of the states that turn, in (0, 1], 1 state at least.
        init: "published": softplus(b_Δ) log-uniform in [1e-3, 0.1], biases and norms of b and c 1,
            D = 1, weights N(0, 1/d); "authors": b_Δ = 0, weights N(0, 0.02²).

    Returns:
        The `Architecture`; complex state (H, 2n, p).

    Example:
        >>> arch = mamba3(d_model=8, d_state=2)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 4, 8)
    """
    p, n = divide("mamba3", d_inner or d_model, num_heads, "d_inner"), d_state
    if not 0 < rope_fraction <= 1:
        raise ValueError(f"mamba3: expected a rope_fraction in (0, 1], got {rope_fraction}.")
    turning = max(int(n * rope_fraction), 1)

    def init_params(key: Array) -> Params:
        key, key_dt = jax.random.split(key)
        gates = dict.fromkeys(("W_dt", "W_a", "W_trap"), (num_heads, d_model))
        features, vectors = jnp.ones((num_heads, 2 * n)), (2 * n, d_model)
        return Params(
            **maps(key, init, W_v=(num_heads, p, d_model), W_b=vectors, W_c=vectors, **gates),
            W_angle=maps(jax.random.fold_in(key, 1), init, W=(turning, d_model))["W"],
            bias_b=features,
            bias_c=features,
            norm_b=features[0],
            norm_c=features[0],
            bias_dt=step_bias(key_dt, (num_heads,), init),
            D=jnp.ones(num_heads),
        )

    def signals(params: Params, u: Array) -> Signals:
        def vectors(W: Array, norm: Array, bias: Array) -> Array:
            x = rms_norm(affine(W, u, wide=True), norm, 1e-5)
            x = x[:, None] + bias[None].astype(x.dtype)
            return pairs(x)

        delta = jax.nn.softplus(affine(params.W_dt, u, params.bias_dt, wide=True))
        return Signals(
            affine(params.W_v, u),
            vectors(params.W_b, params.norm_b, params.bias_b),
            vectors(params.W_c, params.norm_c, params.bias_c),
            delta,
            jnp.maximum(jax.nn.softplus(affine(params.W_a, u, wide=True)), RATE_FLOOR),
            jax.nn.sigmoid(affine(params.W_trap, u, wide=True)),
            math.pi * jnp.tanh(affine(params.W_angle, u, wide=True)),
        )

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        delta, b, c = signals.delta, signals.b, signals.c
        decay = jnp.broadcast_to((-delta * signals.rate)[:, :, None], b.shape)
        angle = jnp.pad(signals.angle, ((0, 0), (0, n - turning)))
        log_a = jax.lax.complex(decay, -delta[:, :, None] * angle[:, None, :])
        now = (signals.trap * delta)[:, :, None].astype(b.dtype) * b
        return System(
            Trapezoid(log_a, (1 - signals.trap) * delta),
            OuterInput(jnp.concatenate([now, b], axis=-1)),
            InnerOutput(jnp.concatenate([c.conj(), jnp.zeros_like(c)], axis=-1)),
            ValueSkip(params.D[None, :, None].astype(state_dtype(delta.dtype))),
            reset=reset,
            state_shape=(num_heads, 2 * n, p),
        )

    traits = Traits("trapezoid, complex", "d · 2n, complex", "yes: Δ_t", "[0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
