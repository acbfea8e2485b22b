r"""RWKV-7 "Goose" (Peng et al. 2025, arXiv:2503.14456)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System, ValueSkip, l2norm
from dsfjax.core.rows import inner
from dsfjax.ops import chunk_rwkv7
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, low_rank, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.surrounding import Surrounding, root_rank

DECAY_SCALE = math.exp(-0.5)
PRACTICE = Surrounding(
    token_shift=("r", "log_w", "k", "v", "a", "gate"),
    head_norm="layer",
    gate="sigmoid",
    gate_rank="root",
    gate_inside=True,
)


class Params(NamedTuple):
    """W_r, W_k (H, n, d); W_v (H, p, d); the others of a gate: low rank (ρ, d), (H, n, ρ), (H, n).

    k_k, k_a, r_k (H, n): scales of the key that erases, of the key that writes, and of the bonus.
    """

    W_r: Array
    W_k: Array
    W_v: Array
    w_down: Array
    w_up: Array
    w_bias: Array
    a_down: Array
    a_up: Array
    a_bias: Array
    k_k: Array
    k_a: Array
    r_k: Array


class Signals(NamedTuple):
    """r, k (L, H, n), v (L, H, p); log of the decay w and the rate a (L, H, n)."""

    r: Array
    k: Array
    v: Array
    log_w: Array
    a: Array


def rwkv7(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    gate_rank: int | None = None,
    init: Init = "published",
) -> Architecture:
    r"""A delta rule with a decay and a learning rate of its own for every feature.

    .. math::
       h_t = (\mathrm{diag}(w_t) - (a_t ⊙ \hat κ_t) \hat κ_t^\top) h_{t-1} + \tilde k_t ⊗ v_t, \quad
       y_t = r_t^\top h_t + (r_t ⊙ ρ)^\top \tilde k_t \, v_t,

    .. math::
       \log w_t = -e^{-1/2} σ(W_2 \tanh(W_1 u_t) + w_0), \quad a_t = σ(A_2 A_1 u_t + a_0), \quad
       \hat κ_t = \frac{k_t ⊙ ξ}{|k_t ⊙ ξ|}, \quad \tilde k_t = k_t ⊙ (1 + (a_t - 1) ⊙ α) .

    The published model adds the last term of y_t after the norm of the heads, and mixes v_t with
    that of the first layer; here the term is the skip D, and values are those of the layer. With
    ``surroundings="practice"`` heads share the weights of their norm, whose ε is 1e-5 (64e-5 in the
    published model).

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        gate_rank: Rank of the maps to w_t and a_t, by default 2.5 √d to the nearest multiple of 32,
            at least 32.
        init: "published": w_0 a ramp from −6 to 0 over the features plus 0.5 and a zigzag of 2.5
            within a head (that of the first layer), a_0 = −0.19 plus a zigzag of 0.3 and a ramp of
            0.4, ξ = 0.71 minus a ramp of 0.1, α = 1.02, ρ = −0.04; W_1 = A_1 = 0 and W_2, A_2
            N(0, 0.1²); r, k, v N(0, 1/d). "authors": r, k, v N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> arch = rwkv7(d_model=8, d_state=2, num_heads=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> bool((system.A.log_a > -0.607).all())
        True
    """
    p, n = divide("rwkv7", d_model, num_heads, "d_model"), d_state
    rank = root_rank(2.5, d_model) if gate_rank is None else gate_rank

    def init_params(key: Array) -> Params:
        key, key_w, key_a = jax.random.split(key, 3)
        shape, down, up = (num_heads, n, d_model), (rank, d_model), (num_heads, n, rank)
        count = num_heads * n
        ramp = jnp.linspace(0.0, 1.0, count).reshape(num_heads, n) if count > 1 else jnp.zeros(())
        zigzag = jnp.linspace(-1.0, 1.0, n)[None]
        ramp, zigzag = (jnp.broadcast_to(x, shape[:2]) for x in (ramp, zigzag * jnp.abs(zigzag)))
        return Params(
            **maps(key, init, W_r=shape, W_k=shape, W_v=(num_heads, p, d_model)),
            w_down=jnp.zeros(down),
            w_up=0.1 * jax.random.normal(key_w, up),
            w_bias=-6 + 6 * ramp + 0.5 + 2.5 * zigzag,
            a_down=jnp.zeros(down),
            a_up=0.1 * jax.random.normal(key_a, up),
            a_bias=-0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5),
            k_k=0.71 - 0.1 * (ramp - 0.5),
            k_a=jnp.full(shape[:2], 1.02),
            r_k=jnp.full(shape[:2], -0.04),
        )

    def signals(params: Params, u: Array) -> Signals:
        w = low_rank(params.w_down, params.w_up, u, params.w_bias, jnp.tanh)
        a = low_rank(params.a_down, params.a_up, u, params.a_bias)
        r, k, v = (affine(W, u) for W in (params.W_r, params.W_k, params.W_v))
        return Signals(r, k, v, -DECAY_SCALE * jax.nn.sigmoid(w), jax.nn.sigmoid(a))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        r, a, dtype = signals.r, signals.a, signals.a.dtype
        k = signals.k.astype(dtype)
        k_k, k_a, r_k = (x[None].astype(dtype) for x in (params.k_k, params.k_a, params.r_k))
        removed, written = l2norm(k * k_k), k * (1 + (a - 1) * k_a)
        bonus = inner(r.astype(dtype) * r_k, written)
        system = chunk_rwkv7.system(
            *(r, signals.log_w, written, signals.v, -removed, a * removed), reset=reset
        )
        return dataclasses.replace(system, D=ValueSkip(bonus))

    structure, shared = "diagonal plus rank 1", "yes: k_t, a_t"
    traits = Traits(structure, "d · n", shared, "(−1, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
