"""How a recurrence is cut into chunks: a static model of structure, sizes and device.

Nothing is timed at the user's expense. The sizes follow from what was measured with `dsfjax bench`:

* A chunk of c steps by matrix products costs about c (n + p) operations per step within the chunk
  and n p per step for the state, which balance at c ≈ √(n p).
* A low-rank part adds products and an inverse of c r rows: shorter chunks.
* On a CPU a segment should stay in the caches; an accelerator wants many chunks at once.
* Step by step, a step should have some thousand numbers to work on: as many chunks side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from dsfjax.core.transitions import Dense, Diagonal, DiagonalPlusLowRank, Scalar, Transition
from dsfjax.engines import affine, elementwise, stepwise
from dsfjax.engines.recurrence import Recurrence


class Plan(NamedTuple):
    """The form of a chunk and its size.

    Attributes:
        name: Of the form.
        chunk: Steps per chunk.
        segment: Steps handled at once, a multiple of the chunk.
        forward: ``(problem, h0, chunk) -> (out, h_last, starts)`` for one segment; ``starts`` are
            the states before every chunk.
        backward: ``(problem, starts, d_out, d_h_last, chunk) -> (d_problem, d_h0)``.
        exact: Whether it gives what the sequential engine gives also for NaN and ∞.
    """

    name: str
    chunk: int
    segment: int
    forward: Callable[[Recurrence, Array, int], tuple[Array, Array, Array]]
    backward: Callable[[Recurrence, Array, Array, Array, int], tuple[Recurrence, Array]]
    exact: bool = False


def plan(problem: Recurrence, state_shape: tuple[int, ...]) -> Plan:
    """The form of the chunks for a structure and a state (H, n, p), and their length."""
    A = problem.A
    heads, n, p = state_shape
    states = problem.f is not None or problem.emit_states
    if isinstance(A, Dense) or (isinstance(A, DiagonalPlusLowRank) and states):
        return Plan("step by step", 64, 64, stepwise.forward, stepwise.backward, True)
    if isinstance(A, Scalar | Diagonal) and (states or n == 1 or not by_matrix_products(A)):
        side_by_side = max(1, min(32, 2**11 // (heads * n * p)))
        chunk = 16 if side_by_side > 1 else 32
        segment = chunk * side_by_side
        return Plan("elementwise", chunk, segment, elementwise.forward, elementwise.backward)
    if isinstance(A, DiagonalPlusLowRank):
        chunk = max(8, 32 // A.w.shape[-1])
    elif isinstance(A, Scalar):
        chunk = min(128, max(32, 2 ** round(math.log2(math.sqrt(n * p)))))
    else:
        chunk = 32
    chunks = 8 if jax.default_backend() == "cpu" else 64
    return Plan("matrix products", chunk, chunks * chunk, affine.forward, affine.backward)


def by_matrix_products(A: Transition) -> bool:
    """Whether a chunk has a form in matrix products: decays the same for all value channels."""
    return not isinstance(A, Dense) and (not isinstance(A, Diagonal) or A.per_state)
