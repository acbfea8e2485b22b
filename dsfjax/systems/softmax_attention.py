r"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762), exact and by finite systems."""

from __future__ import annotations

import math

from jax import Array
from jaxtyping import Float

from dsfjax.core import KernelSystem, System, truncate_kernel
from dsfjax.systems import projections
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
        >>> import jax, jax.numpy as jnp, dsfjax
        >>> arch = softmax_attention(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> [round(weight, 3) for weight in dsfjax.materialize(system)[0, 2].tolist()]
        [0.333, 0.333, 0.333]
    """
    projections.check_heads("softmax_attention", d_model, num_heads)

    def init_params(key: Array) -> Params:
        return Params(
            **projections.init_qkv(
                key, d_model=d_model, d_state=d_state, num_heads=num_heads, bias=bias, init=init
            )
        )

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*projections.project_qkv(params, u))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> KernelSystem:
        q = signals.q / math.sqrt(signals.q.shape[-1])
        return KernelSystem(q, signals.k, reset=reset, num_channels=params.W_v.shape[1])

    traits = Traits(
        "kernel (scalar, n → ∞)",
        "grows: t · (m + d)",
        "yes: W_K, W_V and η",
        "unbounded (η reads q_t)",
        "recurrent, Σ exp(qᵀk)",
    )
    return Architecture(
        init_params, signals, assemble, projections.value_map, labels_without_decay(), traits
    )


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
        >>> import jax, jax.numpy as jnp
        >>> arch = softmax_attention(d_model=4, d_state=3)
        >>> taylor_system(arch.init(jax.random.key(0)), jnp.ones((5, 4)), 2).state_shape
        (1, 10, 4)
    """
    heads, m, d_model = params.W_q.shape
    arch = softmax_attention(d_model=d_model, d_state=m, num_heads=heads)
    kernel = arch.system(params, u, reset=reset)
    assert isinstance(kernel, KernelSystem)
    return truncate_kernel(kernel, order, symmetric=symmetric)
