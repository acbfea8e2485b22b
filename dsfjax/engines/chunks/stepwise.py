r"""Chunks step by step, for any structure.

A chunk of c steps is run by the definition, h_t = A_t h_{t-1} + f_t. Only the state before it is
kept. The backward pass runs the chunk again from there, this time keeping what the adjoint

.. math:: G_{t-1} = A_t^\top G_t + ∂h_{t-1}

needs of its c steps: the memory is c states once and not L states, for the time of one more forward
pass. JAX transposes the loop over the steps itself, which asks nothing of the transition but to be
differentiable.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import Partition, map_time
from dsfjax.core.system import System
from dsfjax.core.transitions import Transition
from dsfjax.engines.chunks.algorithm import ChunkAlgorithm, held
from dsfjax.engines.engine import Cost, flops_of_step
from dsfjax.engines.recurrence import Recurrence
from dsfjax.engines.sequential import Sequential


@dataclass(frozen=True)
class StepByStep(ChunkAlgorithm):
    """One chunk per segment, run by the sequential engine."""

    name: ClassVar[str] = "step by step"

    def against(self, A: Transition, *, states: bool = False) -> str | None:
        """None: it runs everything."""
        return None

    def forward(self, problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
        """Run one chunk; see `ChunkAlgorithm.forward`."""
        assert problem.length == chunk
        out, h_last = Sequential().run(problem, h0)
        return out, h_last, h0[None]

    def backward(
        self,
        problem: Recurrence,
        starts: Array,
        d_out: Array,
        dh: Array,
        d_starts: Array | None,
        chunk: int,
    ) -> tuple[list[Array], Array]:
        """Cotangents of one chunk; see `ChunkAlgorithm.backward`."""
        assert problem.length == chunk
        partition, arrays, others = Partition.of(problem)

        def run(arrays: list[Array], h0: Array) -> tuple[Array, Array]:
            return Sequential().run(partition.join(arrays, others), h0)

        _, pull = jax.vjp(run, arrays, starts[0])
        found, dh = pull((d_out, dh))
        return found, dh if d_starts is None else dh + d_starts[0]

    def pad(self, problem: Recurrence, steps: int) -> Recurrence:
        """Repeat the last step, and let nothing move there; see `ChunkAlgorithm.pad`.

        Of an unknown structure no parameters are known that keep the state. Those of a real step
        give no new NaN.
        """
        length = problem.length

        def repeat(x: Array) -> Array:
            if x.shape[0] != length:
                return x
            return jnp.pad(x, [(0, steps - length)] + [(0, 0)] * (x.ndim - 1), mode="edge")

        return dataclasses.replace(map_time(repeat, problem), live=jnp.arange(steps) < length)

    def cost(self, system: System, length: int, chunk: int, segment: int) -> Cost:
        """What a forward pass costs; see `dsfjax.Engine.cost`."""
        return Cost(length * flops_of_step(system), held(system, length, chunk, segment))


STEP_BY_STEP = StepByStep()
