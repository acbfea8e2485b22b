r"""What the algorithms by matrix products share: chunks as affine maps of the state.

Every chunk k is an affine map of the state before it,

.. math:: S_k = Y_k + R_k h_k, \qquad h_{k+1} = α_k ⊙ h_k + Q_k ,

with S its outputs. The maps do not depend on the states, so those of all chunks of a segment are
found together, as large matrix products; only α ⊙ h + Q, one step per chunk, is left to a loop.
Where a chunk mixes its states, what it writes depends on the state (`Feedback`), by

.. math:: u_k = U_k - V_k h_k

for a few rows u, of which S has M u more and the state Bᵀ u. As a matrix α − Bᵀ V the same map would
take more operations to make than it saves where it is used.

Backwards, G_k, the cotangent of h_k, obeys the adjoint recurrence

.. math:: ∂u_k = M_k^\top \, ∂S_k + B_k G_{k+1}, \qquad
   G_k = α_k ⊙ G_{k+1} + R_k^\top \, ∂S_k - V_k^\top \, ∂u_k ,

and gives those of the maps, ∂Y = ∂S, ∂R = ∂S hᵀ, ∂Q = G, ∂α = G ⊙ h, and ∂U = ∂u, ∂V = −∂u hᵀ,
∂M = ∂S uᵀ, ∂B = u Gᵀ. JAX takes these through the function that makes the maps. That function is
thus all that an algorithm writes.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import Partition, map_time
from dsfjax.core.system import System
from dsfjax.engines.chunks.algorithm import ChunkAlgorithm
from dsfjax.engines.chunks.decay import INTERVALS
from dsfjax.engines.engine import Cost
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence, split_time


class Feedback(NamedTuple):
    """What a chunk writes in dependence on the state before it, u = U − V h, one sequence.

    Attributes:
        values: From the zero state U, (H, m, p).
        seen: How they see the state V, (H, m, n).
        writer: How they get to the state after the chunk B, (H, m, n).
        weights: How the outputs see them M, (H, c·R, m).
    """

    values: Array
    seen: Array
    writer: Array
    weights: Array


class ChunkMap(NamedTuple):
    """A chunk of c steps as an affine map of the state before it, one sequence, heads first.

    Attributes:
        out: Outputs from the zero state Y, (H, c·R, p), or None for those of the feedback alone.
        reader: How the outputs see the state R, (H, c·R, n).
        decay: How the state crosses the chunk α, (H, 1, 1) or (H, n, 1).
        added: State after the chunk from the zero state Q, (H, n, p), or None as ``out``.
        feedback: Of chunks that mix their states, or None.
    """

    out: Array | None
    reader: Array
    decay: Array
    added: Array | None
    feedback: Feedback | None = None


class AffineChunks(ChunkAlgorithm):
    """An algorithm that finds the affine map of a chunk; states inside a chunk are never formed."""

    @abc.abstractmethod
    def chunk_map(self, problem: Recurrence, heads: int) -> ChunkMap:
        """All steps of a recurrence as one affine map."""

    def forward(self, problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
        """Run one segment; see `ChunkAlgorithm.forward`."""
        # A chunk is crossed by products, in which 0 · ∞ would be NaN: the guard has those values.
        maps, h0 = self._maps_of_chunks(problem, h0.shape[0], chunk), finite(h0)
        product, transposed = _products(problem.precision)

        # The only loop over time, one or three small products per chunk. It gives the states before
        # the chunks: they are what the outputs lack, and all that the backward pass keeps.
        def forwards(h: Array, now: ChunkMap) -> tuple[Array, tuple[Array, Array | None]]:
            after, u = now.decay * h, None
            if now.added is not None:
                after = after + now.added
            if (back := now.feedback) is not None:
                u = back.values - product(back.seen, h)
                after = after + transposed(back.writer, u)
            return after, (h, u)

        h_last, (starts, u) = jax.lax.scan(forwards, h0, maps)
        out = product(maps.reader, starts)
        if maps.feedback is not None:
            out = out + product(maps.feedback.weights, u)
        out = out if maps.out is None else out + maps.out
        # (chunks, H, c·R, p) to (L, R, H, p)
        out = out.swapaxes(1, 2).reshape(problem.length, -1, out.shape[1], out.shape[3])
        return out, h_last, starts

    def backward(
        self,
        problem: Recurrence,
        starts: Array,
        d_out: Array,
        dh: Array,
        d_starts: Array | None,
        chunk: int,
    ) -> tuple[list[Array], Array]:
        """Cotangents of one segment; see `ChunkAlgorithm.backward`."""
        partition, arrays, others = Partition.of(problem)
        product, transposed = _products(problem.precision)
        outer = partial(jnp.einsum, "...ip,...jp->...ij", precision=problem.precision)

        def maps_of(arrays: list[Array]) -> ChunkMap:
            return self._maps_of_chunks(partition.join(arrays, others), dh.shape[0], chunk)

        # The maps once more, as the forward pass has not kept them, and now with their transpose.
        # Transposed and not conjugated, for complex states as well: a cotangent of JAX is that of
        # the bilinear product.
        maps, pull = jax.vjp(maps_of, arrays)
        # (L, R, H, p) to (chunks, H, c·R, p), the rows of S
        d_out = d_out.reshape(-1, chunk * d_out.shape[1], *d_out.shape[2:]).swapaxes(1, 2)
        read = transposed(maps.reader, d_out)
        # The states before the chunks were results themselves, if any were wanted.
        read = read if d_starts is None else read + d_starts
        of_out = None if maps.feedback is None else transposed(maps.feedback.weights, d_out)

        def backwards(G: Array, now: Any) -> tuple[Array, tuple[Array, Array | None]]:
            maps, read, du = now
            before = maps.decay * G + read
            if (back := maps.feedback) is not None:
                du = du + product(back.writer, G)
                before = before - transposed(back.seen, du)
            return before, (G, du)

        # What comes out per chunk is the cotangent of the state after it, which is that of Q.
        dh, (d_after, du) = jax.lax.scan(backwards, dh, (maps, read, of_out), reverse=True)
        # α is one number along these axes, and its cotangent the sum over them.
        axes = tuple(i for i in (2, 3) if maps.decay.shape[i] == 1)
        d_feedback = None
        if (back := maps.feedback) is not None:
            u = back.values - product(back.seen, starts)
            d_feedback = Feedback(du, -outer(du, starts), outer(u, d_after), outer(d_out, u))
        (found,) = pull(
            ChunkMap(
                None if maps.out is None else d_out,
                outer(d_out, starts),
                jnp.sum(d_after * starts, axis=axes, keepdims=True),
                None if maps.added is None else d_after,
                d_feedback,
            )
        )
        return found, dh

    def pad(self, problem: Recurrence, steps: int) -> Recurrence | None:
        """The recurrence with steps that change nothing; see `ChunkAlgorithm.pad`.

        Next to b or c that vary in time a constant transition is written out, which is no more than
        they are, and cheaper than to compile chunks of another length for what is left.
        """
        length = problem.length
        if any(v is not None and v.shape[0] == length for v in (problem.b, problem.c)):

            def written_out(x: Array) -> Array:
                return jnp.broadcast_to(x, (length, *x.shape[1:]))

            problem = dataclasses.replace(problem, A=map_time(written_out, problem.A))
        return super().pad(problem, steps)

    def cost(self, system: System, length: int, chunk: int, segment: int) -> Cost:
        """What a forward pass costs; see `dsfjax.Engine.cost`."""
        return cost_of_products(system, length, chunk, segment)

    def _maps_of_chunks(self, problem: Recurrence, heads: int, chunk: int) -> ChunkMap:
        """The maps of all chunks, the first axis counting them."""
        problem = problem.in_dtype(problem.dtype)
        # What is constant in time stays outside of the vmap, as it is, and not once per chunk.
        arrays, whole = split_time(problem, problem.length)
        cut = [x.reshape(-1, chunk, *x.shape[1:]) for x in arrays]
        return jax.vmap(lambda arrays: self.chunk_map(whole(arrays), heads))(cut)


def _products(precision: str) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The products M x and Mᵀ x."""
    product = partial(jnp.matmul, precision=precision)
    return product, partial(jnp.einsum, "...ji,...jp->...ip", precision=precision)


def cost_of_products(system: System, length: int, chunk: int, segment: int) -> Cost:
    """What a forward pass by matrix products costs, in chunks of ``chunk`` steps."""
    heads, n, p = system.carried_shape
    rank, chunk, segment = system.A.low_rank, min(chunk, length), min(segment, length)
    rows = chunk * rank  # of the triangular system of a low-rank part
    within = chunk**2 * (2 * n * (1 + rank) ** 2 + 2 * p)
    of_rank = rank and (
        4 * rows * chunk * p + rows**3 + 2 * rows**2 * (n + p) + 4 * rows * n * p
    )
    # One decay for all states: the exponents of a chunk are a product of their own (`between`),
    # which what is constant in time has once, and not once per chunk.
    decay = jax.eval_shape(lambda A: A.parts()[0], system.A)
    is_one = decay is not None and decay.shape[0] > 1 and decay.shape[2] == 1
    of_decays = is_one and 2 * chunk**2 * min(chunk, INTERVALS)
    per_chunk = within + of_rank + of_decays + 4 * chunk * n * p + 2 * n * p
    count = -(-length // chunk)
    numbers = 2 * (chunk + rows) ** 2 + (3 * chunk + 2 * rows) * (n + p)
    at_once = segment // chunk * heads * numbers
    return Cost(count * heads * per_chunk, count * heads * n * p + at_once)
