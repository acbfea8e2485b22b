r"""Sharpness: the largest eigenvalue of the Hessian of a loss, by the method of Lanczos.

Gradient descent with learning rate :math:`γ` is stable where the sharpness is below :math:`2/γ`, so
how it grows and saturates says how training and loss surface work on each other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


def sharpness(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    key: PRNGKeyArray,
    *,
    iterations: int = 16,
) -> Float[Array, ""]:
    r"""The largest eigenvalue of the Hessian of a loss.

    .. math:: H v_j = β_{j-1} v_{j-1} + α_j v_j + β_j v_{j+1}

    makes a tridiagonal matrix of the α and β whose largest eigenvalue approaches that of H from
    below, in far fewer iterations than there are parameters.

    Args:
        loss: A scalar function of the parameters, of which forward mode over reverse mode can be
            taken: run systems with ``method="sequential"``.
        params: Where the Hessian is taken.
        key: Of the first vector.
        iterations: Products with the Hessian.

    Returns:
        λ_max, which may be negative. NaN where the loss is not finite.

    Numerics:
        ``iterations`` times about four times the work of the loss, and the memory of three copies
        of the parameters: vectors are not kept to be orthogonalised again, which leaves the largest
        eigenvalue right and repeats it.

    References:
        Lanczos (1950), J. Res. Natl. Bur. Stand. 45. Cohen et al. (2021), arXiv:2103.00065.

    Examples:
        >>> f = lambda x: x @ jnp.diag(jnp.array([3.0, 1.0, -5.0])) @ x / 2
        >>> round(float(sharpness(f, jnp.ones(3), jax.random.key(0))), 4)
        3.0
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    first = jax.tree.unflatten(tree, drawn)
    gradient = jax.grad(loss)

    def advance(
        carry: tuple[PyTree, PyTree, Array], _: None
    ) -> tuple[tuple[PyTree, PyTree, Array], tuple[Array, Array]]:
        v, before, beta = carry
        w = jax.jvp(gradient, (params,), (v,))[1]
        alpha = _dot(w, v)
        w = jax.tree.map(lambda w, v, b: w - alpha * v - beta * b, w, v, before)
        norm = jnp.sqrt(_dot(w, w))
        # An invariant subspace has been used up: what is left of w is rounding.
        gone = norm <= 1e2 * jnp.finfo(norm.dtype).eps * jnp.abs(alpha)
        after = jax.tree.map(lambda w: jnp.where(gone, 0, w / jnp.where(gone, 1, norm)), w)
        return (after, v, jnp.where(gone, 0, norm)), (alpha, jnp.where(gone, 0, norm))

    norm = jnp.sqrt(_dot(first, first))
    start = jax.tree.map(lambda x: x / norm, first)
    carry = (start, jax.tree.map(jnp.zeros_like, start), jnp.zeros_like(norm))
    _, (alpha, beta) = jax.lax.scan(advance, carry, None, length=iterations)
    # Iterations after the end have made zeros; a value that is never the largest stands in.
    ended = jnp.concatenate([jnp.zeros(1, bool), jnp.cumsum(beta[:-1] == 0) > 0])
    alpha = jnp.where(ended, alpha[0], alpha)
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    finite = jnp.isfinite(matrix).all()
    values = jnp.linalg.eigvalsh(jnp.where(finite, matrix, 0))
    return jnp.where(finite, values[-1], jnp.nan)


def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), a, b)
    return jnp.stack(jax.tree.leaves(products)).sum()
