"""States that enter a recurrence in its middle: one for every segment of a packed sequence."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core.pytree import map_time
from dsfjax.engines.recurrence import Recurrence


class Entering(NamedTuple):
    """States that enter at the first steps of segments, one per segment.

    Attributes:
        h0: The states (S, H, n, p).
        segment: Which of them is that of the segment of every step, (L,).
        starts: Boolean (L,), the first steps.
    """

    h0: Array
    segment: Array
    starts: Array

    @classmethod
    def of(cls, h0: Array, segment: Array) -> Entering:
        """From the states and the number of the segment of every step."""
        starts = jnp.concatenate([jnp.ones(1, bool), segment[1:] != segment[:-1]])
        return cls(h0, segment, starts)

    @property
    def rows(self) -> Array:
        """The state of the segment of every step, (L, H, n, p)."""
        # NaN, and not a wrong state, where there are more segments than states.
        return jnp.take(self.h0, self.segment, axis=0, mode="fill")

    @property
    def are_enough(self) -> Array:
        """Whether there is a state for every segment, ()."""
        return self.starts.sum() <= self.h0.shape[0]

    @property
    def zero(self) -> Array:
        """The state before the first step, when those that enter are written by the recurrence."""
        return jnp.zeros_like(self.h0[0])

    def write(self, problem: Recurrence) -> Recurrence:
        """The recurrence from the zero state with A_t h, for a state h that enters, as forcing."""
        at = self.starts[:, None, None, None]
        moved = problem.A.apply(jnp.where(at, self.rows, 0), problem.precision)
        f = problem.forcing() + jnp.where(at, moved, 0)
        reset = None if problem.reset is None else self.starts
        empty = problem.x[..., :0]
        return dataclasses.replace(problem, b=None, x=empty, f=f, reset=reset, is_real=False)

    def insert(self, problem: Recurrence) -> tuple[Recurrence, Array]:
        """The recurrence from the zero state with steps that write the states before the segments.

        A state is n rows, and a step of rank r writes r of them, with unit vectors for b. Where all
        else is zero such a step changes nothing, as of `ChunkAlgorithm.pad`. So nothing of the size
        of all states is formed, and S n / r steps are added to L.

        Args:
            problem: Recurrence with b and x. Zeros in the fields of its transition must stand for
                the identity.

        Returns:
            The longer recurrence, and where its L steps are now (L,).
        """
        (count, _, n, p), (length, rank, heads, _) = self.h0.shape, problem.x.shape
        writes, step = -(-n // rank), jnp.arange(length, dtype=jnp.int32)
        number = jnp.arange(count, dtype=jnp.int32)
        # Segments count in the order in which the steps come, which is not that of the rows where
        # time runs backwards.
        order = jnp.cumsum(self.starts, dtype=jnp.int32) - 1
        place = step + writes * jnp.minimum(order + 1, count)
        # The first step of every segment; L of one that is not there.
        first = jnp.searchsorted(order, number).astype(jnp.int32)
        begin = first + writes * number
        added = (begin[:, None] + jnp.arange(writes, dtype=jnp.int32)[None]).reshape(-1)
        used = first < length
        row = self.segment[jnp.minimum(first, length - 1)]
        h = jnp.take(self.h0, row, axis=0, mode="fill")
        h = jnp.where(used[:, None, None, None], h, 0).swapaxes(1, 2)
        h = jnp.pad(h, [(0, 0), (0, writes * rank - n), (0, 0), (0, 0)])
        units = np.eye(writes * rank, n).reshape(writes, rank, 1, n)

        # Scatters that are known not to add anything up; their transposes are gathers.
        sorted_once: Any = {"indices_are_sorted": True, "unique_indices": True}

        def spread(v: Array, of_added: Array | None = None) -> Array:
            """An array of the longer recurrence: zeros, or other values, at the steps added."""
            v = jnp.broadcast_to(v, (length, *v.shape[1:]))
            longer = jnp.zeros((length + count * writes, *v.shape[1:]), v.dtype)
            longer = longer.at[place].set(v, **sorted_once)
            return longer if of_added is None else longer.at[added].set(of_added, **sorted_once)

        def vectors(b: Array) -> Array:
            of_added = jnp.asarray(units, b.dtype)[None]
            of_added = jnp.broadcast_to(of_added, (count, writes, *b.shape[1:]))
            return spread(b, of_added.reshape(-1, *b.shape[1:]))

        reset = problem.reset
        if reset is not None:  # at the first step that writes, in place of that of the segment
            reset = jnp.zeros(length + count * writes, bool).at[begin].set(used)
        c = problem.c
        longer = dataclasses.replace(
            problem,
            A=map_time(spread, problem.A),
            b=None if problem.b is None else vectors(problem.b),  # n = 1: x is the state
            x=spread(problem.x.astype(h.dtype), h.reshape(count * writes, rank, heads, p)),
            c=c if c is None or c.shape[0] == 1 else spread(c),
            reset=reset,
            is_real=False,  # the states that enter are written as values
        )
        return longer, place
