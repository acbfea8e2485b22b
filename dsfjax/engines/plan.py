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

from dsfjax.core.diagonal import Elementwise
from dsfjax.core.transitions import DiagonalPlusLowRank, Transition
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
        backward: ``(problem, starts, d_out, d_h_last, chunk) -> (d_arrays, d_h0)``, with
            the cotangents of the real and complex arrays of the problem.
    """

    name: str
    chunk: int
    segment: int
    forward: Callable[[Recurrence, Array, int], tuple[Array, Array, Array]]
    backward: Callable[[Recurrence, Array, Array, Array, int], tuple[list[Array], Array]]


def plan(problem: Recurrence, state_shape: tuple[int, ...]) -> Plan:
    """The form of the chunks for a structure and a state (H, n, p), and their length."""
    A = problem.A
    heads, n, p = state_shape
    states = problem.f is not None or problem.emit_states
    if A.is_diagonal and (states or n == 1 or A.per_channel):
        side_by_side = max(1, min(32, 2**11 // (heads * n * p)))
        chunk = 16 if side_by_side > 1 else 32
        segment = chunk * side_by_side
        return Plan("elementwise", chunk, segment, elementwise.forward, elementwise.backward)
    if states or not by_matrix_products(A):
        return CHECKPOINTED
    if rank := low_rank(A):
        chunk = max(8, 32 // rank)
    elif varies_by_head(A):
        chunk = min(128, max(32, 2 ** round(math.log2(math.sqrt(n * p)))))
    else:
        chunk = 32
    chunks = 8 if jax.default_backend() == "cpu" else 64
    return Plan("matrix products", chunk, chunks * chunk, affine.forward, affine.backward)


CHECKPOINTED = Plan("step by step", 64, 64, stepwise.forward, stepwise.backward)


def by_matrix_products(A: Transition) -> bool:
    """Whether a chunk has a form in matrix products: decays the same for all value channels."""
    return has_chunks(A) and not A.per_channel


def has_chunks(A: Transition) -> bool:
    """Whether there is an algorithm for chunks of such transitions."""
    return A.is_diagonal or low_rank(A) > 0


def varies_by_head(A: Transition) -> bool:
    """Whether a head has one decay."""
    return isinstance(A, Elementwise) and A.decay_axes() == (1, 1)


def low_rank(A: Transition) -> int:
    """The rank of the part that comes on top of a diagonal; 0 for all but low-rank transitions."""
    return A.w.shape[-1] if isinstance(A, DiagonalPlusLowRank) else 0
