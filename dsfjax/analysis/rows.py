r"""Rows of the kernel Φ one at a time, without the L×L array.

The output y_t is linear in the values, and head h, channel j of it reads head h, channel j of the
values alone. So one pullback of y_t gives the whole row Φ_{t,·} of every head and channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import singledispatch
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.core import InnerOutput, KernelSystem, OuterInput, System
from dsfjax.core.dense import skip_matrix
from dsfjax.engines import log_normalizer, scan
from dsfjax.engines.attention import score_rows

T = TypeVar("T")
Row = Callable[[Array], Array]


def kernel_rows(owner: str, system: System | KernelSystem, steps: int) -> Row:
    """The function t ↦ Φ_{t,·} on values, (L, H, p), or (L, H, 1) if it does not vary over p.

    Zeros after t. The rows are those of `dsfjax.materialize`, real, in the dtype of the state.

    Numerics:
        A row costs one backward pass of `scan`, O(L N) work and memory, and for a `KernelSystem`
        O(L H m).
    """
    return _kernel_rows(system, owner, steps)


@singledispatch
def _kernel_rows(system: Any, owner: str, steps: int) -> Row:
    raise TypeError(f"{owner}: expected a System or KernelSystem, got {type(system).__name__}.")


@_kernel_rows.register
def _(system: System, owner: str, steps: int) -> Row:
    values = on_values(owner, system)
    heads, _, p = values.state_shape
    if values.B.rank * values.C.rank > 1:
        raise ValueError(
            f"{owner}: expected one value and one output per channel; with an input or output of "
            "higher rank Φ has several entries there. Use jacobian_norms."
        )
    zeros = jnp.zeros((steps, heads * p), system.real_dtype)
    _, pullback = jax.vjp(lambda v: scan(values, v)[0], zeros)

    def row(t: Array) -> Array:
        return pullback(zeros.at[t].set(1))[0].reshape(steps, heads, p)

    return row


@_kernel_rows.register
def _(system: KernelSystem, owner: str, steps: int) -> Row:
    """Rows of the attention matrix from the streamed normaliser."""
    log_eta, rows = log_normalizer(system), score_rows(system)

    def row(t: Array) -> Array:
        scores, seen = (x[:, 0].T for x in rows(t[None]))
        return jnp.where(seen, jnp.exp(scores - log_eta[t][None]), 0)[..., None]

    return row


def token_rows(system: System | KernelSystem, steps: int) -> Row:
    """The function t ↦ Φ_{t,·} from tokens, (d_out, L, d), value map and skip included.

    Numerics:
        As `kernel_rows`; with a dense B or C, d_out backward passes of `scan` per row.
    """
    dtype = system.real_dtype
    if has_finite_state(system) and not (
        system.acts_on_values and system.B.rank * system.C.rank == 1
    ):
        y, pullback = jax.vjp(
            lambda u: scan(system, u)[0], jnp.zeros((steps, system.token_width), dtype)
        )
        channels = jnp.arange(y.shape[1])

        def jacobian(t: Array) -> Array:
            at_t = jnp.zeros((y.shape[1], *y.shape), y.dtype).at[channels, t, channels].set(1)
            return jax.vmap(pullback)(at_t)[0]

        return jacobian
    on_values = kernel_rows("token_rows", system, steps)
    W = system.W
    W = jnp.eye(system.token_width, dtype=dtype) if W is None else W.astype(dtype)
    p = system.output_width // system.num_heads
    D = skip_matrix(system) if has_finite_state(system) else None

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
    B, C = system.B, system.C
    if not system.acts_on_values:
        raise ValueError(
            f"{owner}: with a dense B or C the kernel has no values to act on; take the map from "
            "tokens instead, jacobian_norms(lambda u: dsfjax.scan(system, u)[0], u)."
        )
    assert isinstance(B, OuterInput) and isinstance(C, InnerOutput)
    heads, n, p = system.state_shape
    varies = any(x is not None and x.shape[-1] > 1 for x in (B.scale, C.gate))
    varies = varies or system.A.per_channel
    return dataclasses.replace(
        system,
        B=B.on_values(),
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
