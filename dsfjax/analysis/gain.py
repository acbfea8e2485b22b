r"""The largest amplification of a causal linear map, measured without writing it out."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gain(
    f: Callable[[Float[Array, "L d"]], Float[Array, "L d_out"]],
    u: Float[Array, "L d"],
    *,
    iterations: int = 40,
) -> Float[Array, ""]:
    r"""The norm of a linear map of sequences, its largest singular value.

    .. math:: \max_u \frac{\|f(u)\|_2}{\|u\|_2}, \qquad \|u\|_2^2 = \sum_t \|u_t\|^2 .

    For a constant system over infinite time it is the H∞ norm of its transfer function. The gain of
    the difference of two systems says how far apart their outputs can be.

    Args:
        f: A linear function of tokens, such as ``lambda u: scan(system, u)[0]``.
        u: Tokens to start from, (L, d), not zero; random ones are good.
        iterations: Steps of the Lanczos iteration.

    Returns:
        The gain, a scalar: exact to rounding after L·d iterations, before that a lower bound that
        converges fast.

    Numerics:
        Lanczos iteration on fᵀf with full orthogonalisation: one f and one transposed f per
        iteration, O(iterations · L d) memory.

    References:
        Golub & Van Loan, "Matrix Computations", chapter 10.

    Example:
        >>> u = jnp.array([[1.0], [1.0], [1.0]])
        >>> round(float(gain(lambda u: 3 * u, u)), 4)
        3.0
    """
    transpose = jax.vjp(f, u)[1]
    tiny = jnp.finfo(u.dtype).eps

    def advance(
        carry: tuple[Array, Array, Array], i: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, v, previous = carry
        basis = basis.at[i].set(v.reshape(-1))
        w = transpose(f(v))[0].reshape(-1)
        alpha = jnp.vdot(v.reshape(-1), w)
        for _ in range(2):  # once is not enough to be orthogonal to rounding
            w = w - jnp.matmul(jnp.matmul(basis, w, precision="highest"), basis)
        beta = jnp.linalg.norm(w)
        largest = jnp.maximum(previous, jnp.abs(alpha))
        # An invariant subspace is found: what remains is rounding.
        v = jnp.where(beta > tiny * largest, w / beta, 0).reshape(v.shape)
        return (basis, v, largest), (alpha, jnp.where(beta > tiny * largest, beta, 0))

    basis = jnp.zeros((iterations, u.size), u.dtype)
    start = (basis, u / jnp.linalg.norm(u), jnp.zeros((), u.dtype))
    _, (alpha, beta) = jax.lax.scan(advance, start, jnp.arange(iterations))
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(tridiagonal)[-1], 0))
