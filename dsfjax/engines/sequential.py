"""One step after the other: the definition, and the reference for every other engine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.engines.recurrence import Recurrence, by_steps


def advance(now: Recurrence, h: Array) -> tuple[Array, Array]:
    """One step of a recurrence whose time axis is 1.

    Returns:
        The new state (H, n, p), and what is read of it: s = cᵀh (R, H, p) or the state again.
    """
    if now.reset is not None:
        h = jnp.where(now.reset[0], 0, h)
    h = now.A.apply(h[None]) + now.forcing()
    return h[0], now.read(h)[0]


def sequential(problem: Recurrence, h0: Array, *, unroll: int = 1) -> tuple[Array, Array]:
    """Run the recurrence by `jax.lax.scan`. O(L) steps; every structure; forward mode works."""
    xs, step = by_steps(problem, problem.length)

    def body(h: Array, arrays: list[Array]) -> tuple[Array, Array]:
        return advance(step(arrays), h)

    h_last, out = jax.lax.scan(body, h0, xs, unroll=unroll)
    return out, h_last
