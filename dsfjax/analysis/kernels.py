r"""The kernel Φ as what a model looks at: impulse responses, receptive fields, attention maps.

Every structure has a kernel, so a state space model or an RNN has an "attention map" as well.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.analysis.rows import kernel_rows, map_rows
from dsfjax.core import KernelSystem, System, steps
from dsfjax.engines import scan


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
    step: int,
    token: Float[Array, " d"],
    *,
    length: int | None = None,
) -> ImpulseResponse:
    r"""Outputs and states when the only token is u_s, all others and the initial state being 0.

    .. math:: h_t = A_t \cdots A_{s+1} B_s u_s, \qquad y_t = Φ_{t,s} u_s .

    A, B, C and η stay those of the given system: only what it acts on is replaced.

    Args:
        system: A finite or kernel system.
        step: s, 0 ≤ s < L.
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
    if not 0 <= step < length:
        raise ValueError(f"impulse_response: expected 0 ≤ step < {length}, got {step}.")
    u = jnp.zeros((length, token.shape[0]), token.dtype).at[step].set(token)
    if not has_finite_state(system):
        return ImpulseResponse(scan(system, u)[0], None)
    y, _, h = scan(system, u, return_states=True)
    return ImpulseResponse(y, h[..., : system.state_shape[2]])  # without the z of a summed η


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
        block: Rows of Φ held at a time.

    Returns:
        r (L, H), or (L, H, p) if Φ varies over the value channels; 1 means the present step alone,
        0 that the row of Φ is zero, or not a number.

    Raises:
        ValueError: If the share is not in (0, 1], or B or C is dense (use `reach` on
            `jacobian_norms`).

    Numerics:
        O(block · L N) memory and O(L² N) work: no L×L array.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> receptive_field(ema, 0.9, length=6)[:, 0].tolist()
        [1, 2, 3, 3, 3, 4]
    """
    length = steps(system, length, owner="receptive_field")
    _check_share("receptive_field", share)
    row = kernel_rows("receptive_field", system, length)

    def reach_of(t: Array) -> Array:
        return _reach(jnp.abs(row(t)), t, share)

    found = map_rows(reach_of, length, block)
    return found[:, :, 0] if found.shape[2] == 1 else found


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
