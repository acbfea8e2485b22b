r"""The kernel Φ as what a model looks at: rows, receptive fields, attention maps.

Every structure has a kernel, so a state space model or an RNN has an "attention map" as well. Its
rows come one at a time, without the L×L array. Head h, channel j of an output reads head h, channel
j of the values alone. So one run of L copies of the system, of which copy s is given a one at step
s, has the row Φ_{t,·} of every head and channel as its outputs at step t; and since y_t is linear
in the values, one pullback of it gives a row by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from dsfjax._util.jitted import jitted
from dsfjax.analysis.copies import step_of_copies
from dsfjax.analysis.normalizer import channel_maps, has_finite_state, normalized
from dsfjax.analysis.positions import Number, checked_step
from dsfjax.core import KernelSystem, System, steps
from dsfjax.core.composition import with_length
from dsfjax.core.dense import skip_matrix
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.transitions import group_of
from dsfjax.engines import by_steps, log_normalizer, scan
from dsfjax.engines.attention import score_rows

T = TypeVar("T")
Row = Callable[[Array], Array]


def kernel_rows(owner: str, system: System | KernelSystem, steps: int) -> Row:
    """The function t ↦ Φ_{t,·} on values, (L, H, p), or (L, H, 1) if it does not vary over p.

    Zeros after t. They equal the rows of `dsfjax.materialize`; real, in the dtype of the state.

    Numerics:
        A row costs one backward pass of `scan`, O(L N) work and memory, and for a `KernelSystem`
        O(L H m). For all rows in their order `each_row` takes less.
    """
    return _kernel_rows(system, owner, steps)


def each_row(
    owner: str,
    system: System | KernelSystem,
    length: int,
    f: Callable[[Array, Array], T],
    *,
    block: int = 1,
) -> T:
    """``f(t, Φ_{t,·})`` of every row of `kernel_rows`, stacked.

    Numerics:
        Of a finite state one run of L copies of it, O(L² N) work and O(L N) memory: 8 times
        faster than row after row (64 channels of 16 states, L = 512, 2 cores). Of a `KernelSystem`
        ``block`` rows at a time.
    """
    if has_finite_state(system):
        return _row_after_row(_on_single_values(owner, system), length, f)
    row = kernel_rows(owner, system, length)
    return map_rows(lambda t: f(t, row(t)), length, block)


def _row_after_row(values: System, length: int, f: Callable[[Array, Array], T]) -> T:
    heads, _, p = values.state_shape
    paper = normalized(values, length=length)
    arrays, step_of = by_steps(paper, length)
    index = jnp.arange(length)

    def advance(h: Array, now: tuple[Array, list[Array]]) -> tuple[Array, T]:
        t, arrays = now
        ones = jnp.where((index == t)[:, None], jnp.ones((1, heads * p), values.real_dtype), 0)
        y, h = step_of_copies(with_length(step_of(arrays), 1), ones, h)
        return h, f(t, y.reshape(length, heads, p))

    start = jnp.zeros((length, *paper.carried_shape), state_dtype(paper.dtype))
    return jax.lax.scan(advance, start, (index, arrays))[1]


@singledispatch
def _kernel_rows(system: Any, owner: str, steps: int) -> Row:
    raise TypeError(f"{owner}: expected a System or KernelSystem, got {type(system).__name__}.")


@_kernel_rows.register
def _(system: System, owner: str, steps: int) -> Row:
    values = _on_single_values(owner, system)
    heads, _, p = values.state_shape
    zeros = jnp.zeros((steps, heads * p), system.real_dtype)
    _, pullback = jax.vjp(lambda v: scan(values, v)[0], zeros)

    def row(t: Array) -> Array:
        return pullback(zeros.at[t].set(1))[0].reshape(steps, heads, p)

    return row


def _on_single_values(owner: str, system: System) -> System:
    """`on_values` of a system with one value and one output per channel."""
    values = on_values(owner, system)
    if values.B.rank * values.C.rank > 1:
        raise ValueError(
            f"{owner}: expected one value and one output per channel; with an input or output of "
            "higher rank Φ has several entries there. Use jacobian_norms."
        )
    return values


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
    if has_finite_state(system) and not has_channels(system):
        y, pullback = jax.vjp(
            lambda u: scan(system, u)[0], jnp.zeros((steps, system.token_width), dtype)
        )
        channels = jnp.arange(y.shape[1])

        def jacobian(t: Array) -> Array:
            at_t = jnp.zeros((y.shape[1], *y.shape), y.dtype).at[channels, t, channels].set(1)
            return jax.vmap(pullback)(at_t)[0]

        return jacobian
    on_values = kernel_rows("token_rows", system, steps)
    W = system.map_of_heads() if isinstance(system, KernelSystem) else system.W
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


def has_channels(system: System) -> bool:
    """Whether Φ has one entry per pair of steps for each value channel."""
    return system.acts_on_values and system.B.rank * system.C.rank == 1


def on_values(owner: str, system: System) -> System:
    """The system that acts on values, with one channel if nothing varies over the channels."""
    if not system.acts_on_values:
        raise ValueError(
            f"{owner}: with a dense B or C the kernel has no values to act on; take the map from "
            "tokens instead, jacobian_norms(lambda u: dsfjax.scan(system, u)[0], u)."
        )
    B, C = channel_maps(system)
    heads, n, p = system.state_shape
    varies = any(x is not None and x.shape[-1] > 1 for x in (B.scale, C.gate))
    varies = varies or system.A.per_channel
    return dataclasses.replace(
        system,
        B=B.on_values(),
        D=None,
        state_shape=(heads, n, p if varies else 1),
    )


def of_head(owner: str, system: System, head: int, channels: Array) -> System:
    """The system of one head on its values, of those of some channels if Φ varies over them.

    Args:
        owner: Name for the message.
        system: A system that acts on values.
        head: The head.
        channels: Numbers of the channels.

    Returns:
        A system with one head, whose Φ is that of the head and channels.
    """
    system = on_values(owner, system)
    (heads, n, p), (B, C), A = system.state_shape, channel_maps(system), system.A.of_head(head)
    channels = channels if p > 1 else jnp.zeros(1, int)

    def some(x: Array | None) -> Array | None:
        return x if x is None or x.shape[-1] == 1 else x[..., channels]

    b, c, scale, gate = (group_of(x, head, heads, -2) for x in (B.b, C.c, B.scale, C.gate))
    return dataclasses.replace(
        system,
        A=jax.tree.map(some, A) if A.per_channel else A,
        B=dataclasses.replace(B, b=b, scale=some(scale)),
        C=C.with_arrays(c, some(gate)),
        eta=jax.tree.map(lambda x: group_of(x, head, heads), system.eta),
        state_shape=(1, n, channels.size),
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


class ImpulseResponse(NamedTuple):
    """Answer of a system to one token among zeros.

    Attributes:
        y: Outputs (L, d_out).
        h: States (L, H, n, p), un-normalised; None for a `KernelSystem`, which has no finite state.
    """

    y: Float[Array, "L d_out"]
    h: Inexact[Array, "L H n p"] | None


class AttentionMap(NamedTuple):
    """Where every step reads, averaged over cells of neighbouring steps.

    Attributes:
        weights: (H, R, R) indexed [head, reading step, step read]; a row sums to 1, or to 0 if
            nothing is read.
        edges: First step of every cell and L, (R + 1,).
    """

    weights: Float[Array, "H R R"]
    edges: Int[Array, " R1"]


def impulse_response(
    system: System | KernelSystem,
    step: Number,
    token: Float[Array, " d"],
    *,
    length: int | None = None,
) -> ImpulseResponse:
    r"""Outputs and states when the only token is u_s, all others and the initial state being 0.

    .. math:: h_t = A_t \cdots A_{s+1} B_s u_s, \qquad y_t = Φ_{t,s} u_s .

    A, B, C and η stay those of the given system: only what it acts on is replaced.

    Args:
        system: A finite or kernel system.
        step: s, 0 ≤ s < L, which may be traced.
        token: u_s (d,), for example a unit vector.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        An `ImpulseResponse` in the dtype of the token and of the state.

    Raises:
        ValueError: If the step lies outside the sequence, or the token does not fit.

    Numerics:
        One `scan`; the states take O(L N) memory.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> impulse_response(ema, 1, jnp.ones(1), length=4).y[:, 0].tolist()
        [0.0, 1.0, 0.5, 0.25]
    """
    length = steps(system, length, owner="impulse_response")
    step = checked_step("impulse_response", step, length)
    return _impulse_response(system, jnp.asarray(step), token, length)


@jitted("length")
def _impulse_response(
    system: System | KernelSystem, step: Array, token: Array, length: int
) -> ImpulseResponse:
    u = jnp.zeros((length, token.shape[0]), token.dtype).at[step].set(token)
    if not has_finite_state(system):
        return ImpulseResponse(scan(system, u)[0], None)
    y, _, h = scan(system, u, return_states=True)
    return ImpulseResponse(y, h[..., : system.state_shape[2]])  # without the z of a summed η


@jitted("share", "length", "block")
def receptive_field(
    system: System | KernelSystem,
    share: float = 0.9,
    *,
    length: int | None = None,
    block: int = 16,
) -> Int[Array, "L H *p"]:
    r"""The number of latest steps that carry a share of what a step reads.

    .. math:: r_t = \min \{ r : \sum_{s > t - r} |Φ_{t,s}| \ge q \sum_{s \le t} |Φ_{t,s}| \}.

    The distribution over t is the array itself: take its quantiles or histogram over axis 0.

    Args:
        system: A finite or kernel system with values between W and Φ.
        share: q, in (0, 1].
        length: L, needed only if nothing in the system varies in time.
        block: Rows of Φ held at a time, of a `KernelSystem`.

    Returns:
        r (L, H), or (L, H, p) if Φ varies over the value channels; 1 means the present step alone,
        0 that the row of Φ is zero, or not a number.

    Raises:
        ValueError: If the share is not in (0, 1], or B or C is dense (use `reach` on
            `jacobian_norms`).

    Numerics:
        O(L N) memory and O(L² N) work: no L×L array.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> receptive_field(ema, 0.9, length=6)[:, 0].tolist()
        [1, 2, 3, 3, 3, 4]
    """
    length = steps(system, length, owner="receptive_field")
    _check_share("receptive_field", share)

    def reach_of(t: Array, row: Array) -> Array:
        return _reach(jnp.abs(row), t, share)

    found = each_row("receptive_field", system, length, reach_of, block=block)
    return found[:, :, 0] if found.shape[2] == 1 else found


@jitted("share")
def reach(weights: Float[Array, "*lead L L"], share: float = 0.9) -> Int[Array, "*lead L"]:
    """`receptive_field` of any map (…, L, L) of non-negative weights, indexed […, t, s].

    Args:
        weights: Norms of a causal kernel, as `jacobian_norms` gives them.
        share: q, in (0, 1].

    Returns:
        The number of latest steps that carry the share, (…, L).

    Example:
        >>> reach(jnp.array([[1.0, 0.0], [9.0, 1.0]]), 0.5).tolist()
        [1, 2]
    """
    _check_share("reach", share)
    steps = weights.shape[-1]
    rows = jnp.moveaxis(weights.reshape(-1, steps, steps), 0, 2)  # (t, s, lead)
    found = jax.vmap(lambda row, t: _reach(row, t, share))(rows, jnp.arange(steps))
    return found.T.reshape(weights.shape[:-1])


@jitted("size", "length", "block")
def attention_map(
    system: System | KernelSystem, size: int = 128, *, length: int | None = None, block: int = 16
) -> AttentionMap:
    r"""Data of an attention-map plot for any structure, at most size × size per head.

    .. math:: a_{t,s} = |Φ_{t,s}| \Big/ \sum_{s'} |Φ_{t,s'}|,

    with the root mean square over the value channels as |Φ| where it varies over them.

    Args:
        system: A finite or kernel system with values between W and Φ.
        size: Most cells per axis; longer sequences are averaged over ⌈L/size⌉ steps.
        length: L, needed only if nothing in the system varies in time.
        block: Rows of Φ held at a time.

    Returns:
        An `AttentionMap` with R = ⌈L/⌈L/size⌉⌉ cells.

    Raises:
        ValueError: If B or C is dense (plot `jacobian_norms` instead).

    Numerics:
        O(block · L N + H R²) memory.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((1, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> attention_map(s, length=2).weights[0].tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    length = steps(system, length, owner="attention_map")
    cell = -(-length // size)
    count = -(-length // cell)
    row = kernel_rows("attention_map", system, length)

    def shares(t: Array) -> Array:
        weights = jnp.sqrt(jnp.mean(jnp.square(row(t)), axis=2))
        total = weights.sum(axis=0, keepdims=True)
        weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0)
        padded = jnp.pad(weights, ((0, count * cell - length), (0, 0)))
        return padded.reshape(count, cell, -1).sum(axis=1)  # (R, H)

    # One cell of reading steps after the other; the last one may be shorter.
    def cell_mean(i: Array) -> Array:
        t = i * cell + jnp.arange(cell)
        found = jax.lax.map(shares, jnp.minimum(t, length - 1), batch_size=min(block, cell))
        inside = (t < length).astype(found.dtype)
        return jnp.einsum("t,trh->hr", inside / inside.sum(), found)

    weights = jax.lax.map(cell_mean, jnp.arange(count), batch_size=max(1, block // cell))
    edges = jnp.minimum(jnp.arange(count + 1) * cell, length)
    return AttentionMap(weights.transpose(1, 0, 2), edges)


def _reach(weights: Array, t: Array, share: float) -> Array:
    """Latest steps that carry the share, of weights (L, …) of the row t."""
    from_step = jnp.cumsum(weights[::-1], axis=0)[::-1]  # Σ over s' ≥ s
    steps = jnp.arange(weights.shape[0]).reshape((-1,) + (1,) * (weights.ndim - 1))
    enough = (from_step >= share * from_step[:1]) & (steps <= t)
    return jnp.where(from_step[0] > 0, t + 2 - enough.sum(axis=0), 0)


def _check_share(owner: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"{owner}: expected a share in (0, 1], got {share}.")
