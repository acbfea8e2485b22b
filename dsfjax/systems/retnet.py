r"""Retention, the mixer of RetNet (Sun et al. 2023, arXiv:2307.08621)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import Diagonal, InnerOutput, OuterInput, System
from dsfjax.ops import chunk_retention
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, pairs, value_map
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(head_norm="rms", gate="silu")


class Params(NamedTuple):
    """W_q, W_k (H, n, d); W_v (H, p, d)."""

    W_q: Array
    W_k: Array
    W_v: Array


class Signals(NamedTuple):
    """q, k (L, H, n) and v (L, H, p)."""

    q: Array
    k: Array
    v: Array


def retnet(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    rotary: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""Linear attention with a constant decay per head.

    .. math::
       h_t = γ_h h_{t-1} + k_t ⊗ v_t, \quad y_t = q_t^\top h_t / \sqrt{n}, \quad
       γ_h = 1 - 2^{-5-h}, \; h = 0, …, H - 1 .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        rotary: Whether features 2i and 2i + 1 turn by the angle 10000^{−2i/n} per step, as in the
            published model. That is a complex decay γ e^{−iθ} of n/2 states; n must be even.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). γ is not learnt.

    Returns:
        The `Architecture`; state (H, n, p), or complex (H, n/2, p).

    Example:
        >>> arch = retnet(d_model=8, d_state=2, num_heads=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> jnp.exp(system.A.log_a).tolist()
        [[0.96875, 0.984375]]
    """
    p = divide("retnet", d_model, num_heads, "d_model")
    if rotary:
        divide("retnet", d_state, 2, "d_state")

    def init_params(key: Array) -> Params:
        shape = (num_heads, d_state, d_model)
        return Params(**maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model)))

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*(affine(W, u) for W in (params.W_q, params.W_k, params.W_v)))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        system = chunk_retention.system(*signals, reset=reset)
        if not rotary:
            return system
        q, k, log_a = system.C.c, system.B.b, system.A.log_a
        # Turning q by tθ and k by sθ leaves the angle (s − t) θ between them.
        angle = -(10_000.0 ** (-2 * jnp.arange(d_state // 2, dtype=log_a.dtype) / d_state))
        turned = jax.lax.complex(*jnp.broadcast_arrays(log_a[:, :, None], angle[None, None]))
        return System(
            Diagonal(turned[..., None]),
            OuterInput(pairs(k)),
            # The inner product of two pairs is the real part of one times the other's conjugate.
            InnerOutput(pairs(q).conj()),
            reset=reset,
            state_shape=(num_heads, d_state // 2, p),
            length=q.shape[0],
        )

    structure = "diagonal, per state, complex, constant" if rotary else "scalar, constant"
    size = "d · n/2, complex" if rotary else "d · n"
    traits = Traits(structure, size, "no", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
