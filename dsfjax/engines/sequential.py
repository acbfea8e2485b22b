"""One step after the other: the definition, and the reference for every other engine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.engines.recurrence import Recurrence, read_states, split_time


def advance(now: Recurrence, h: Array) -> tuple[Array, Array]:
    """One step of a recurrence whose time axis has been removed.

    Returns:
        The new state (H, n, p), and s = cᵀh (H, p) or the state again.
    """
    if now.reset is not None:
        h = jnp.where(now.reset, 0, h)
    h = now.A.apply(h) + now.forcing()
    if now.emit_states:
        return h, h
    return h, read_states(now.c, h, now.precision)


def sequential(problem: Recurrence, h0: Array, *, unroll: int = 1) -> tuple[Array, Array]:
    """Run the recurrence by `jax.lax.scan`. O(L) steps; every structure; forward mode works."""
    xs, rebuild = split_time(problem, problem.length)

    def body(h: Array, arrays: list[Array]) -> tuple[Array, Array]:
        return advance(rebuild(arrays, lambda x: x[0]), h)

    h_last, out = jax.lax.scan(body, h0, xs, unroll=unroll)
    return out, h_last
