r"""Chunks of a recurrence in which nothing but the values varies: a convolution.

With a, b and c constant in time, the chunks are all the same affine map of the state before them,

.. math:: S_t = \sum_{j \le t} K_j x_{t-j} + (c ⊙ a^{t+1})^\top h, \quad K_j = c^\top (a^j ⊙ b),
   \qquad h' = a^c ⊙ h + \sum_s (a^{c-1-s} ⊙ b) \, x_s^\top ,

t and s counted from 0 within a chunk of c steps. So there are three matrices for a whole segment,
whose products have a column for every chunk; under `jax.vmap`, for every sequence as well. The
general algorithm (`products`) has them once per chunk, and their cotangents too.

Where x is real and only the real part of S is read (S4D), products are of real numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.diagonal import Elementwise, repeated
from dsfjax.core.pytree import Partition
from dsfjax.core.transitions import to_heads
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


def is_convolution(problem: Recurrence) -> bool:
    """Whether nothing but the values varies in time."""
    A = problem.A
    if problem.reset is not None or problem.f is not None or not isinstance(A, Elementwise):
        return False
    rest = [v for v in (A.log_decay(), problem.b, problem.c) if v is not None]
    return A.negative() is None and all(v.shape[0] == 1 for v in rest)


def forward(problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
    """Run one segment; see `ChunkAlgorithm.forward`."""
    problem, h0, precision = finite(problem), finite(h0), problem.precision
    powers, b, c = _powers(problem, h0, chunk)
    # (k, c, r, H, p): chunks, and the steps in them
    x = problem.x.reshape(-1, chunk, *problem.x.shape[1:])
    read = powers[:, :, None] * c[:, None]  # c ⊙ a^j, (H, c + 1, R, n)
    write = powers[:, chunk - 1 :: -1, None] * b[:, None]  # (H, c, r, n)
    kernel = jnp.einsum("hjRn,hrn->hjRr", read[:, :chunk], b, precision=precision)
    if problem.is_real:
        x, kernel = x.real, kernel.real
        parts = [
            jnp.einsum("hsrn,ksrhp->khnp", w, x, precision=precision)
            for w in (write.real, write.imag)
        ]
        added = jax.lax.complex(*parts)
    else:
        added = jnp.einsum("hsrn,ksrhp->khnp", write, x, precision=precision)
    decay = powers[:, -1, :, None]

    def cross(h: Array, added: Array) -> tuple[Array, Array]:
        return decay * h + added, h

    h_last, starts = jax.lax.scan(cross, h0, added)
    out = jnp.einsum("htsRr,ksrhp->ktRhp", toeplitz(kernel), x, precision=precision)
    reader, states = read[:, 1:], starts
    if problem.is_real:  # Re(R h) = Re R Re h − Im R Im h
        reader = jnp.concatenate([reader.real, -reader.imag], axis=-1)
        states = jnp.concatenate([starts.real, starts.imag], axis=2)
    out = out + jnp.einsum("htRn,khnp->ktRhp", reader, states, precision=precision)
    return out.reshape(-1, *out.shape[2:]).astype(h0.dtype), h_last, starts


def backward(
    problem: Recurrence,
    starts: Array,
    d_out: Array,
    dh: Array,
    d_starts: Array | None,
    chunk: int,
) -> tuple[list[Array], Array]:
    """Cotangents of one segment; see `ChunkAlgorithm.backward`."""
    partition, arrays, others = Partition.of(problem)

    # What is kept for it is as large as inputs and outputs: no state within a chunk is formed.
    def run(arrays: list[Array], h0: Array) -> tuple[Array, Array, Array]:
        return forward(partition.join(arrays, others), h0, chunk)

    _, pull = jax.vjp(run, arrays, starts[0])
    d_starts = jnp.zeros_like(starts) if d_starts is None else d_starts
    return pull((d_out, dh, d_starts))


def _powers(problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
    """a^0 … a^c (H, c + 1, n), b (H, r, n) and c (H, R, n), in the dtype of the state."""
    heads, n, _ = h0.shape
    assert isinstance(problem.A, Elementwise)
    one = jnp.ones((1, 1, 1, 1), h0.dtype)
    b, c = (one if v is None else v for v in (problem.b, problem.c))
    b, c = (to_heads(v[0].swapaxes(0, 1), heads, 0) for v in (b, c))
    # The last axis is that of p, over which the decay does not vary (`MatrixProducts.against`).
    log_a = jnp.broadcast_to(problem.A.log_decay()[0, ..., 0], (heads, n)).astype(h0.dtype)
    # a^0 by itself: 0 · (−∞) is not a number.
    times = jnp.arange(1, chunk + 1).astype(log_a.real.dtype)[None, :, None]
    later = jnp.exp(repeated(log_a[:, None], times))
    return jnp.concatenate([jnp.ones_like(later[:, :1]), later], axis=1), b, c


def toeplitz(kernel: Array) -> Array:
    """Lower triangular matrices of a kernel (H, c, …): entry (t, s) is that of t − s, (H, c, c, …).

    Row t is the window that starts at c − 1 − t of the kernel, reversed, with zeros behind it. No
    index is gathered, whose transpose would be a scatter: the windows are rows of a repetition of
    it, cut one entry longer than it is.
    """
    heads, steps, *rest = kernel.shape
    strip = jnp.concatenate([kernel[:, ::-1], jnp.zeros_like(kernel)], axis=1)
    rows = jnp.broadcast_to(strip[:, None], (heads, steps + 1, 2 * steps, *rest))
    flat = rows.reshape(heads, -1, *rest)[:, : steps * (2 * steps + 1)]
    return flat.reshape(heads, steps, 2 * steps + 1, *rest)[:, ::-1, :steps]
