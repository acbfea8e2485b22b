r"""S4, the structured state space model (Gu et al. 2021, arXiv:2111.00396)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core import DiagonalPlusLowRank, InnerOutput, OuterInput, System, ValueSkip
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.hippo import hippo
from dsfjax.systems.primitives import weights_decay
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(glu=True)


class Params(NamedTuple):
    """Λ, P, B and C (H, n) in real and imaginary parts; log Δ (H,); D (H,)."""

    Lambda_re: Array
    Lambda_im: Array
    P_re: Array
    P_im: Array
    B_re: Array
    B_im: Array
    C_re: Array
    C_im: Array
    log_step: Array
    D: Array


class Signals(NamedTuple):
    """The tokens, as values (L, H, 1)."""

    v: Array


def s4(*, d_model: int, d_state: int = 64) -> Architecture:
    r"""A constant system for every channel, diagonal plus rank one, by the bilinear rule.

    .. math::
       \dot h = A h + B u, \quad y = \mathrm{Re}(C^\top h) + D u, \quad
       A = \mathrm{diag}(Λ) - P P^*, \quad
       h_t = (I - \tfrac{Δ}{2} A)^{-1} \left((I + \tfrac{Δ}{2} A) h_{t-1} + Δ B u_t\right) .

    The discrete transition is diagonal plus rank one as well (`bilinear`), which the published code
    only uses in its kernel.

    Args:
        d_model: d, width of tokens and outputs; H = d.
        d_state: n, complex states of a channel, both of each conjugate pair.

    Returns:
        The `Architecture`; complex state (d, n, 1). Initially A and B are those of HiPPO-LegS in
        the basis of the eigenvectors of its normal part, Δ is log-uniform in [1e-3, 0.1], C complex
        with variance 1, D = 1.

    Example:
        >>> arch = s4(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, system.A.describe()
        ((4, 2, 1), 'diagonal plus rank 1')
    """
    basis, shape = hippo(d_state), (d_model, d_state)
    P, B = (basis.V.conj().T @ x for x in (basis.P, basis.B))

    def init_params(key: Array) -> Params:
        key_dt, key_re, key_im = jax.random.split(key, 3)
        low, high = math.log(1e-3), math.log(1e-1)

        def every(x: np.ndarray) -> Array:
            return jnp.tile(jnp.asarray(x, float)[None], (d_model, 1))

        return Params(
            *(every(x) for x in (basis.eigenvalues.real, basis.eigenvalues.imag)),
            *(every(x) for x in (P.real, P.imag, B.real, B.imag)),
            *(math.sqrt(0.5) * jax.random.normal(k, shape) for k in (key_re, key_im)),
            log_step=jax.random.uniform(key_dt, (d_model,), minval=low, maxval=high),
            D=jnp.ones(d_model),
        )

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        eigenvalue = jax.lax.complex(params.Lambda_re, params.Lambda_im)
        P, B, C = (
            jax.lax.complex(re, im)
            for re, im in (
                (params.P_re, params.P_im),
                (params.B_re, params.B_im),
                (params.C_re, params.C_im),
            )
        )
        A, b = bilinear(eigenvalue, P, B, jnp.exp(params.log_step)[:, None])
        return System(
            A,
            OuterInput(b[None]),
            InnerOutput(C[None]),
            ValueSkip(params.D[None, :, None]),
            reset=reset,
            state_shape=(*shape, 1),
        )

    structure = "diagonal plus rank 1, complex, constant"
    traits = Traits(structure, "d · n, complex", "yes: Δ, A", "(0, 1) at the start", "none")

    def signals(params: Params, u: Array) -> Signals:
        return Signals(u[:, :, None])

    return Architecture(init_params, signals, assemble, labels=weights_decay, traits=traits)


def bilinear(
    eigenvalue: Array, P: Array, B: Array, step: Array
) -> tuple[DiagonalPlusLowRank, Array]:
    r"""The bilinear discretisation of ḣ = (diag Λ − P P^*) h + B u, in the same structure.

    With E = (2/Δ − Λ)^{-1}, Woodbury's identity gives

    .. math::
       (\tfrac{2}{Δ} - A)^{-1} = E - \frac{E P \, P^* E}{1 + P^* E P}, \qquad
       \bar A = \tfrac{4}{Δ} (\tfrac{2}{Δ} - A)^{-1} - I, \qquad
       \bar B = 2 (\tfrac{2}{Δ} - A)^{-1} B .

    Args:
        eigenvalue: Λ (H, n), complex.
        P: (H, n), complex.
        B: (H, n), complex.
        step: Δ (H, 1).

    Returns:
        The transition of one constant step, and B̄ (H, n).
    """
    step = step.astype(eigenvalue.dtype)
    E = 1 / (2 / step - eigenvalue)
    left, right = E * P, P.conj() * E
    scale = 1 / (1 + (P.conj() * left).sum(axis=-1, keepdims=True))
    b = 2 * (E * B - left * scale * (right * B).sum(axis=-1, keepdims=True))
    diagonal = (2 / step + eigenvalue) * E  # 4E/Δ − 1 without its cancellation
    w, z = (x[None, :, :, None] for x in ((4 / step) * scale * left, right))
    return DiagonalPlusLowRank(jnp.log(diagonal)[None], w, z), b
