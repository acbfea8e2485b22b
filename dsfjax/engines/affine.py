r"""Chunks by matrix products: all chunks of a segment at once, then one state after the other.

Every chunk k is an affine map of the state before it (`products.ChunkMap`),

.. math:: S_k = Y_k + R_k h_k, \qquad h_{k+1} = P_k h_k + Q_k .

The maps do not depend on the states, so those of all chunks are found together. Backwards, the
cotangents of the states at the boundaries obey the adjoint recurrence

.. math:: G_k = P_k^\top G_{k+1} + R_k^\top \, ∂S_k ,

and give those of the maps, ∂Y = ∂S, ∂R = ∂S hᵀ, ∂Q = G, ∂P = G hᵀ.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import Partition, map_time
from dsfjax.engines.guard import finite
from dsfjax.engines.products import ChunkMap, chunk_map, cross, is_dense
from dsfjax.engines.recurrence import Recurrence


def forward(problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
    """Outputs (L, R, H, p), the last state, the states before every chunk (L / chunk, H, n, p)."""
    maps, h0 = _chunk_maps(problem, h0.shape[0], chunk)(problem), finite(h0)

    def forwards(h: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        return cross(step[0], h, problem.precision) + step[1], h

    h_last, starts = jax.lax.scan(forwards, h0, (maps.decay, maps.added))
    out = maps.out + jnp.matmul(maps.reader, starts, precision=problem.precision)
    return _time_first(out, problem), h_last, starts


def backward(
    problem: Recurrence, starts: Array, d_out: Array, dh: Array, chunk: int
) -> tuple[list[Array], Array]:
    """Cotangents of the recurrence and of the state before it."""
    precision = problem.precision
    partition, arrays, others = Partition.of(problem)
    of_chunks = _chunk_maps(problem, dh.shape[0], chunk)
    maps, pull = jax.vjp(lambda arrays: of_chunks(partition.join(arrays, others)), arrays)
    d_out = d_out.reshape(-1, chunk * d_out.shape[1], *d_out.shape[2:]).swapaxes(1, 2)
    d_reader = jnp.einsum("khtp,khnp->khtn", d_out, starts, precision=precision)
    read = jnp.einsum("khtn,khtp->khnp", maps.reader, d_out, precision=precision)

    def backwards(G: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, read = step
        return cross(decay.swapaxes(-1, -2) if is_dense(decay) else decay, G, precision) + read, G

    dh, d_added = jax.lax.scan(backwards, dh, (maps.decay, read), reverse=True)
    if is_dense(maps.decay):
        d_decay = jnp.einsum("khnp,khmp->khnm", d_added, starts, precision=precision)
    else:
        axes = tuple(i for i in (2, 3) if maps.decay.shape[i] == 1)
        d_decay = jnp.sum(d_added * starts, axis=axes, keepdims=True)
    (found,) = pull(ChunkMap(d_out, d_reader, d_decay, d_added))
    return found, dh


def _chunk_maps(problem: Recurrence, heads: int, chunk: int) -> Callable[[Recurrence], ChunkMap]:
    """The function from a recurrence to the maps of all its chunks."""
    length, count = problem.length, problem.length // chunk
    flags = jax.tree.leaves(map_time(lambda leaf: leaf.shape[0] == length, problem))
    varies = [flag is True for flag in flags]

    def maps(core: Recurrence) -> ChunkMap:
        leaves, structure = jax.tree.flatten(core)
        cut = [
            x.reshape(count, chunk, *x.shape[1:]) if v else x
            for x, v in zip(leaves, varies, strict=True)
        ]

        def one(leaves: list[Array]) -> ChunkMap:
            return chunk_map(structure.unflatten(leaves), heads)

        return jax.vmap(one, in_axes=([0 if v else None for v in varies],))(cut)

    return maps


def _time_first(out: Array, problem: Recurrence) -> Array:
    """(chunks, H, c·R, p) to (L, R, H, p)."""
    return out.swapaxes(1, 2).reshape(problem.length, -1, out.shape[1], out.shape[3])
