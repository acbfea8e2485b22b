r"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762), exact and by finite systems."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax import Array
from jaxtyping import Float

from dsfjax.core import KernelSystem, System, truncate_kernel
from dsfjax.systems import projections, softmax_heads
from dsfjax.systems.architecture import Architecture, Place, Traits
from dsfjax.systems.primitives import Init, labels_without_decay


class Params(NamedTuple):
    """W_q (H, m, d), W_k (G, m, d), W_v (G, p, d); biases, and weights of norms (m,), or None."""

    W_q: Array
    bias_q: Array | None
    W_k: Array
    bias_k: Array | None
    W_v: Array
    bias_v: Array | None
    q_norm: Array | None
    k_norm: Array | None


class Signals(NamedTuple):
    """q (L, H, m), k (L, G, m) and v (L, G, p)."""

    q: Array
    k: Array
    v: Array


def softmax_attention(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    num_groups: int | None = None,
    rope_base: float | None = None,
    qk_norm: bool = False,
    soft_cap: float | None = None,
    bias: bool = False,
    init: Init = "published",
) -> Architecture:
    r"""Causal softmax attention.

    .. math::
       y_t = \sum_{s \le t} \frac{e^{q_t^\top k_s / \sqrt{m}}}{η_t} v_s, \qquad
       η_t = \sum_{s \le t} e^{q_t^\top k_s / \sqrt{m}} .

    The features of the exponential kernel are infinitely many, so `assemble` gives a
    `KernelSystem`, whose state is the key–value cache; `taylor_system` is its finite approximation.
    With ``rope_base`` and ``num_groups`` it is the attention of Llama, with ``qk_norm`` as well
    that of Qwen3; `dsfjax.systems.softmax_heads` has the equations.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: m, features of q and k per head.
        num_heads: H, divides d_model.
        num_groups: G, heads of k and v, divides H; by default H.
        rope_base: θ of rotary positions θ^(−2i/m), counted from the start of each document; m is
            then even. None for no positions.
        qk_norm: Whether q and k have an RMS norm per head, before they are rotated.
        soft_cap: c: scores are c tanh(x/c) (Gemma 2, arXiv:2408.00118); None for x.
        bias: Whether q, k, v have biases.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`, with a `KernelSystem` in place of a System. With ``rope_base`` the place
        of the next step is carried next to its cache.

    Example:
        >>> import jax, jax.numpy as jnp, dsfjax
        >>> arch = softmax_attention(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> [round(weight, 3) for weight in dsfjax.materialize(system)[0, 2].tolist()]
        [0.333, 0.333, 0.333]

        That of Qwen3:

        >>> arch = softmax_attention(
        ...     d_model=8, d_state=4, num_heads=4, num_groups=2, rope_base=1e6, qk_norm=True
        ... )
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).k.shape
        (3, 2, 4)
    """
    projections.check_heads("softmax_attention", d_model, num_heads)
    groups = softmax_heads.groups_of("softmax_attention", num_heads, num_groups)
    angles = softmax_heads.frequencies("softmax_attention", d_state, rope_base)

    def init_params(key: Array) -> Params:
        weights = projections.init_qkv(
            key,
            d_model=d_model,
            d_state=d_state,
            num_heads=num_heads,
            num_groups=groups,
            bias=bias,
            init=init,
        )
        return Params(**weights, **softmax_heads.norms(d_state, qk_norm))

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*projections.project_qkv(params, u))

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Place | None = None
    ) -> tuple[KernelSystem, Place | None]:
        q, k, past = softmax_heads.placed(
            params, signals.q, signals.k, angles, reset=reset, past=past
        )
        q, p = q / math.sqrt(d_state), params.W_v.shape[1]
        shared = None if groups == num_heads else groups
        system = KernelSystem(
            q, k, reset=reset, num_channels=p, soft_cap=soft_cap, value_heads=shared
        )
        return system, past

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> KernelSystem:
        return carry(params, signals, reset=reset)[0]

    traits = Traits(
        "kernel (scalar, n → ∞)",
        "grows: t · (m + d)",
        "yes: W_K, W_V and η",
        "unbounded (η reads q_t)",
        "recurrent, Σ exp(qᵀk)",
    )
    labels = labels_without_decay(*softmax_heads.NORMS)
    return Architecture(
        *(init_params, signals, assemble, projections.value_map, labels, traits),
        past=softmax_heads.start if angles else None,
        carry=carry,
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
        params: Of `softmax_attention`, without value bias. Of one with rotary positions, give its
            System to `dsfjax.truncate_kernel` instead.
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
    groups = params.W_k.shape[0]
    arch = softmax_attention(d_model=d_model, d_state=m, num_heads=heads, num_groups=groups)
    kernel = arch.system(params, u, reset=reset)
    assert isinstance(kernel, KernelSystem)
    return truncate_kernel(kernel, order, symmetric=symmetric)
