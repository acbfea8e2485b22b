"""`ChunkAlgorithm`: how one segment, a run of whole chunks, is gone through and back."""

from __future__ import annotations

import abc
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import map_time, time_leaves
from dsfjax.core.system import System
from dsfjax.core.transitions import Transition
from dsfjax.engines.engine import Cost
from dsfjax.engines.recurrence import Recurrence


class ChunkAlgorithm(abc.ABC):
    """An algorithm for the chunks of a segment.

    You write a frozen dataclass with ``name``, `forward`, `backward` and `against`. You get a loop
    over segments with a custom backward pass that keeps one state per chunk (`segments`), in the
    engine ``Chunked(MyAlgorithm(), chunk, segment)``.

    Attributes:
        name: What a chunk is made of.
        takes_tied: Whether it takes a recurrence that is ``tied``; by default it gets one with a b.
    """

    name: ClassVar[str]
    takes_tied: ClassVar[bool] = False

    @abc.abstractmethod
    def against(self, A: Transition, *, states: bool = False) -> str | None:
        """Why it does not run a transition, or None; ``states``: whether all states are wanted."""

    @abc.abstractmethod
    def forward(self, problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
        """Run one segment.

        Args:
            problem: Recurrence of a multiple of ``chunk`` steps.
            h0: State before it, (H, n, p).
            chunk: Steps per chunk.

        Returns:
            ``(out, h_last, starts)``: outputs as of `dsfjax.Engine.run`, the last state, and the
            states before every chunk (k, H, n, p), which are all that the backward pass keeps.
        """

    def all_segments(
        self, problem: Recurrence, h0: Array, chunk: int, count: int
    ) -> tuple[Array, Array, Array] | None:
        """As `forward` for all ``count`` segments, where JAX may differentiate it; else None.

        JAX may do so if it then keeps no more for the backward pass than inputs and outputs. By
        default it may not, and `backward` gives the cotangents.
        """
        return None

    @abc.abstractmethod
    def backward(
        self,
        problem: Recurrence,
        starts: Array,
        d_out: Array,
        dh: Array,
        d_starts: Array | None,
        chunk: int,
    ) -> tuple[list[Array], Array]:
        """Cotangents of one segment.

        Args:
            problem: As of `forward`.
            starts: The states before every chunk.
            d_out: Cotangent of the outputs.
            dh: Cotangent of the last state.
            d_starts: That of the states before every chunk, or None for zero.
            chunk: Steps per chunk.

        Returns:
            Those of the real and complex arrays of ``problem``, in the order of its leaves, and of
            the state before it.
        """

    def pad(self, problem: Recurrence, steps: int) -> Recurrence | None:
        """The recurrence with steps at its end that change nothing, ``steps`` in all; or None.

        By default zeros: a log decay of 0 keeps the state, vectors of 0 write and read nothing. A
        transition that is constant in time, even in part, has no such steps.
        """
        length = problem.length
        if any(x.shape[0] != length for x in time_leaves(problem.A)):
            return None

        def zeros(x: Array) -> Array:
            if x.shape[0] != length:
                return x
            return jnp.pad(x, [(0, steps - length)] + [(0, 0)] * (x.ndim - 1))

        return map_time(zeros, problem)

    @abc.abstractmethod
    def cost(self, system: System, length: int, chunk: int, segment: int) -> Cost:
        """What a forward pass costs; see `dsfjax.Engine.cost`."""


def held(system: System, length: int, chunk: int, segment: int) -> int:
    """Numbers held by step-by-step algorithms: one state per chunk, the outputs of a segment."""
    heads, n, p = system.carried_shape
    return -(-length // chunk) * heads * n * p + min(segment, length) * heads * p
