r"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762), exact and by finite systems."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from dsfjax.core import KernelSystem, SummedNormalizer, System
from dsfjax.systems import attention
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.linear_attention import Params, Signals
from dsfjax.systems.primitives import Init, labels_without_decay


def softmax_attention(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    bias: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""Causal softmax attention.

    .. math::
       y_t = \sum_{s \le t} \frac{e^{q_t^\top k_s / \sqrt{m}}}{η_t} v_s, \qquad
       η_t = \sum_{s \le t} e^{q_t^\top k_s / \sqrt{m}} .

    The features of the exponential kernel are infinitely many, so `assemble` gives a
    `KernelSystem`, whose state is the key–value cache; `taylor_system` is its finite approximation.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: m, features of q and k per head.
        num_heads: H, divides d_model.
        bias: Whether q, k, v have biases.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`, with a `KernelSystem` in place of a System.

    Example:
        >>> import jax, dsfjax
        >>> arch = softmax_attention(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> [round(weight, 3) for weight in dsfjax.materialize(system)[0, 2].tolist()]
        [0.333, 0.333, 0.333]
    """
    attention.check_heads("softmax_attention", d_model, num_heads)

    def init_params(key: Array) -> Params:
        return Params(
            **attention.init_qkv(
                key, d_model=d_model, d_state=d_state, num_heads=num_heads, bias=bias, init=init
            )
        )

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*attention.project_qkv(params, u))

    def assemble(
        params: Params,
        signals: Signals,
        *,
        reset: Array | None = None,
        token_is_value: bool = False,
    ) -> KernelSystem:
        W = attention.value_map(params, token_is_value=token_is_value)
        q = signals.q / math.sqrt(signals.q.shape[-1])
        return KernelSystem(q, signals.k, W, reset, num_channels=params.W_v.shape[1])

    traits = Traits(
        "kernel (scalar, n → ∞)",
        "grows: t · (m + d)",
        "yes: W_K, W_V and η",
        "unbounded (η reads q_t)",
        "recurrent, Σ exp(qᵀk)",
    )
    return Architecture(init_params, signals, assemble, labels_without_decay(), traits)


def taylor_system(
    params: Params,
    u: Float[Array, "L d"],
    order: int,
    *,
    symmetric: bool = True,
    reset: Array | None = None,
) -> System:
    r"""A finite system that approximates softmax attention to a Taylor order.

    .. math:: e^{x} ≈ \sum_{r=0}^{P} x^r / r!, \qquad x = q^\top k / \sqrt{m},

    as an inner product of features, with its own truncated normaliser
    :math:`η_t = φ_P(q_t)^\top \sum_{s \le t} φ_P(k_s)`.

    Args:
        params: Of `softmax_attention`, without value bias.
        u: Tokens (L, d).
        order: P, even: odd polynomials take negative values, and η could be 0.
        symmetric: Merge equal monomials: n = binom(m + P, P) instead of Σ_r m^r, same kernel.
        reset: Boolean (L,) or None.

    Returns:
        A `System` with n features per head and a `SummedNormalizer`.

    Raises:
        ValueError: If the order is odd or negative.

    Numerics:
        For |x| ≤ R the exponential errs by at most ε = e^R R^{P+1}/(P+1)!, the output by at most
        2 e^R ε max‖v‖.

    References:
        Sieber et al. (2024), arXiv:2405.15731, section on softmax attention.

    Example:
        >>> import jax
        >>> arch = softmax_attention(d_model=4, d_state=3)
        >>> taylor_system(arch.init(jax.random.key(0)), jnp.ones((5, 4)), 2).state_shape
        (1, 10, 4)
    """
    if order < 0 or order % 2:
        raise ValueError(
            f"taylor_system: expected an even order, got {order}. Odd truncations of the "
            "exponential take negative values, so η could vanish; use "
            f"{max(order, 0) + max(order, 0) % 2}."
        )
    q, k, _ = attention.project_qkv(params, u)
    phi, psi = (taylor_features(x, order, symmetric=symmetric) for x in (q, k))
    return attention.separable_attention(
        params, phi, psi, SummedNormalizer(), reset=reset, token_is_value=False
    )


def taylor_features(x: Array, order: int, *, symmetric: bool = True) -> Array:
    r"""φ with φ(q)ᵀφ(k) = Σ_{r ≤ P} (qᵀk/√m)^r / r!, from (…, m) to (…, n).

    Args:
        x: Queries or keys, (…, m).
        order: P.
        symmetric: Merge equal monomials, weighted by the root of their multiplicity.

    Returns:
        Features (…, n), n = binom(m + P, P) or Σ_{r ≤ P} m^r.

    Example:
        >>> q, k = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
        >>> x = float(q @ k) / 2**0.5
        >>> features = [taylor_features(z, 2) for z in (q, k)]
        >>> round(1 + x + x**2 / 2, 4), round(float(features[0] @ features[1]), 4)
        (0.5018, 0.5018)
    """
    m = x.shape[-1]
    x = x / m**0.25
    features = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
    for r in range(1, order + 1):
        monomials = (
            list(itertools.combinations_with_replacement(range(m), r))
            if symmetric
            else list(itertools.product(range(m), repeat=r))
        )
        # A merged monomial stands for r!/Π(multiplicities!) equal ones; each carries 1/r!.
        weights = [
            1 / math.prod(math.factorial(k) for k in Counter(i).values())
            if symmetric
            else 1 / math.factorial(r)
            for i in monomials
        ]
        powers = jnp.prod(x[..., np.array(monomials)], axis=-1)
        scale = jnp.asarray(np.sqrt(weights), x.dtype)
        features.append(powers * scale.reshape((1,) * (x.ndim - 1) + (-1,)))
    return jnp.concatenate(features, axis=-1)
