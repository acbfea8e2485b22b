r"""The linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import DenseInput, DenseOutput, Diagonal, System, TokenSkip
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import weights_decay
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(glu=True)


class Params(NamedTuple):
    """log ν, log θ and log γ (n,); B (n, d) and C (d, n) in real and imaginary parts; D (d,)."""

    nu_log: Array
    theta_log: Array
    gamma_log: Array
    B_re: Array
    B_im: Array
    C_re: Array
    C_im: Array
    D: Array


class Signals(NamedTuple):
    """The tokens (L, d)."""

    v: Array


def lru(
    *,
    d_model: int,
    d_state: int = 64,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
) -> Architecture:
    r"""A constant complex diagonal recurrence between dense maps.

    .. math::
       h_t = λ ⊙ h_{t-1} + γ ⊙ B u_t, \quad y_t = \mathrm{Re}(C h_t) + D ⊙ u_t, \quad
       λ = e^{-e^{\log ν} + i e^{\log θ}} .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, complex states.
        r_min: Smallest |λ| at the start, from 0.
        r_max: Largest |λ| at the start, up to 1.
        max_phase: Largest phase of λ at the start, above 0.

    Returns:
        The `Architecture`; complex state (1, n, 1). Initially λ is uniform in the ring between the
        radii, γ = √(1 − |λ|²), B complex with parts N(0, 1/2d), C with parts N(0, 1/n), D N(0, 1).

    Example:
        >>> arch = lru(d_model=4, d_state=2, r_min=0.9)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, bool((jnp.exp(system.A.log_a.real) >= 0.9).all())
        ((1, 2, 1), True)
    """
    if not 0 <= r_min <= r_max <= 1:
        raise ValueError(
            f"lru: expected 0 <= r_min <= r_max <= 1, got r_min = {r_min} and r_max = {r_max}."
        )
    if not 0 < max_phase < math.inf:
        raise ValueError(f"lru: expected max_phase > 0, in radians, got {max_phase}; 2π is usual.")

    def init_params(key: Array) -> Params:
        keys = jax.random.split(key, 7)
        squared = jax.random.uniform(
            keys[0], (d_state,), minval=max(r_min, 1e-3) ** 2, maxval=r_max**2
        )
        # Neither a decay of exactly 1 nor a phase of exactly 0 has a logarithm of its logarithm.
        squared = jnp.minimum(squared, 1 - 1e-6)
        phase = max_phase * jax.random.uniform(keys[1], (d_state,), minval=1e-6)
        wide, tall = (d_state, d_model), (d_model, d_state)
        return Params(
            nu_log=jnp.log(-0.5 * jnp.log(squared)),
            theta_log=jnp.log(phase),
            gamma_log=0.5 * jnp.log1p(-squared),
            B_re=jax.random.normal(keys[2], wide) / math.sqrt(2 * d_model),
            B_im=jax.random.normal(keys[3], wide) / math.sqrt(2 * d_model),
            C_re=jax.random.normal(keys[4], tall) / math.sqrt(d_state),
            C_im=jax.random.normal(keys[5], tall) / math.sqrt(d_state),
            D=jax.random.normal(keys[6], (d_model,)),
        )

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        log_a = jax.lax.complex(-jnp.exp(params.nu_log), jnp.exp(params.theta_log))
        gamma = jnp.exp(params.gamma_log)[:, None]
        B = jax.lax.complex(gamma * params.B_re, gamma * params.B_im)
        return System(
            Diagonal(log_a[None, None, :, None]),
            DenseInput(B[None]),
            DenseOutput(jax.lax.complex(params.C_re, params.C_im)[None]),
            TokenSkip(params.D[None]),
            reset=reset,
            state_shape=(1, d_state, 1),
        )

    traits = Traits(
        "diagonal, per state, complex, constant", "n, complex", "yes: γ(λ)", "(0, 1)", "none"
    )
    return Architecture(
        init_params, lambda params, u: Signals(u), assemble, labels=weights_decay, traits=traits
    )
