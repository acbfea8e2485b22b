r"""What softmax attention remembers: a function of the query, and its size.

With κ(x, z) = e^{xᵀz} the numerator of attention after step t is the function
:math:`f_t(q) = \sum_{s \le t} κ(q, k_s) v_s` of the reproducing kernel Hilbert space of κ. Written
in features of κ, of which there are infinitely many, it is the state of a system, and both have the
same norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dsfjax._util.jitted import jitted
from dsfjax.analysis.phi import map_rows, scores_of_step, visible_to
from dsfjax.core import KernelSystem
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.transitions import to_heads
from dsfjax.engines.attention import values


class Definiteness(NamedTuple):
    """Whether a symmetric matrix is positive definite, as far as its rounding can tell.

    Attributes:
        smallest: Smallest eigenvalue.
        largest: Largest eigenvalue.
        rounding: n·ε·largest, below which an eigenvalue means nothing.
        positive: smallest > rounding.
        semidefinite: smallest ≥ −rounding: nothing contradicts a positive semidefinite matrix.
    """

    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    rounding: Float[Array, ""]
    positive: Bool[Array, ""]
    semidefinite: Bool[Array, ""]


@jitted(functions=("features",))
def gram_matrix(
    x: Float[Array, "S m"], features: Callable[[Array], Array] | None = None
) -> Float[Array, "S S"]:
    r"""Gram matrix of the exponential kernel, or of a feature map.

    .. math:: K_{s,s'} = e^{x_s^\top x_{s'}}, \qquad \text{or} \quad φ(x_s)^\top φ(x_{s'}) .

    The exponential one is positive definite for distinct points; the one of n features has rank at
    most n, so a finite system sees at most n keys apart.

    Args:
        x: Points, for example the keys of a head.
        features: φ from (S, m) to (S, n); None for the exponential kernel.

    Returns:
        (S, S), symmetric.

    Example:
        >>> gram_matrix(jnp.zeros((2, 3))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    z = x if features is None else features(x)
    products = jnp.einsum("sm,tm->st", z, z, precision="highest")
    return jnp.exp(products) if features is None else products


@jitted()
def definiteness(gram: Float[Array, "S S"]) -> Definiteness:
    """Extreme eigenvalues of a symmetric matrix, and what they say beyond rounding.

    Args:
        gram: Symmetric (S, S).

    Returns:
        A `Definiteness`.

    Numerics:
        O(S³). The Gram matrix of points close to each other is positive definite in theory and
        singular in floating point: then neither ``positive`` nor its contrary is shown.

    Example:
        >>> bool(definiteness(gram_matrix(jnp.array([[0.0], [1.0]]))).positive)
        True
    """
    eigenvalues = jnp.linalg.eigvalsh(gram)
    smallest, largest = eigenvalues[0], eigenvalues[-1]
    epsilon = jnp.asarray(jnp.finfo(gram.dtype).eps, gram.dtype)
    rounding = gram.shape[0] * epsilon * jnp.maximum(largest, -smallest)
    return Definiteness(smallest, largest, rounding, smallest > rounding, smallest >= -rounding)


@jitted("block")
def rkhs_norm(
    system: KernelSystem, u: Float[Array, "L d"], *, block: int = 16
) -> Float[Array, "L H"]:
    r"""Norm of the function that attention has stored after every step, per head.

    .. math:: \|f_t\|^2 = \sum_{s, s' \le t} κ(k_s, k_{s'})\, v_s^\top v_{s'},

    summed over the value channels. With finitely many features it is the norm ‖h_t‖ of the
    state, so it is the size that the state of the kernel would have as a system.

    Args:
        system: A kernel system.
        u: Tokens (L, d).
        block: Rows held at a time.

    Returns:
        ‖f_t‖ (L, H); sums start after the last reset.

    Raises:
        ValueError: For a kernel with a window, decays, a soft cap or a sink.

    Numerics:
        ‖f_t‖² = ‖f_{t−1}‖² + v_tᵀ(2 f_t(k_t) − κ(k_t, k_t) v_t): O(block · L H) memory and
        O(L² H (m + p)) work. e^{‖k‖²} overflows for ‖k‖² beyond 88 (float32) or 709 (float64).

    Example:
        >>> k = jnp.zeros((3, 1, 2))
        >>> rkhs_norm(KernelSystem(k, k, num_channels=1), jnp.ones((3, 1)))[:, 0].tolist()
        [1.0, 2.0, 3.0]
    """
    system.expect_plain("rkhs_norm")
    v = to_heads(values(system, u), system.num_heads)
    v = v.astype(state_dtype(v.dtype, system.k.dtype))
    heads = system.num_heads
    k, visible = system.k.astype(v.dtype), visible_to(system)
    groups = k.shape[1]

    def increment(t: Array) -> Array:
        weights = jnp.where(visible(t)[:, None], jnp.exp(scores_of_step(k[t], k)), 0)  # (L, G)
        weights = weights.at[t].multiply(0.5)  # the diagonal of the double sum counts once
        of_group = v.reshape(v.shape[0], groups, heads // groups, -1)
        read = jnp.einsum("sg,sgrp->grp", weights, of_group, precision="highest")
        return 2 * jnp.sum(of_group[t] * read, axis=2).reshape(heads)

    def add(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        more, reset = now
        total = jnp.where(reset, 0, total) + more
        return total, total

    increments = map_rows(increment, system.length, block)
    reset = jnp.zeros(system.length, bool) if system.reset is None else system.reset
    squared = jax.lax.scan(add, jnp.zeros_like(increments[0]), (increments, reset))[1]
    return jnp.sqrt(jnp.maximum(squared, 0))
