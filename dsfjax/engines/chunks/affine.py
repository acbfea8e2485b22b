r"""What the algorithms by matrix products share: chunks as affine maps of the state.

A chunk k writes rows u and is crossed by the state before it,

.. math:: S_k = M_k u_k + R_k h_k, \qquad h_{k+1} = α_k ⊙ h_k + B_k^\top u_k ,

with S its outputs. The matrices do not depend on the states, so those of all chunks of a segment
are found together, as large products; only the step from chunk to chunk is left to a loop. Where a
chunk mixes its states, what it writes depends on the state,

.. math:: u_k = U_k - V_k h_k ,

and elsewhere u = U. As one matrix α − Bᵀ V the map of the state would take more operations to make
than it saves where it is used.

Backwards, G_k, the cotangent of h_k, obeys the adjoint recurrence

.. math:: ∂u_k = M_k^\top \, ∂S_k + B_k G_{k+1}, \qquad
   G_k = α_k ⊙ G_{k+1} + R_k^\top \, ∂S_k - V_k^\top \, ∂u_k ,

and gives those of the map, ∂α = G ⊙ h, ∂R = ∂S hᵀ, ∂M = ∂S uᵀ, ∂B = u Gᵀ, ∂U = ∂u, ∂V = −∂u hᵀ.
JAX takes these through the function that makes the maps. That function is thus all that an
algorithm writes.
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
from dsfjax.core.rows import inner
from dsfjax.core.system import System
from dsfjax.engines.chunks.algorithm import ChunkAlgorithm
from dsfjax.engines.chunks.decay import INTERVALS
from dsfjax.engines.engine import Cost
from dsfjax.engines.guard import finite
from dsfjax.engines.in_place import over_blocks
from dsfjax.engines.recurrence import Recurrence, split_time


class ChunkMap(NamedTuple):
    """A chunk of c steps as an affine map of the state before it, one sequence, heads first.

    Attributes:
        decay: How the state crosses the chunk α, (H, 1, 1) or (H, n, 1).
        reader: How the outputs see the state R, (H, c·R, n).
        weights: How they see what is written M, (H, c·R, m).
        values: What is written from the zero state U, (H, m, p).
        writer: How it gets to the state after the chunk B, (H, m, n).
        seen: How it depends on the state before V, (H, m, n); None if it does not.
        out: Of the outputs what does not depend on the state, beyond M u, (H, c·R, p), or None.
        added: Of the state after the chunk what does not, beyond Bᵀ u, (H, n, p), or None.
    """

    decay: Array
    reader: Array
    weights: Array
    values: Array
    writer: Array
    seen: Array | None = None
    out: Array | None = None
    added: Array | None = None


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
        u, added, mixing = maps.values, maps.added, None
        if maps.seen is None:
            added = transposed(maps.writer, u)
        else:
            mixing = maps.seen, maps.writer, u

        # The only loop over time, no or two small products per chunk. It gives the states before
        # the chunks: they are what the outputs lack, and all that the backward pass keeps.
        def forwards(h: Array, now: Any) -> tuple[Array, tuple[Array, Array | None]]:
            (decay, added, mixing), u = now, None
            after = decay * h if added is None else decay * h + added
            if mixing is not None:
                seen, writer, u = mixing
                u = u - product(seen, h)
                after = after + transposed(writer, u)
            return after, (h, u)

        crossed, count = (maps.decay, added, mixing), problem.length // chunk
        h, (starts, written) = over_blocks(forwards, count, h0[None], crossed, reverse=False)
        u = u if written is None else written
        out = product(maps.weights, u) + product(maps.reader, starts)
        out = out if maps.out is None else out + maps.out
        # (chunks, H, c·R, p) to (L, R, H, p)
        out = out.swapaxes(1, 2).reshape(problem.length, -1, out.shape[1], out.shape[3])
        return out, h[0], starts

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
        of_out = transposed(maps.weights, d_out)
        mixing = None if maps.seen is None else (maps.seen, maps.writer, of_out)

        def backwards(G: Array, now: Any) -> tuple[Array, tuple[Array, Array | None]]:
            (decay, read, mixing), du = now, None
            before = decay * G + read
            if mixing is not None:
                seen, writer, du = mixing
                du = du + product(writer, G)
                before = before - transposed(seen, du)
            return before, (G, du)

        # What comes out per chunk is the cotangent of the state after it.
        crossed, count = (maps.decay, read, mixing), problem.length // chunk
        G, (d_after, du) = over_blocks(backwards, count, dh[None], crossed, reverse=True)
        u, d_seen = maps.values, None
        if maps.seen is None:
            du = of_out + product(maps.writer, d_after)
        else:
            u, d_seen = u - product(maps.seen, starts), -outer(du, starts)
        (found,) = pull(
            ChunkMap(
                decay=_of_decay(d_after, starts, maps.decay.shape[2]),
                reader=outer(d_out, starts),
                weights=outer(d_out, u),
                values=du,
                writer=outer(u, d_after),
                seen=d_seen,
                out=None if maps.out is None else d_out,
                added=None if maps.added is None else d_after,
            )
        )
        return found, G[0]

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


def _of_decay(d_after: Array, starts: Array, n: int) -> Array:
    """The cotangent of α: one number for all channels p, and where n is 1 for all states."""
    if n == 1:
        *lead, states, channels = starts.shape
        d_after, starts = (x.reshape(*lead, 1, states * channels) for x in (d_after, starts))
    return inner(d_after, starts)


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
    of_rank = rank and (4 * rows * chunk * p + rows**3 + 2 * rows**2 * (n + p) + 4 * rows * n * p)
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
