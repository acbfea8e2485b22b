"""Chunks run by the sequential engine: for structures whose chunks have no cheaper form."""

from __future__ import annotations

import jax
from jax import Array

from dsfjax.core.pytree import Partition
from dsfjax.engines.recurrence import Recurrence
from dsfjax.engines.sequential import sequential


def forward(problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
    """Outputs, the last state, and the state before the only chunk (1, H, n, p)."""
    assert problem.length == chunk
    out, h_last = sequential(problem, h0)
    return out, h_last, h0[None]


def backward(
    problem: Recurrence, starts: Array, d_out: Array, dh: Array, chunk: int
) -> tuple[list[Array], Array]:
    """Cotangents of the recurrence and of the state before it: the chunk is run again."""
    assert problem.length == chunk
    partition, arrays, others = Partition.of(problem)

    def run(arrays: list[Array], h0: Array) -> tuple[Array, Array]:
        return sequential(partition.join(arrays, others), h0)

    _, pull = jax.vjp(run, arrays, starts[0])
    return pull((d_out, dh))
