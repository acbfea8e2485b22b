r"""Rows of the kernel Φ one at a time, without the L×L array.

The output y_t is linear in the values, and head h, channel j of it reads head h, channel j of the
values alone. So one pullback of y_t gives the whole row Φ_{t,·} of every head and channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import Diagonal, InnerOutput, KernelSystem, OuterInput, System
from dsfjax.core.dense import skip_matrix
from dsfjax.engines import log_normalizer, scan

T = TypeVar("T")
Row = Callable[[Array], Array]


def kernel_rows(owner: str, system: System | KernelSystem, steps: int) -> Row:
    """The function t ↦ Φ_{t,·} on values, (L, H, p), or (L, H, 1) if it does not vary over p.

    Zeros after t. The rows are those of `dsfjax.materialize`, real, in the dtype of the state.

    Numerics:
        A row costs one backward pass of `scan`, O(L N) work and memory, and for a `KernelSystem`
        O(L H m).
    """
    if isinstance(system, KernelSystem):
        return _weights_of_queries(system)
    values = on_values(owner, system)
    heads, _, p = values.state_shape
    zeros = jnp.zeros((steps, heads * p), jnp.finfo(system.dtype).dtype)
    _, pullback = jax.vjp(lambda v: scan(values, v)[0], zeros)

    def row(t: Array) -> Array:
        return pullback(zeros.at[t].set(1))[0].reshape(steps, heads, p)

    return row


def token_rows(system: System | KernelSystem, steps: int) -> Row:
    """The function t ↦ Φ_{t,·} from tokens, (d_out, L, d), value map and skip included.

    Numerics:
        As `kernel_rows`; with a dense B or C, d_out backward passes of `scan` per row.
    """
    dtype = system.q.dtype if isinstance(system, KernelSystem) else jnp.finfo(system.dtype).dtype
    finite = isinstance(system, System)
    if finite and not (isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)):
        y, pullback = jax.vjp(
            lambda u: scan(system, u)[0], jnp.zeros((steps, system.token_width), dtype)
        )
        channels = jnp.arange(y.shape[1])

        def jacobian(t: Array) -> Array:
            at_t = jnp.zeros((y.shape[1], *y.shape), y.dtype).at[channels, t, channels].set(1)
            return jax.vmap(pullback)(at_t)[0]

        return jacobian
    on_values = kernel_rows("token_rows", system, steps)
    W = system.B.W if finite else system.W  # type: ignore[union-attr]
    W = jnp.eye(system.token_width, dtype=dtype) if W is None else W.astype(dtype)
    p = system.state_shape[2] if finite else system.num_channels
    D = skip_matrix(system) if finite else None

    def row(t: Array) -> Array:
        phi = on_values(t)
        phi = jnp.broadcast_to(phi, (*phi.shape[:2], p)).reshape(steps, -1).T
        full = phi[:, :, None].astype(dtype) * W[:, None, :]
        if D is None:
            return full
        return full.at[:, t].add(D[t if D.shape[0] > 1 else 0].astype(dtype))

    return row


def on_values(owner: str, system: System) -> System:
    """The system that acts on values, with one channel if nothing varies over the channels."""
    A, B, C = system.A, system.B, system.C
    if not isinstance(B, OuterInput) or not isinstance(C, InnerOutput):
        raise ValueError(
            f"{owner}: with a dense B or C the kernel has no values to act on; take the map from "
            "tokens instead, jacobian_norms(lambda u: dsfjax.scan(system, u)[0], u)."
        )
    heads, n, p = system.state_shape
    varies = isinstance(A, Diagonal) and not A.per_state
    varies = varies or any(x is not None and x.shape[-1] > 1 for x in (B.scale, C.gate))
    return dataclasses.replace(
        system,
        B=OuterInput(B.b, B.scale),
        D=None,
        state_shape=(heads, n, p if varies else 1),
    )


def scores_of_step(q: Array, k: Array) -> Array:
    """q_tᵀk_s of the query of one step (H, m) with all keys (L, G, m), (L, H)."""
    heads, m = q.shape
    grouped = q.reshape(k.shape[1], -1, m)
    scores = jnp.einsum("grm,sgm->sgr", grouped, k, precision="highest")
    return scores.reshape(-1, heads)


def visible_to(system: KernelSystem) -> Row:
    """The function t ↦ which steps a query reads, (L,): those up to t since the last reset."""
    steps = jnp.arange(system.length)
    segment = jnp.zeros_like(steps) if system.reset is None else jnp.cumsum(system.reset)
    return lambda t: (steps <= t) & (segment == segment[t])


def map_rows(f: Callable[[Array], T], steps: int, block: int) -> T:
    """``f(t)`` for every step t, stacked; ``block`` steps at a time."""
    return jax.lax.map(f, jnp.arange(steps), batch_size=min(block, steps))


def _weights_of_queries(system: KernelSystem) -> Row:
    """Rows of the attention matrix from the streamed normaliser."""
    log_eta, visible = log_normalizer(system), visible_to(system)
    q, k = system.q.astype(log_eta.dtype), system.k.astype(log_eta.dtype)

    def row(t: Array) -> Array:
        weights = jnp.exp(scores_of_step(q[t], k) - log_eta[t][None])
        return jnp.where(visible(t)[:, None], weights, 0)[..., None]

    return row
