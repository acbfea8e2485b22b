r"""Chunks of steps: matrix products within a chunk, a short recurrence between chunks.

Within a chunk that starts from the state h, with products of decays α (see `decay`),

.. math::
   s_t = c_t^\top α_{t←0} h + \sum_{s \le t} (c_t^\top α_{t←s} b_s) \, x_s, \qquad
   h' = α_{c←0} h + \sum_s α_{c←s} b_s ⊗ x_s .

For a scalar decay the double sum is (C Bᵀ ⊙ α) X, two matrix products; for a decay per state it is
an elementwise triple product over a shorter chunk. Decays that vary over the value channels leave
nothing to multiply as matrices: their chunks run step by step (`elementwise`). The body is
rematerialised: the backward pass stores the states between chunks, O(L / chunk), and recomputes
the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.maps import to_heads
from dsfjax.core.transitions import Diagonal, Scalar
from dsfjax.engines.decay import chunk_decays
from dsfjax.engines.elementwise import elementwise_chunk, elementwise_states
from dsfjax.engines.recurrence import Recurrence, split_time

Body = Callable[[Recurrence, Array], tuple[Array, Array]]


def chunked(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence chunk by chunk. `Scalar` and `Diagonal` transitions."""
    body, size = plan(problem)
    length = problem.length
    if length <= size:
        return body(problem, h0)
    xs, rebuild = split_time(problem, length)

    @jax.checkpoint
    def run_chunk(h: Array, arrays: list[Array]) -> tuple[Array, Array]:
        out, h = body(rebuild(arrays, lambda x: x), h)
        return h, out

    # The remainder runs as a shorter chunk: padding would have to stop constant decays, too.
    whole = length - length % size
    h, out = jax.lax.scan(
        run_chunk, h0, [x[:whole].reshape(length // size, size, *x.shape[1:]) for x in xs]
    )
    out = out.reshape(whole, *out.shape[2:])
    if whole == length:
        return out, h
    h, rest = run_chunk(h, [x[whole:] for x in xs])
    return jnp.concatenate([out, rest]), h


def plan(problem: Recurrence) -> tuple[Body, int]:
    """The form of the chunk for this structure, and its length."""
    if problem.f is not None or problem.emit_states:
        return elementwise_states, problem.length
    if isinstance(problem.A, Scalar):
        return scalar_chunk, 64
    if problem.b.shape[-1] == problem.c.shape[-1] == 1:
        return elementwise_states, problem.length
    assert isinstance(problem.A, Diagonal)
    return (per_state_chunk, 16) if problem.A.per_state else (elementwise_chunk, 64)


def scalar_chunk(problem: Recurrence, h: Array) -> tuple[Array, Array]:
    """One chunk of a scalar decay: (C Bᵀ ⊙ α) X and two products with the state."""
    assert isinstance(problem.A, Scalar)
    steps, (heads, _, p) = problem.length, h.shape
    log_a = jnp.broadcast_to(problem.A.log_a, (steps, heads))
    alpha = chunk_decays(log_a.T, problem.reset)  # time last: (H, c, c), (H, c)
    b, c = _same_groups(problem, heads)
    groups = b.shape[1]
    x = problem.x.reshape(steps, groups, -1, p)
    h = h.reshape(groups, -1, *h.shape[1:])

    def per_group(a: Array) -> Array:
        return a.astype(h.dtype).reshape(groups, -1, *a.shape[1:])

    precision = problem.precision
    scores = jnp.einsum("tgn,sgn->gts", c, b, precision=precision)
    weights = scores[:, None] * per_group(alpha.between)
    within = jnp.einsum("grts,sgrp->tgrp", weights, x, precision=precision)
    carried = jnp.einsum("tgn,grnp->grtp", c, h, precision=precision)
    carried = carried * per_group(alpha.from_start)[..., None]
    out = within + carried.transpose(2, 0, 1, 3)
    decayed = x * per_group(alpha.to_end).transpose(2, 0, 1)[..., None]
    added = jnp.einsum("sgn,sgrp->grnp", b, decayed, precision=precision)
    h = per_group(alpha.from_start[:, -1])[..., None, None] * h + added
    return out.reshape(steps, heads, p), h.reshape(heads, -1, p)


def per_state_chunk(problem: Recurrence, h: Array) -> tuple[Array, Array]:
    """One chunk of a decay per state: α has an axis n inside the inner product cᵀ α b."""
    assert isinstance(problem.A, Diagonal)
    steps, (heads, n, _) = problem.length, h.shape
    log_a = jnp.broadcast_to(problem.A.log_decay()[..., 0], (steps, heads, n))
    alpha = chunk_decays(log_a.transpose(1, 2, 0), problem.reset)  # (H, n, c, c), (H, n, c)
    alpha = jax.tree.map(lambda a: a.astype(h.dtype), alpha)
    b, c = (jnp.broadcast_to(to_heads(v, heads), (steps, heads, n)) for v in (problem.b, problem.c))
    b, c = b.transpose(1, 2, 0), c.transpose(1, 2, 0)  # (H, n, c)
    precision = problem.precision
    weights = jnp.sum(c[..., :, None] * alpha.between * b[..., None, :], axis=1)
    within = jnp.einsum("hts,shp->thp", weights, problem.x, precision=precision)
    carried = jnp.einsum("hnt,hnp->thp", c * alpha.from_start, h, precision=precision)
    added = jnp.einsum("hns,shp->hnp", b * alpha.to_end, problem.x, precision=precision)
    return within + carried, alpha.from_start[..., -1:] * h + added


def _same_groups(problem: Recurrence, heads: int) -> tuple[Array, Array]:
    """The vectors b and c over all steps, with one number of groups."""
    b, c = problem.b, problem.c
    if b.shape[1] != c.shape[1]:
        b, c = to_heads(b, heads), to_heads(c, heads)
    return tuple(jnp.broadcast_to(v, (problem.length, *v.shape[1:])) for v in (b, c))  # type: ignore[return-value]
