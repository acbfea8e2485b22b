r"""Equivalence of systems: the same kernel Φ, hence the same outputs from a zero state."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dsfjax.analysis.rows import map_rows, token_rows
from dsfjax.core import KernelSystem, System, steps
from dsfjax.engines import scan


class Equivalence(NamedTuple):
    """How far two systems are from being the same map of tokens to outputs.

    Attributes:
        equal: Whether ``kernel`` and ``outputs`` are within the tolerance.
        kernel: Largest difference of Φ over the largest entry of Φ of the first.
        outputs: Largest difference of the outputs on the given tokens, in the same way.
        at: Where Φ differs most: [t, output channel, s, token channel].
    """

    equal: Bool[Array, ""]
    kernel: Float[Array, ""]
    outputs: Float[Array, ""]
    at: Int[Array, " 4"]


def equivalent(
    a: System | KernelSystem,
    b: System | KernelSystem,
    u: Float[Array, "L d"] | None = None,
    *,
    tolerance: float | None = None,
    length: int | None = None,
    block: int = 1,
) -> Equivalence:
    r"""Compare two systems of any structures by what they do.

    .. math:: \max_{t, s} \| Φ^a_{t,s} - Φ^b_{t,s} \|_\infty \le τ \max_{t,s} \|Φ^a_{t,s}\|_\infty ,

    Φ being the map from tokens, value maps and skips included. States, their number and their
    coordinates play no part.

    Args:
        a: A finite or kernel system.
        b: Another of the same widths and length (or constant in time).
        u: Tokens for the second test, which runs both by `scan` from a zero state; by default
            normal ones from a fixed key.
        tolerance: τ, by default √ε of the dtype: half of its digits.
        length: L, needed only if nothing varies in time in both.
        block: Rows of Φ compared at a time.

    Returns:
        An `Equivalence`.

    Raises:
        ValueError: If widths or lengths differ.

    Numerics:
        O(block · L d d_out) memory: Φ is never held whole. Its rows come from backward passes of
        `scan`, one per step, or one per step and output channel where B or C is dense.

    References:
        Sieber et al. (2024), arXiv:2405.15731.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> found = equivalent(s, dsfjax.rescale(s, jnp.array([0.3, -1.0, 2.0])))
        >>> bool(found.equal)
        True
    """
    widths = [(s.token_width, s.output_width) for s in (a, b)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"equivalent: expected systems of equal widths, got (d, d_out) = {widths[0]} and "
            f"{widths[1]}."
        )
    count = common_steps("equivalent", a, b, length)
    if u is None:
        u = jax.random.normal(jax.random.key(0), (count, a.token_width), a.real_dtype)
    row_a, row_b = token_rows(a, count), token_rows(b, count)

    def compare(t: Array) -> tuple[Array, Array, Array]:
        one = row_a(t)
        difference = jnp.abs(one - row_b(t).astype(one.dtype))
        return difference.max(), jnp.argmax(difference), jnp.abs(one).max()

    difference, where, scale = map_rows(compare, count, block)
    t = jnp.argmax(difference)
    shape = (a.output_width, count, a.token_width)
    at = jnp.stack([t, *jnp.unravel_index(where[t], shape)])
    kernel = _relative(difference.max(), scale.max())
    y = scan(a, u)[0]
    outputs = _relative(jnp.abs(y - scan(b, u)[0]).max(), jnp.abs(y).max())
    if tolerance is None:
        tolerance = math.sqrt(jnp.finfo(kernel.dtype).eps)
    return Equivalence((kernel <= tolerance) & (outputs <= tolerance), kernel, outputs, at)


def common_steps(
    owner: str, a: System | KernelSystem, b: System | KernelSystem, length: int | None
) -> int:
    """L of two systems, either of which may be constant in time."""
    length = steps(a if b.length is None else b, length, owner=owner)
    return steps(a, length, owner=owner)


def _relative(difference: Array, scale: Array) -> Array:
    """The quotient, 0 where there is no difference."""
    return jnp.where(difference == 0, 0, difference / scale)
