"""Chunks of steps by the algorithm that a structure allows, with one state kept per chunk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from dsfjax.core.diagonal import Diagonal, Elementwise, Scalar
from dsfjax.core.system import System
from dsfjax.core.transitions import Transition
from dsfjax.engines.chunks import convolution
from dsfjax.engines.chunks.algorithm import ChunkAlgorithm
from dsfjax.engines.chunks.elementwise import ELEMENTWISE
from dsfjax.engines.chunks.products import MATRIX_PRODUCTS
from dsfjax.engines.chunks.segments import in_segments, states_in_segments
from dsfjax.engines.chunks.wy import WY
from dsfjax.engines.engine import Cost, Engine
from dsfjax.engines.entering import Entering
from dsfjax.engines.recurrence import Recurrence
from dsfjax.engines.rotation import Rotated

ALGORITHMS: tuple[ChunkAlgorithm, ...] = (MATRIX_PRODUCTS, WY, ELEMENTWISE)


@dataclass(frozen=True)
class Chunked(Engine):
    """Chunk by chunk; O(L / chunk) states are kept for the backward pass.

    `dsfjax.select` fills in what is None, from the structure, the sizes and the device.

    Attributes:
        algorithm: What a chunk is made of.
        chunk: Steps per chunk.
        segment: Steps worked on at once, a multiple of ``chunk``.
    """

    name: ClassVar[str] = "chunked"
    keeps_states: ClassVar[bool] = True
    algorithm: ChunkAlgorithm | None = None
    chunk: int | None = None
    segment: int | None = None

    def against(self, system: System, *, states: bool) -> str | None:
        """Why it does not run a system; see `dsfjax.Engine.against`."""
        A, name = system.A, type(system.A).__name__
        candidates = ALGORITHMS if self.algorithm is None else (self.algorithm,)
        if any(x.against(A, states=states) is None for x in candidates):
            return None
        if any(x.against(A) is None for x in candidates):
            return f"{name} where every state is wanted (chunks skip them; use checkpointed)"
        if self.algorithm is not None:
            return f"{name} by {self.algorithm.name} ({self.algorithm.against(A)})"
        return f"{name} (it has no algorithm for chunks; checkpointed keeps as little)"

    @property
    def takes_tied(self) -> bool:
        """Whether its algorithm takes a recurrence that is ``tied``."""
        return self.algorithm is not None and self.algorithm.takes_tied

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """Run the recurrence; see `dsfjax.Engine.run`."""
        algorithm, chunk, segment = self._sizes()
        recurrence = dataclasses.replace(recurrence, A=explicit(recurrence.A))
        if not _is_rotated(algorithm, recurrence):
            return in_segments(algorithm, chunk, segment, recurrence, h0)
        rotated = Rotated.make(recurrence, h0)
        out, g = in_segments(algorithm, chunk, segment, rotated.problem, rotated.h0)
        return rotated.outputs(out), rotated.last(g)

    def states_at(
        self, recurrence: Recurrence, h0: Array, steps: Array
    ) -> tuple[Array, Array, Array]:
        """As `run`, and the states after some steps; see `dsfjax.Engine.states_at`."""
        algorithm, chunk, segment = self._sizes()
        if recurrence.emit_states:
            return super().states_at(recurrence, h0, steps)
        recurrence = dataclasses.replace(recurrence, A=explicit(recurrence.A))
        if not _is_rotated(algorithm, recurrence):
            return states_in_segments(algorithm, chunk, segment, recurrence, h0, steps)
        rotated = Rotated.make(recurrence, h0)
        problem, h0 = rotated.by_steps(), rotated.h0
        out, g, kept = states_in_segments(algorithm, chunk, segment, problem, h0, steps)
        return rotated.outputs(out), rotated.last(g), rotated.states(kept, steps)

    def run_segments(
        self, recurrence: Recurrence, entering: Entering, steps: Array | None = None
    ) -> tuple[Array, ...]:
        """Run a recurrence whose segments have initial states; see `Engine.run_segments`.

        The states are written by steps of their own: a forcing is nothing that chunks of matrix
        products could take, and as large as all states.
        """
        if recurrence.emit_states:
            return super().run_segments(recurrence, entering, steps)
        recurrence = dataclasses.replace(recurrence, A=explicit(recurrence.A))
        length = recurrence.length
        tied = recurrence.tied
        recurrence, place = entering.insert(recurrence.untie())
        # The steps that write states have a Z of zero, and thus any W.
        recurrence = recurrence.tie() if tied else recurrence
        if steps is None:
            out, h_last, *states = self.run(recurrence, entering.zero)
        else:
            known = (steps >= 0) & (steps < length)
            steps = jnp.where(known, place[jnp.clip(steps, 0, length - 1)], -1)
            out, h_last, *states = self.states_at(recurrence, entering.zero, steps)
        # Where states are missing the guard takes the definition, which says where NaN belongs.
        return out[place], jnp.where(entering.are_enough, h_last, jnp.nan), *states

    def cost(self, system: System, length: int) -> Cost:
        """What a forward pass costs; see `dsfjax.Engine.cost`."""
        algorithm, chunk, segment = self._sizes()
        return algorithm.cost(system, length, min(chunk, length), segment)

    def _sizes(self) -> tuple[ChunkAlgorithm, int, int]:
        if self.algorithm is None or self.chunk is None or self.segment is None:
            raise ValueError(
                f"{self}: expected an algorithm, chunk and segment. Name all three, or let "
                "dsfjax.select choose."
            )
        return self.algorithm, self.chunk, self.segment


def _is_rotated(algorithm: ChunkAlgorithm, problem: Recurrence) -> bool:
    """Whether complex decays become positive ones: where products of matrices follow."""
    is_complex = jnp.issubdtype(problem.dtype, jnp.complexfloating)
    return algorithm is MATRIX_PRODUCTS and is_complex and not convolution.applies(problem)


def explicit(A: Transition) -> Transition:
    """A diagonal transition of one's own as the array of its decays, which is all that chunks use.

    The algorithms give the cotangent of the decay, and fill up time by decays of 1; both are those
    of the fields only where these are the decays.
    """
    if not isinstance(A, Elementwise) or isinstance(A, Scalar | Diagonal):
        return A
    # 1 and −1 in int8, as `check_sign` has them: integers have no cotangent.
    negative = A.negative()
    sign = None if negative is None else 1 - 2 * negative.astype("int8")
    return Diagonal(A.log_decay(), sign)
