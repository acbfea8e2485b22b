r"""RWKV-4 (Peng et al. 2023, arXiv:2305.13048)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.ops.rwkv import wkv
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, weights_decay
from dsfjax.systems.projections import maps
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(token_shift=("r", "k", "v"))


class Params(NamedTuple):
    """W_r, W_k, W_v (d, d); decay w and bonus u (d,)."""

    W_r: Array
    W_k: Array
    W_v: Array
    decay: Array
    bonus: Array


class Signals(NamedTuple):
    """Output gate r before its sigmoid, log of the input gate k, and value v (L, d)."""

    r: Array
    k: Array
    v: Array


def rwkv4(*, d_model: int, init: Init = "published") -> Architecture:
    r"""A weighted mean over the past of every channel, with a bonus for the present.

    .. math::
       y_t = σ(r_t) ⊙ \frac{a_{t-1} + e^{u + k_t} ⊙ v_t}{b_{t-1} + e^{u + k_t}}, \quad
       a_t = e^{-e^w} ⊙ a_{t-1} + e^{k_t} ⊙ v_t, \quad b_t = e^{-e^w} ⊙ b_{t-1} + e^{k_t},

    with r, k, v linear maps of the token. y_t reads the state before the step. It is computed in
    coordinates that follow the running maximum of the exponents, carried next to the state.

    Args:
        d_model: d, width of tokens and outputs; every channel is a head, H = d.
        init: "published": w from −5 to 3 over the channels as (c/(d − 1))^0.7 (that of the first
            layer), u = log 0.3 plus −½, 0 or ½ in turn, weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (d, 1, 1).

    Example:
        >>> arch = rwkv4(d_model=4)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.C.before_update, system.state_shape
        (True, (4, 1, 1))
    """

    def init_params(key: Array) -> Params:
        square, c = (d_model, d_model), jnp.arange(d_model, dtype=float)
        return Params(
            **maps(key, init, W_r=square, W_k=square, W_v=square),
            decay=-5 + 8 * (c / max(d_model - 1, 1)) ** 0.7,
            bonus=math.log(0.3) + 0.5 * ((c + 1) % 3 - 1),
        )

    def signals(params: Params, u: Array) -> Signals:
        r, v = affine(params.W_r, u), affine(params.W_v, u)
        return Signals(r, affine(params.W_k, u, wide=True), v)

    def past(params: Params) -> Array:
        return jnp.full(d_model, -jnp.inf, state_dtype(params.decay.dtype))

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Array
    ) -> tuple[System, Array]:
        r, k, _ = signals
        gate = jax.nn.sigmoid(r)[:, :, None]
        system, last = wkv(params.decay, params.bonus, k, past, gate=gate, reset=reset)
        return system, last.astype(past.dtype)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        return carry(params, signals, reset=reset, past=past(params))[0]

    traits = Traits("scalar", "d", "yes: m_t, η", "unbounded (η)", "recurrent, Σ e^k")
    return Architecture(
        *(init_params, signals, assemble, lambda p: p.W_v, weights_decay, traits),
        past=past,
        carry=carry,
    )
