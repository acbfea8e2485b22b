"""Which tokens an output depends on, for any function of a sequence."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dsfjax._util.jitted import jitted
from dsfjax.analysis.phi import map_rows


@jitted("probes", "block", functions=("f",))
def jacobian_norms(
    f: Callable[[Array], Array],
    u: Float[Array, "L d"],
    *,
    probes: int | None = None,
    key: Key[Array, ""] | None = None,
    block: int = 16,
) -> Float[Array, "L L"]:
    r"""Frobenius norms ‖∂y_t/∂u_s‖ of any function of a sequence, indexed [t, s].

    For one `System` these are the norms of Φ; for a model of many layers they show which tokens an
    output depends on, gates and normalisers included.

    Args:
        f: Function from (L, d) to (L, d_out): a layer, or a model from embeddings to features.
        u: The tokens at which to differentiate.
        probes: Estimate with this many random vectors instead of all d_out rows.
        key: For the probes.
        block: Backward passes run at a time.

    Returns:
        (L, L) in the dtype of y. Zero above the diagonal if f is causal.

    Raises:
        ValueError: If probes are asked for without a key, or f does not keep the steps.

    Numerics:
        L · d_out backward passes of f, or L · probes; memory that of ``block`` passes. The estimate
        :math:`\mathrm{mean}_i \|r_i^\top ∂y_t/∂u_s\|^2`, r_i of random signs, of the squared norm
        has no bias and a relative standard deviation of at most √(2/probes).

    Example:
        >>> jacobian_norms(lambda u: jnp.cumsum(2 * u, axis=0), jnp.zeros((2, 1))).tolist()
        [[2.0, 0.0], [2.0, 2.0]]
    """
    y, pullback = jax.vjp(f, u)
    if y.ndim != 2 or y.shape[0] != u.shape[0]:
        raise ValueError(
            f"jacobian_norms: expected f to map (L, d) to (L, d_out), got {u.shape} to {y.shape}."
        )
    if probes is None:
        vectors = jnp.eye(y.shape[1], dtype=y.dtype)
    elif key is None:
        raise ValueError("jacobian_norms: random probes need a key; pass key=jax.random.key(…).")
    else:
        signs = jax.random.rademacher(key, (probes, y.shape[1]), y.dtype)
        vectors = signs / jnp.sqrt(jnp.asarray(probes, y.dtype))
    count, steps = vectors.shape[0], u.shape[0]

    def squared(vector: Array, t: Array) -> Array:
        (gradient,) = pullback(jnp.zeros_like(y).at[t].set(vector))
        return jnp.sum(jnp.square(gradient), axis=1)

    def row(t: Array) -> Array:
        per_vector = jax.lax.map(lambda v: squared(v, t), vectors, batch_size=min(block, count))
        return jnp.sqrt(per_vector.sum(axis=0))

    return map_rows(row, steps, max(1, block // count))
