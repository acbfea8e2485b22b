"""One step after the other: the definition, and the reference for every other engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.varying import zeros_as
from dsfjax.engines.engine import Engine
from dsfjax.engines.entering import Entering
from dsfjax.engines.in_place import over_blocks
from dsfjax.engines.recurrence import Recurrence, by_steps

Body = Callable[[Array, Any], tuple[Array, Array]]


def advance(now: Recurrence, h: Array) -> tuple[Array, Array]:
    """One step of a recurrence whose time axis is 1.

    Returns:
        The new state (H, n, p), and what is read of it: s = cᵀh (R, H, p) or the state again.
    """
    before = h
    if now.reset is not None:
        # A selection and not a product with 0: a NaN ends at a reset.
        h = jnp.where(now.reset[0], 0, h)
    h = now.A.apply(h[None], now.precision) + now.forcing()
    if now.live is not None:
        h = jnp.where(now.live[0], h, before)
    return h[0], now.read(h)[0]


@dataclass(frozen=True)
class Sequential(Engine):
    """`jax.lax.scan` over the steps: O(L) steps; every structure; forward mode works.

    Attributes:
        unroll: Steps per iteration of the loop.
    """

    name: ClassVar[str] = "sequential"
    is_stepwise: ClassVar[bool] = True
    has_forward_mode: ClassVar[bool] = True
    keeps_states: ClassVar[bool] = True
    unroll: int = 1

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """Run the recurrence; see `Engine.run`."""
        xs, step = by_steps(recurrence, recurrence.length)
        out, h_last = self._run(lambda h, arrays: advance(step(arrays), h), h0, xs)
        return out, h_last

    def states_at(
        self, recurrence: Recurrence, h0: Array, steps: Array
    ) -> tuple[Array, Array, Array]:
        """As `run`, and the states after some steps; see `dsfjax.Engine.states_at`."""
        xs, step = by_steps(recurrence, recurrence.length)
        return self._run_keeping(lambda h, arrays: advance(step(arrays), h), h0, xs, steps)

    def run_segments(
        self, recurrence: Recurrence, entering: Entering, steps: Array | None = None
    ) -> tuple[Array, ...]:
        """Run a recurrence whose segments have initial states; see `Engine.run_segments`.

        The loop takes a state where it enters, so that no array holds one for every step.
        """
        arrays, step = by_steps(recurrence, recurrence.length)

        def enter(h: Array, now: Any) -> tuple[Array, Array]:
            segment, start, arrays = now
            h = jnp.where(start, jnp.take(entering.h0, segment, axis=0, mode="fill"), h)
            # Every reset is a start, and would put the state to zero again.
            return advance(dataclasses.replace(step(arrays), reset=None), h)

        xs = entering.segment, entering.starts, arrays
        if steps is None:
            return self._run(enter, entering.zero, xs)
        return self._run_keeping(enter, entering.zero, xs, steps)

    def _run(self, body: Body, h0: Array, xs: Any) -> tuple[Array, Array]:
        h_last, out = jax.lax.scan(body, h0, xs, unroll=self.unroll)
        return out, h_last

    def _run_keeping(
        self, body: Body, h0: Array, xs: Any, steps: Array
    ) -> tuple[Array, Array, Array]:
        length = jax.tree.leaves(xs)[0].shape[0]
        number = jnp.arange(steps.shape[0], dtype=steps.dtype)
        # Where every step puts its state; those that are not wanted, past the end.
        none = jnp.full(length, steps.shape[0], steps.dtype)
        slots = none.at[steps].set(number, mode="drop")

        def keeping(
            carry: tuple[Array, Array], now: tuple[Array, Any]
        ) -> tuple[tuple[Array, Array], Array]:
            h, kept = carry
            h, out = body(h, now[1])
            return (h, kept.at[now[0]].set(h, mode="drop")), out

        kept = zeros_as(h0, (steps.shape[0], *h0.shape))
        (h_last, kept), out = jax.lax.scan(keeping, (h0, kept), (slots, xs), unroll=self.unroll)
        # A step may be wanted twice, and has one slot.
        slot_of = jnp.take(slots, steps, mode="fill", fill_value=steps.shape[0])
        return out, h_last, jnp.take(kept, slot_of, axis=0, mode="fill")


@dataclass(frozen=True)
class InPlace(Sequential):
    """As `Sequential`, for what is never differentiated: steps are read and written in place.

    Under `jax.vmap` nothing is transposed before and after, so there is less to compile; backwards,
    though, every step would add up whole arrays.
    """

    def _run(self, body: Body, h0: Array, xs: Any) -> tuple[Array, Array]:
        def run(h: Array, now: Any) -> tuple[Array, Array]:
            h, out = body(h, jax.tree.map(lambda x: x[0], now))
            return h, out[None]

        length = jax.tree.leaves(xs)[0].shape[0]
        h_last, out = over_blocks(run, length, h0, xs, reverse=False)
        return out, h_last
