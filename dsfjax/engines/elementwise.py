r"""Diagonal recurrences step by step, with a backward pass of their own.

The cotangent of the state obeys the *adjoint* recurrence, which runs backwards in time with the
same decays. With G_t the cotangent of h_t and ∂s_t that of s_t = c_tᵀ h_t,

.. math::
   G_t = c_t ⊗ ∂s_t + a_{t+1} ⊙ G_{t+1}, \qquad
   ∂\log a_t = G_t ⊙ a_t ⊙ h_{t-1}, \quad
   ∂b_t = G_t x_t, \quad ∂x_t = b_t^\top G_t, \quad ∂c_t = h_t \, ∂s_t .

Automatic differentiation of the loop computes the same, but keeps every intermediate and reduces
slowly. Here only the inputs are kept and the states of one chunk are computed again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.maps import to_heads
from dsfjax.core.transitions import Diagonal, Factored, Scalar
from dsfjax.engines.recurrence import Recurrence, read_states, split_time
from dsfjax.engines.sequential import advance, sequential


def elementwise_states(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Form all states: for n = 1, where they are no larger than the outputs, or if asked for."""
    assert isinstance(problem.A, Scalar | Diagonal)
    a = jnp.exp(problem.A.log_decay()).astype(h0.dtype)
    if problem.reset is not None:
        a = jnp.where(problem.reset[:, None, None, None], 0, a)
    f = jnp.broadcast_to(problem.forcing(), (problem.length, *h0.shape))
    h = _states(a, f, h0)
    if problem.emit_states:
        return h, h[-1]
    return read_states(problem.c, h, problem.precision), h[-1]


def _run(a: Array, f: Array, h0: Array, *, reverse: bool = False) -> Array:
    """All states of h_t = a_t ⊙ h_{t∓1} + f_t; a may be constant in time."""

    def body(h: Array, step: tuple[Array | None, Array]) -> tuple[Array, Array]:
        h = (a[0] if step[0] is None else step[0]) * h + step[1]
        return h, h

    return jax.lax.scan(body, h0, (None if a.shape[0] == 1 else a, f), reverse=reverse)[1]


@jax.custom_vjp
def _states(a: Array, f: Array, h0: Array) -> Array:
    return _run(a, f, h0)


def _states_forward(a: Array, f: Array, h0: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    h = _run(a, f, h0)
    return h, (a, h, h0)


def _states_backward(kept: tuple[Array, Array, Array], dh: Array) -> tuple[Array, Array, Array]:
    a, h, h0 = kept
    following = a if a.shape[0] == 1 else jnp.roll(a, -1, axis=0)  # the last one meets G = 0
    G = _run(following, dh, jnp.zeros_like(h0), reverse=True)
    before = jnp.concatenate([h0[None], h[:-1]])
    return _sum_to(G * before, a.shape), G, a[0] * G[0]


_states.defvjp(_states_forward, _states_backward)


@jax.custom_vjp
def elementwise_chunk(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """One chunk of a diagonal decay with n > 1: reads s_t = cᵀh_t without keeping the states."""
    return sequential(problem, h0)


def _chunk_forward(
    problem: Recurrence, h0: Array
) -> tuple[tuple[Array, Array], tuple[Recurrence, Array]]:
    return sequential(problem, h0), (problem, h0)


def _chunk_backward(
    kept: tuple[Recurrence, Array], cotangents: tuple[Array, Array]
) -> tuple[Recurrence, Array]:
    problem, h0 = kept
    ds, dh = cotangents
    heads, precision = h0.shape[0], problem.precision
    A = problem.A
    assert isinstance(A, Diagonal)
    xs, rebuild = split_time(problem, problem.length)

    def at(arrays: list[Array]) -> Recurrence:
        return rebuild(arrays, lambda x: x[0])

    def forward(h: Array, arrays: list[Array]) -> tuple[Array, Array]:
        return advance(at(arrays), h)[0], h

    def backward(
        carry: tuple[Array, Array], step: tuple[list[Array], Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
        (G, drate), (arrays, before, ds_t) = carry, step
        now = at(arrays)
        a = jnp.exp(now.A.log_decay()).astype(G.dtype)  # type: ignore[union-attr]
        if now.reset is not None:
            a = jnp.where(now.reset, 0, a)
        b, c = (jnp.broadcast_to(to_heads(v, heads), G.shape[:2]) for v in (now.b, now.c))
        decayed = a * before
        h = decayed + b[..., None] * now.x[:, None, :]
        G = G + c[..., None] * ds_t[:, None, :]
        dlog = G * decayed
        dc = jnp.einsum("hnp,hp->hn", h, ds_t, precision=precision)
        db = jnp.einsum("hnp,hp->hn", G, now.x, precision=precision)
        dx = jnp.einsum("hnp,hn->hp", G, b, precision=precision)
        factors = now.A.log_a  # type: ignore[union-attr]
        if isinstance(factors, Factored):
            drate = drate + dlog * factors.step[:, None, :].astype(G.dtype)
            rate = jnp.broadcast_to(factors.rate, G.shape).astype(G.dtype)
            dlog = jnp.einsum("hnp,hnp->hp", dlog, rate, precision=precision)
        dlog = _sum_to(dlog, _varying(A).shape[1:])
        return (a * G, drate), (dlog, db, dx, dc)

    _, before = jax.lax.scan(forward, h0, xs)
    start = (dh, jnp.zeros(h0.shape if isinstance(A.log_a, Factored) else (), h0.dtype))
    (dh0, drate), (dlog, db, dx, dc) = jax.lax.scan(backward, start, (xs, before, ds), reverse=True)
    log = _varying(A)
    dlog = _like(_sum_to(dlog, log.shape), log)
    if isinstance(A.log_a, Factored):
        rate = A.log_a.rate
        dA = Diagonal.factored(dlog, _like(_sum_to(drate, rate.shape), rate))
    else:
        dA = Diagonal(dlog)
    db, dc = (_sum_groups(v, like) for v, like in ((db, problem.b), (dc, problem.c)))
    cotangent = Recurrence(
        dA, db, dx, dc, emit_states=problem.emit_states, precision=problem.precision
    )
    return cotangent, dh0


elementwise_chunk.defvjp(_chunk_forward, _chunk_backward)


def _varying(A: Diagonal) -> Array:
    """The array of the log decay that has a time axis."""
    return A.log_a.step if isinstance(A.log_a, Factored) else A.log_a


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum over the axes where ``shape`` has 1."""
    axes = tuple(
        i for i, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want
    )
    return x.sum(axis=axes, keepdims=True) if axes else x


def _sum_groups(x: Array, like: Array) -> Array:
    """Undo `to_heads` and broadcasting in time: (L, H, n) to the shape of ``like`` (T, G, n)."""
    groups, n = like.shape[1:]
    x = x.reshape(x.shape[0], groups, -1, n).sum(axis=2)
    return _sum_to(x, like.shape)


def _like(x: Array, primal: Array) -> Array:
    """The real part for a real primal of a complex recurrence."""
    return x if jnp.iscomplexobj(primal) else x.real
