"""Step by step, one state kept per chunk: any structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jax import Array

from dsfjax.core.system import System
from dsfjax.engines.chunks.segments import in_segments, states_in_segments
from dsfjax.engines.chunks.stepwise import STEP_BY_STEP
from dsfjax.engines.engine import Cost, Engine
from dsfjax.engines.recurrence import Recurrence


@dataclass(frozen=True)
class Checkpointed(Engine):
    """The definition, with a backward pass that keeps one state per chunk.

    Attributes:
        chunk: Steps per chunk. The backward pass holds L / chunk states, and those of one chunk.
    """

    name: ClassVar[str] = "checkpointed"
    is_stepwise: ClassVar[bool] = True
    keeps_states: ClassVar[bool] = True
    chunk: int = 64

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """Run the recurrence; see `dsfjax.Engine.run`."""
        return in_segments(STEP_BY_STEP, self.chunk, self.chunk, recurrence, h0)

    def states_at(
        self, recurrence: Recurrence, h0: Array, steps: Array
    ) -> tuple[Array, Array, Array]:
        """As `run`, and the states after some steps; see `dsfjax.Engine.states_at`."""
        return states_in_segments(STEP_BY_STEP, self.chunk, self.chunk, recurrence, h0, steps)

    def cost(self, system: System, length: int) -> Cost:
        """What a forward pass costs; see `dsfjax.Engine.cost`."""
        return STEP_BY_STEP.cost(system, length, min(self.chunk, length), self.chunk)
