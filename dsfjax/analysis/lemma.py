r"""Lemma 1, checked on numbers: separable attention is a linear time-varying system."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax.analysis.normalizer import normalized
from dsfjax.analysis.rows import map_rows, scores_of_step
from dsfjax.core import GivenNormalizer, SummedNormalizer, separable_system
from dsfjax.engines import scan


class Lemma1(NamedTuple):
    """Attention as a sum over all pairs, and how far its systems are from it.

    Attributes:
        attention: The quadratic sum (L, H, p).
        unnormalized: Largest deviation of the system Λ = I, η at read-out, over the largest output.
        paper: The same for the paper's form, Λ_t = (η_{t−1}/η_t) I, B_t/η_t.
    """

    attention: Float[Array, "L H p"]
    unnormalized: Float[Array, ""]
    paper: Float[Array, ""]


def lemma_1(
    phi: Float[Array, "L H n"],
    psi: Float[Array, "L G n"],
    v: Float[Array, "L H p"],
    log_eta: Float[Array, "L H"] | None = None,
    *,
    block: int = 16,
) -> Lemma1:
    r"""Compare separable attention, given as (φ, ψ, η), with the systems that Lemma 1 says it is.

    .. math:: y_t = \frac{1}{η_t} \sum_{s \le t} φ(q_t)^\top ψ(k_s)\, v_s \quad ⇔ \quad
       h_t = \frac{η_{t-1}}{η_t} h_{t-1} + \frac{1}{η_t} ψ(k_t) ⊗ v_t, \; y_t = φ(q_t)^\top h_t .

    Args:
        phi: φ(q_t).
        psi: ψ(k_s), with G groups of heads.
        v: Values.
        log_eta: log η_t of any positive normaliser; None for the sum of the weights,
            :math:`η_t = φ(q_t)^\top \sum_{s \le t} ψ(k_s)`.
        block: Rows of weights held at a time.

    Returns:
        A `Lemma1`; both deviations are of the size of rounding.

    Raises:
        ValueError: If shapes do not fit together.

    Numerics:
        O(block · L H) memory, O(L² H (n + p)) work for the sum. The paper's form multiplies by 1/η:
        |log η| must stay below 700 (float64) or 80 (float32).

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 1.

    Example:
        >>> x = jnp.exp(jnp.arange(6.0).reshape(3, 1, 2) / 6)
        >>> found = lemma_1(x, x, x)
        >>> bool(found.unnormalized < 1e-6), bool(found.paper < 1e-6)
        (True, True)
    """
    steps = jnp.arange(v.shape[0])
    eta = SummedNormalizer() if log_eta is None else GivenNormalizer(log_eta)
    system = separable_system(phi, psi, eta, num_channels=v.shape[2])

    def row(t: Array) -> Array:
        weights = jnp.where((steps <= t)[:, None], scores_of_step(phi[t], psi), 0)
        total = weights.sum(axis=0) if log_eta is None else jnp.exp(log_eta[t])
        return jnp.einsum("sh,shp->hp", weights, v, precision="highest") / total[:, None]

    attention = map_rows(row, v.shape[0], block)

    def deviation(y: Array) -> Array:
        return jnp.abs(y.reshape(v.shape) - attention).max() / jnp.abs(attention).max()

    tokens = v.reshape(v.shape[0], -1)
    return Lemma1(
        attention,
        deviation(scan(system, tokens)[0]),
        deviation(scan(normalized(system), tokens)[0]),
    )
