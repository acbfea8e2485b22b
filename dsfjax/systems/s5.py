r"""S5, a state space model of many inputs and outputs (Smith et al. 2022, arXiv:2208.04933)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.names import choose
from dsfjax.core import DenseInput, DenseOutput, Diagonal, System, TokenSkip
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.hippo import hippo
from dsfjax.systems.primitives import divide, weights_decay
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(glu=True)


class Params(NamedTuple):
    """Λ (n,), B (n, d) and C (d, n) in real and imaginary parts; log Δ (n,); D (d,)."""

    Lambda_re: Array
    Lambda_im: Array
    B_re: Array
    B_im: Array
    C_re: Array
    C_im: Array
    log_step: Array
    D: Array


class Signals(NamedTuple):
    """The tokens (L, d)."""

    v: Array


def s5(
    *,
    d_model: int,
    d_state: int = 32,
    num_blocks: int = 1,
    discretization: Literal["zoh", "bilinear"] = "zoh",
    conjugate_pairs: bool = True,
    clip: bool = False,
) -> Architecture:
    r"""A constant complex diagonal system from HiPPO, between dense maps.

    .. math::
       h_t = \bar Λ ⊙ h_{t-1} + \bar B u_t, \quad y_t = 2\,\mathrm{Re}(C h_t) + D ⊙ u_t, \quad
       \bar Λ = e^{Λ Δ}, \; \bar B = \frac{\bar Λ - 1}{Λ} ⊙ B,

    or bilinear, :math:`\bar Λ = (1 + ½ΔΛ)/(1 - ½ΔΛ)` and :math:`\bar B = Δ B / (1 - ½ΔΛ)`.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, complex states; each stands for a conjugate pair, of 2n in all.
        num_blocks: J, HiPPO matrices on the diagonal at the start; divides n.
        discretization: "zoh" or "bilinear".
        conjugate_pairs: Whether only one state of each pair is kept. Otherwise n is the number of
            all of them and the 2 of y is 1.
        clip: Whether Re Λ is at most −1e-4.

    Returns:
        The `Architecture`; complex state (1, n, 1). Initially Λ has the eigenvalues of J HiPPO
        matrices, Δ is log-uniform in [1e-3, 0.1]; B = V^* N and C = N V for their eigenvectors V
        and N with entries of N(0, 1/fan-in), in C with two parts; D N(0, 1).

    Example:
        >>> arch = s5(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, system.C.conjugate_pairs
        ((1, 2, 1), True)
    """
    choose("discretization of s5", discretization, ("zoh", "bilinear"))
    per_block = divide("s5", d_state, num_blocks, "d_state")
    total = 2 * per_block if conjugate_pairs else per_block
    basis = hippo(total)
    # Of each conjugate pair, the eigenvalue above the real axis.
    kept = np.arange(total)[basis.eigenvalues.imag > 0] if conjugate_pairs else np.arange(total)

    def init_params(key: Array) -> Params:
        key_b, key_re, key_im, key_dt, key_d = jax.random.split(key, 5)
        eigenvalues = np.tile(basis.eigenvalues[kept], num_blocks)
        V = jnp.asarray(basis.V[:, kept])
        size = num_blocks * total
        B = jax.random.normal(key_b, (num_blocks, total, d_model)) / math.sqrt(d_model)
        C_re, C_im = (
            jax.random.normal(k, (d_model, num_blocks, total)) / math.sqrt(size)
            for k in (key_re, key_im)
        )
        B = jnp.einsum("nk,jnd->jkd", V.conj(), B.astype(V.dtype)).reshape(d_state, d_model)
        C = jnp.einsum("djn,nk->djk", jax.lax.complex(C_re, C_im), V).reshape(d_model, d_state)
        low, high = math.log(1e-3), math.log(0.1)
        return Params(
            Lambda_re=jnp.asarray(eigenvalues.real, B.real.dtype),
            Lambda_im=jnp.asarray(eigenvalues.imag, B.real.dtype),
            B_re=B.real,
            B_im=B.imag,
            C_re=C.real,
            C_im=C.imag,
            log_step=jax.random.uniform(key_dt, (d_state,), minval=low, maxval=high),
            D=jax.random.normal(key_d, (d_model,)),
        )

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        real = jnp.minimum(params.Lambda_re, -1e-4) if clip else params.Lambda_re
        eigenvalue = jax.lax.complex(real, params.Lambda_im)
        step = jnp.exp(params.log_step)
        log_a, factor = discretized(eigenvalue, step, discretization)
        B = jax.lax.complex(params.B_re, params.B_im) * factor[:, None]
        return System(
            Diagonal(log_a[None, None, :, None]),
            DenseInput(B[None]),
            DenseOutput(jax.lax.complex(params.C_re, params.C_im)[None], conjugate_pairs),
            TokenSkip(params.D[None]),
            reset=reset,
            state_shape=(1, d_state, 1),
        )

    structure = "diagonal, per state, complex, constant"
    bounds = "(0, 1)" if clip else "(0, 1) at the start"
    traits = Traits(structure, "n, complex", "yes: Λ, Δ", bounds, "none")
    return Architecture(
        init_params, lambda params, u: Signals(u), assemble, labels=weights_decay, traits=traits
    )


def discretized(eigenvalue: Array, step: Array, how: str) -> tuple[Array, Array]:
    """Log of the decay over a step Δ, and the factor of B, of ḣ = Λ h + B u.

    Args:
        eigenvalue: Λ, complex.
        step: Δ, real, of a shape that broadcasts.
        how: "zoh" (u constant over the step) or "bilinear".
    """
    step = step.astype(eigenvalue.dtype)
    scaled = eigenvalue * step
    if how == "zoh":
        return scaled, jnp.expm1(scaled) / eigenvalue
    half = scaled / 2
    return jnp.log((1 + half) / (1 - half)), step / (1 - half)
