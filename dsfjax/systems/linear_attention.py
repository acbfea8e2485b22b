r"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236)."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array

from dsfjax.core import SummedNormalizer, System, separable_system
from dsfjax.systems import projections
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, elu1, labels_without_decay


class Params(NamedTuple):
    """W_q, W_k (H, n, d); W_v (H, p, d); biases (H, n), (H, n), (H, p) or None."""

    W_q: Array
    bias_q: Array | None
    W_k: Array
    bias_k: Array | None
    W_v: Array
    bias_v: Array | None


class Signals(NamedTuple):
    """q, k (L, H, n) and v (L, H, p)."""

    q: Array
    k: Array
    v: Array


def linear_attention(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    bias: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""Causal linear attention with φ = ψ = elu + 1.

    .. math::
       y_t = \frac{\sum_{s \le t} φ(q_t)^\top φ(k_s) \, v_s}{\sum_{s \le t} φ(q_t)^\top φ(k_s)},
       \qquad q_t = W_Q u_t, \; k_t = W_K u_t, \; v_t = W_V u_t .

    In the paper's form :math:`Λ_t = (η_{t-1}/η_t) I`, :math:`B_t = (φ(k_t) ⊗ I) W_V / η_t`,
    :math:`C_t = φ(q_t)^\top ⊗ I`, :math:`η_t = φ(q_t)^\top \sum_{s \le t} φ(k_s)`; here Λ = I with
    the normaliser at read-out, which is the same Φ (Lemma 1). No epsilon, no 1/√n.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head: features of q and k.
        num_heads: H, divides d_model; p = d/H.
        bias: Whether q, k, v have biases (as in the authors' code).
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import jax, jax.numpy as jnp, dsfjax
        >>> arch = linear_attention(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> [round(weight, 3) for weight in dsfjax.materialize(system)[0, 2].tolist()]
        [0.333, 0.333, 0.333]
    """
    projections.check_heads("linear_attention", d_model, num_heads)

    def init_params(key: Array) -> Params:
        return Params(
            **projections.init_qkv(
                key, d_model=d_model, d_state=d_state, num_heads=num_heads, bias=bias, init=init
            )
        )

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*projections.project_qkv(params, u))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        phi, psi = elu1(signals.q), elu1(signals.k)
        return separable_system(
            phi,
            psi,
            SummedNormalizer(),
            num_channels=params.W_v.shape[1],
            reset=reset,
        )

    traits = Traits(
        "scalar",
        "d · n",
        "yes: W_K, W_V and η",
        "unbounded (η reads q_t)",
        "recurrent, Σ φ(q)ᵀφ(k)",
    )
    return Architecture(
        init_params, signals, assemble, projections.value_map, labels_without_decay(), traits
    )
