"""Feature maps that stand in for the exponential kernel, besides its Taylor features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dsfjax.systems.primitives import elu1


def random_projection(
    key: Key[Array, ""], num_features: int, width: int, *, orthogonal: bool = True
) -> Float[Array, "n m"]:
    r"""Rows w_i ~ N(0, I) for random features.

    Args:
        key: PRNG key.
        num_features: n.
        width: m, features of queries and keys.
        orthogonal: Make the rows of every block of m orthogonal: still N(0, I) each, but with a
            smaller variance of the sum over i.

    Returns:
        (n, m) in the default float dtype.

    References:
        Choromanski et al. (2020), arXiv:2009.14794.

    Example:
        >>> w = random_projection(jax.random.key(0), 2, 2)
        >>> round(float(jnp.abs(w[0] @ w[1])), 5)
        0.0
    """
    blocks = -(-num_features // width)
    normal = jax.random.normal(key, (2, blocks, width, width))
    if not orthogonal:
        return normal[0].reshape(-1, width)[:num_features]
    q = jnp.linalg.qr(normal[0])[0]
    # QR fixes the sign of R's diagonal; signs and norms of independent normal vectors undo it.
    rows = normal[1]
    length = jnp.linalg.norm(rows, axis=2, keepdims=True)
    sign = jnp.where(rows[:, :, :1] < 0, -1, 1).astype(rows.dtype)
    return (q.swapaxes(1, 2) * length * sign).reshape(-1, width)[:num_features]


def positive_features(x: Float[Array, "*lead m"], projection: Float[Array, "n m"]) -> Array:
    r"""Positive random features of the exponential kernel (FAVOR+).

    .. math:: φ_i(x) = e^{w_i^\top x - \|x\|^2 / 2} / \sqrt{n}, \qquad
       \mathbb{E}\, φ(q)^\top φ(k) = e^{q^\top k} .

    Args:
        x: Queries or keys, (…, m).
        projection: w, (n, m), of `random_projection`.

    Returns:
        (…, n), positive.

    Numerics:
        At most e^{‖w_i‖²/2}, and ‖w_i‖² is about m. The relative variance of one feature is
        e^{‖q+k‖²} − 1: it needs exponentially many for long queries and keys.

    References:
        Choromanski et al. (2020), arXiv:2009.14794, equation 5.

    Example:
        >>> q, k = 0.1 * jnp.ones(2), -0.1 * jnp.ones(2)
        >>> w = random_projection(jax.random.key(0), 64, 2)
        >>> round(float(positive_features(q, w) @ positive_features(k, w)), 3)
        0.98
    """
    w = projection.astype(x.dtype)
    half = jnp.sum(jnp.square(x), axis=-1, keepdims=True) / 2
    return jnp.exp(_project(w, x) - half) / jnp.sqrt(jnp.asarray(w.shape[0], x.dtype))


def elu_features(
    x: Float[Array, "*lead m"], projection: Float[Array, "n m"] | None = None
) -> Array:
    r"""The map elu(W x) + 1, which approximates no kernel but is cheap and positive.

    Args:
        x: Queries or keys, (…, m).
        projection: W (n, m), to compare at any state size; None for W = I, the map as published.

    Returns:
        (…, n), positive; n = m without a projection.

    References:
        Katharopoulos et al. (2020), arXiv:2006.16236.

    Example:
        >>> [round(x, 3) for x in elu_features(jnp.array([-1.0, 1.0])).tolist()]
        [0.368, 2.0]
    """
    return elu1(x if projection is None else _project(projection.astype(x.dtype), x))


def _project(w: Array, x: Array) -> Array:
    return jnp.einsum("...m,nm->...n", x, w, precision="highest")
