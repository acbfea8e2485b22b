r"""S4D, the diagonal S4 (Gu et al. 2022, arXiv:2206.11893)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.names import choose
from dsfjax.core import Diagonal, InnerOutput, OuterInput, System, ValueSkip
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import weights_decay
from dsfjax.systems.s5 import discretized
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(glu=True)


class Params(NamedTuple):
    """log Δ (H,); ρ, ω, and the two parts of C, (H, n); D (H,)."""

    log_dt: Array
    log_rate: Array
    frequency: Array
    c_re: Array
    c_im: Array
    D: Array


class Signals(NamedTuple):
    """The tokens, as values (L, H, 1)."""

    v: Array


def s4d(
    *,
    d_model: int,
    d_state: int = 16,
    spectrum: Literal["lin", "inv"] = "lin",
    discretization: Literal["zoh", "bilinear"] = "zoh",
) -> Architecture:
    r"""A constant complex diagonal system for every channel.

    .. math::
       h_t = e^{ΔA} ⊙ h_{t-1} + \frac{e^{ΔA} - 1}{A} u_t, \quad
       y_t = 2\,\mathrm{Re}(C^\top h_t) + D u_t, \quad A = -e^{ρ} + iω .

    Args:
        d_model: d, width of tokens and outputs; H = d.
        d_state: n, complex states of a channel, one of each conjugate pair.
        spectrum: ω at the start: "lin", πj, or "inv", (2n/π)(2n/(2j + 1) − 1), j = 0 … n − 1.
        discretization: "zoh", as above, or "bilinear".

    Returns:
        The `Architecture`; complex state (d, n, 1). Initially e^ρ = ½, Δ is log-uniform in
        [1e-3, 0.1], C complex with variance 1, D = 1.

    Example:
        >>> arch = s4d(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, system.length
        ((4, 2, 1), 3)
    """
    choose("spectrum of s4d", spectrum, ("lin", "inv"))
    choose("discretization of s4d", discretization, ("zoh", "bilinear"))
    shape = (d_model, d_state)

    def init_params(key: Array) -> Params:
        key_dt, key_re, key_im = jax.random.split(key, 3)
        low, high, size = math.log(1e-3), math.log(1e-1), 2 * d_state
        j = jnp.arange(d_state, dtype=float)
        frequency = math.pi * j
        if spectrum == "inv":
            frequency = (size / math.pi) * (size / (2 * j + 1) - 1)
        return Params(
            log_dt=jax.random.uniform(key_dt, (d_model,), minval=low, maxval=high),
            log_rate=jnp.full(shape, math.log(0.5)),
            frequency=jnp.tile(frequency[None], (d_model, 1)),
            c_re=jax.random.normal(key_re, shape) * math.sqrt(0.5),
            c_im=jax.random.normal(key_im, shape) * math.sqrt(0.5),
            D=jnp.ones(d_model),
        )

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        A = jax.lax.complex(-jnp.exp(params.log_rate), params.frequency)
        log_a, b = discretized(A, jnp.exp(params.log_dt)[:, None], discretization)
        return System(
            Diagonal(log_a[None, :, :, None]),
            OuterInput(b[None]),
            InnerOutput(jax.lax.complex(params.c_re, params.c_im)[None], conjugate_pairs=True),
            ValueSkip(params.D[None, :, None]),
            reset=reset,
            state_shape=(*shape, 1),
        )

    structure = "diagonal, per state, complex, constant"
    traits = Traits(structure, "d · n, complex", "yes: Δ, A", "(0, 1)", "none")

    def signals(params: Params, u: Array) -> Signals:
        return Signals(u[:, :, None])

    return Architecture(init_params, signals, assemble, labels=weights_decay, traits=traits)
