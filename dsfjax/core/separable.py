r"""Separable attention as a finite system (Lemma 1), and finite systems in place of a kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from dsfjax.core.diagonal import Scalar
from dsfjax.core.features import check_even_order, taylor_features
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import InnerOutput, OuterInput
from dsfjax.core.normalizers import Normalizer, SummedNormalizer
from dsfjax.core.system import System


def separable_system(
    phi: Float[Array, "L H n"],
    psi: Float[Array, "L G n"],
    eta: Normalizer | None = None,
    *,
    num_channels: int,
    W: Float[Array, "e d"] | None = None,
    reset: Bool[Array, " L"] | None = None,
) -> System:
    r"""The system of attention with weights φ(q_t)ᵀψ(k_s)/η_t, un-normalised.

    .. math:: y_t = \frac{1}{η_t} \sum_{s \le t} φ(q_t)^\top ψ(k_s) \, W u_s

    is the system Λ = I, b = ψ(k), c = φ(q) with η at read-out, and by the change of coordinates
    T_t = 1/η_t the paper's Λ_t = (η_{t−1}/η_t) I.

    Args:
        phi: φ(q_t), (L, H, n).
        psi: ψ(k_s), (L, G, n) with G groups of heads, G divides H.
        eta: Normaliser; `SummedNormalizer` makes the weights of a step sum to 1.
        num_channels: p, the value channels per head.
        W: Value map (H·p, d); None if the token is the value.
        reset: Boolean (L,) or None.

    Returns:
        A `System` with state (H, n, p) and a `Scalar` transition of 1.

    Raises:
        ValueError: If shapes do not fit together.

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 1.

    Example:
        >>> import dsfjax
        >>> ones = jnp.ones((3, 1, 2))
        >>> s = separable_system(ones, ones, dsfjax.SummedNormalizer(), num_channels=4)
        >>> [round(weight, 3) for weight in dsfjax.materialize(s)[0, 2].tolist()]
        [0.333, 0.333, 0.333]
    """
    heads, n = phi.shape[1:]
    # The normaliser is applied at read-out and not in A: ratios η_{t−1}/η_t may exceed 1, and what
    # has a decay of 1 needs none of them.
    return System(
        Scalar(jnp.zeros((1, heads), phi.dtype)),
        OuterInput(psi, W=W),
        InnerOutput(phi),
        eta=eta,
        reset=reset,
        state_shape=(heads, n, num_channels),
        length=phi.shape[0],
    )


def feature_system(
    kernel: KernelSystem,
    phi: Callable[[Array], Array],
    psi: Callable[[Array], Array] | None = None,
) -> System:
    r"""A finite system in place of a kernel: e^{qᵀk} becomes φ(q)ᵀψ(k), with its own η.

    Args:
        kernel: The kernel system, its queries scaled. Decays of its weights become those of the
            state; a window, a soft cap or a sink has no finite system.
        phi: Feature map from (L, H, m) to (L, H, n); values that keep η positive.
        psi: Feature map of the keys, by default φ.

    Returns:
        `separable_system` of the features with a `SummedNormalizer`, value map and resets kept.

    Raises:
        ValueError: For a kernel with a window, a soft cap or a sink.

    Example:
        >>> import dsfjax
        >>> q = jnp.zeros((3, 1, 2))
        >>> s = feature_system(dsfjax.KernelSystem(q, q, num_channels=4), jnp.exp)
        >>> s.state_shape
        (1, 2, 4)
    """
    kernel.expect_plain("feature_system", with_decays=True)
    system = separable_system(
        phi(kernel.q),
        (psi or phi)(kernel.k),
        SummedNormalizer(),
        num_channels=kernel.num_channels,
        W=kernel.map_of_heads(),
        reset=kernel.reset,
    )
    # A weight e^x a_t ⋯ a_{s+1} has its decays outside of the exponential, where a state has them.
    decay = kernel.weight_log_decay
    return system if decay is None else dataclasses.replace(system, A=Scalar(decay))


def truncate_kernel(kernel: KernelSystem, order: int, *, symmetric: bool = True) -> System:
    r"""The finite system of a Taylor truncation of the exponential kernel.

    .. math:: e^{x} ≈ \sum_{r=0}^{P} x^r / r!, \qquad x = q^\top k .

    Args:
        kernel: The kernel system.
        order: P, even: odd polynomials take negative values, and η could be 0.
        symmetric: Merge equal monomials: n = binom(m + P, P) instead of Σ_r m^r, same kernel.

    Returns:
        A `System` with n features per head and a `SummedNormalizer`.

    Raises:
        ValueError: If the order is odd or negative, or as `feature_system` does.

    Numerics:
        For |x| ≤ R the exponential errs by at most ε = e^R R^{P+1}/(P+1)!, the output by at most
        2 e^R ε max‖v‖, plus rounding.

    References:
        Sieber et al. (2024), arXiv:2405.15731, section on softmax attention.

    Example:
        >>> import dsfjax
        >>> q = jnp.ones((5, 1, 3))
        >>> truncate_kernel(dsfjax.KernelSystem(q, q, num_channels=4), 2).state_shape
        (1, 10, 4)
    """
    check_even_order("truncate_kernel", order)
    return feature_system(kernel, lambda x: taylor_features(x, order, symmetric=symmetric))
