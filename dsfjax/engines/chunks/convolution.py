r"""Chunks of a recurrence in which nothing but the values varies: a convolution.

With a, b and c constant in time, the chunks are all the same affine map of the state before them,

.. math:: S_t = \sum_{j \le t} K_j x_{t-j} + (c ⊙ a^{t+1})^\top h, \quad K_j = c^\top (a^j ⊙ b),
   \qquad h' = a^c ⊙ h + \sum_s (a^{c-1-s} ⊙ b) \, x_s^\top ,

t and s counted from 0 within a chunk of c steps. So there are three matrices for all chunks, whose
products have a column for every chunk of a segment; under `jax.vmap`, for every sequence as well.
The general algorithm (`products`) has them once per chunk, and their cotangents too.

The derivative is JAX's own. No state within a chunk is formed, so what it keeps is as large as
inputs and outputs; and it sums over a batch within the transposed products, where a backward pass
of our own would give cotangents of a, b and c for every sequence and sum those.

Where x is real and only the real part of S is read (S4D), products are of real numbers.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.diagonal import Elementwise, repeated
from dsfjax.core.transitions import to_heads
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


def applies(problem: Recurrence) -> bool:
    """Whether nothing but the values varies in time."""
    A = problem.A
    if problem.reset is not None or problem.f is not None or not isinstance(A, Elementwise):
        return False
    rest = [v for v in (A.log_decay(), problem.b, problem.c) if v is not None]
    return A.negative() is None and all(v.shape[0] == 1 for v in rest)


# Traced once for all calls with equal shapes.
@partial(jax.jit, static_argnums=(2, 3))
def run(problem: Recurrence, h0: Array, chunk: int, count: int) -> tuple[Array, Array, Array]:
    """Run all chunks in ``count`` segments; see `ChunkAlgorithm.all_segments`."""
    problem, h0, precision = finite(problem.in_dtype(h0.dtype)), finite(h0), problem.precision
    powers, b, c = _powers(problem, h0, chunk)
    read = powers[:, :, None] * c[:, None]  # c ⊙ a^j, (H, c + 1, R, n)
    write = powers[:, chunk - 1 :: -1, None] * b[:, None]  # (H, c, r, n)
    kernel = jnp.einsum("hjRn,hrn->hjRr", read[:, :chunk], b, precision=precision)
    reader, decay = read[:, 1:], powers[:, -1, :, None]
    # (segments, k, c, r, H, p): chunks, and the steps in them
    x, is_real = problem.x.reshape(count, -1, chunk, *problem.x.shape[1:]), problem.is_real
    if is_real:  # Re(R h) = Re R Re h − Im R Im h
        x, kernel = x.real, kernel.real
        reader = jnp.concatenate([reader.real, -reader.imag], axis=-1)
    within = toeplitz(kernel)

    def segment(h: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
        parts = (write.real, write.imag) if is_real else (write,)
        parts = [jnp.einsum("hsrn,ksrhp->khnp", w, x, precision=precision) for w in parts]
        added = jax.lax.complex(*parts) if is_real else parts[0]
        h, starts = jax.lax.scan(lambda h, added: (decay * h + added, h), h, added)
        states = jnp.concatenate([starts.real, starts.imag], axis=2) if is_real else starts
        of_start = jnp.einsum("htRn,khnp->ktRhp", reader, states, precision=precision)
        of_steps = jnp.einsum("htsRr,ksrhp->ktRhp", within, x, precision=precision)
        return h, (of_steps + of_start, starts)

    # A single segment needs no loop, which would have to be compiled.
    h, found = segment(h0, x[0]) if count == 1 else jax.lax.scan(segment, h0, x)
    out, starts = found
    out = out.reshape(problem.length, *out.shape[-3:]).astype(h0.dtype)
    return out, h, starts.reshape(-1, *starts.shape[-3:])


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
