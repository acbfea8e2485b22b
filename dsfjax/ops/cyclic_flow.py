r"""Attention through slots that turn by a clock: two sums with a softmax between them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import InnerOutput, OuterInput, Scalar, System
from dsfjax.core.norms import rms_norm
from dsfjax.engines import scan
from dsfjax.ops.batch import CuSeqlens, flat, run, wide
from dsfjax.ops.linear import simple_gla
from dsfjax.ops.op import Assembled, op
from dsfjax.ops.turning import rotate

TICK = 2.0**-10
"""Sums of multiples of this are exact in float32 up to 16384."""


def _clock(delta: Array, *, reset: Array | None = None) -> Assembled:
    """λ_t = λ_{t−1} + δ_t, in two parts (`_split`)."""
    length, heads = delta.shape
    A, B, C = Scalar(jnp.zeros((1, heads), delta.dtype)), OuterInput(), InnerOutput()
    system = System(A, B, C, reset=reset, state_shape=(heads, 1, 2), length=length)
    return Assembled(system, flat(_split(delta)))


def _split(x: Array) -> Array:
    """Ticks and the rest, (…, 2): the rounding of a long sum of both is that of the small rest."""
    ticks = jax.lax.stop_gradient(jnp.round(x / TICK) * TICK)
    return jnp.stack([ticks, x - ticks], axis=-1)


def _time(parts: Array, period: int) -> Array:
    """λ from its two parts (…, 2), but for whole turns, which are taken off while it is exact."""
    return jnp.mod(parts[..., 0], period) + parts[..., 1]


def _turned(x: Array, clock: Array) -> Array:
    """R(λ) x: pair p of the slots (…, M) is turned by 2π p λ / (M − 1)."""
    period = x.shape[-1] - 1
    turn = clock * (2 * math.pi / period)
    pairs = jnp.arange(x.shape[-1] // 2, dtype=turn.dtype)
    return rotate(x, turn[..., None] * pairs.reshape(*[1] * turn.ndim, -1), neighbours=True)


def _written(clock: Array, beta: Array, slots: int) -> Array:
    """β R(−λ) e, where e is √(1 / (M − 1)) in slot 0 and √(2 / (M − 1)) in those of even number."""
    e = jnp.zeros(slots, clock.dtype).at[::2].set(math.sqrt(2 / (slots - 1)))
    e = e.at[0].divide(math.sqrt(2))
    beta = wide(beta).astype(clock.dtype)[..., None]
    return _turned(beta * e.reshape(*[1] * clock.ndim, -1), -clock)


def _read(y: Array, clock: Array, readout: Array) -> Array:
    """R(−λ) Wᵀ softmax(W R(λ) y) of what is read from the slots of keys, (…, H, M).

    Row r of the Fourier matrix is what is written with strength 1 where the clock is −r.
    """
    period = readout.shape[-1]
    place = jnp.arange(period, dtype=y.dtype)
    basis = _written(-place, jnp.ones_like(place), period + 1)
    W = jnp.einsum("hrc,cm->hrm", wide(readout).astype(y.dtype), basis, precision="highest")
    scores = jnp.einsum("hrm,...hm->...hr", W, _turned(y, clock), precision="highest")
    a = jnp.einsum("hrm,...hr->...hm", W, jax.nn.softmax(scores, axis=-1), precision="highest")
    return _turned(a, -clock)


def _cyfa(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    delta: Array,
    beta: Array,
    readout: Array,
    q_norm_weight: Array,
    k_norm_weight: Array,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    *,
    reset: Array | None = None,
) -> tuple[Assembled, Assembled, Assembled]:
    q, k = rms_norm(q, q_norm_weight, q_norm_eps), rms_norm(k, k_norm_weight, k_norm_eps)
    first = _clock(wide(delta), reset=reset)
    clock = _time(scan(*first)[0].reshape(*delta.shape, 2), readout.shape[-1])
    s = _written(clock, beta, readout.shape[-1] + 1).astype(v.dtype)
    second = simple_gla(q, k, s, g, scale=scale, reset=reset)
    y = wide(scan(*second)[0]).reshape(s.shape)
    a = _read(y, clock, readout).astype(v.dtype)
    return first, second, simple_gla(a, s, v, g, scale=1.0, reset=reset)


ClockStates = tuple[Float[Array, "N H K M"], Float[Array, "N H M V"], Float[Array, "N H"]]
"""S, Z and λ: the slots of keys and of values, and the clock."""


@op(_cyfa, "fla.ops.cyfa", "fused_recurrent_cyfa")
def chunk_cyfa(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    delta: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    readout: Float[Array, "H C C"],
    q_norm_weight: Float[Array, " K"],
    k_norm_weight: Float[Array, " K"],
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    initial_state: ClockStates | None = None,
    output_final_state: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Array, tuple[Array, Array, Array] | None]:
    r"""Attention through slots that turn (Cyclic Flow Attention).

    .. math:: λ_t = λ_{t-1} + δ_t, \quad s_t = β_t R(-λ_t) e, \quad
              S_t = e^{g_t} S_{t-1} + k_t s_t^\top, \quad Z_t = e^{g_t} Z_{t-1} + s_t v_t^\top, \\
              a_t = R(-λ_t) W^\top \mathrm{softmax}(W R(λ_t)\, c\, S_t^\top q_t), \quad
              y_t = Z_t^\top a_t,

    with q and k after an RMS norm. There are C places and M = C + 1 slots, the pairs of a Fourier
    series: R(λ) turns pair p by 2πpλ/C, e = (1, 0, √2, 0, √2, 0, …)/√C, and W is ``readout`` times
    the matrix of rows R(r) e.

    Three Systems: of the clock λ, in ticks and a rest, A = B = C = 1; of S, A = e^g I, B = k with s
    as values, C = c q; of Z, A = e^g I, B = s, C = a. D = 0.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        g: Log decay per step and head.
        delta: δ, how far the clock moves.
        beta: β, how much is written.
        readout: Weights of the places, an odd number C of them.
        q_norm_weight: Of the norm of q.
        k_norm_weight: Of the norm of k.
        q_norm_eps: Its ε.
        k_norm_eps: Its ε.
        scale: c, by default K^(-1/2).
        initial_state: (S, Z, λ): [N, H, K, M], [N, H, M, V] and [N, H].
        output_final_state: Whether to return the state at the end.
        cu_seqlens: Starts and end of packed sequences, [N + 1]; then B is 1.
        segment_ids: Documents of each row.

    Returns:
        ``(o, final_state)``: o [B, T, H, V]; (S, Z, λ) at least float32, or None.

    Raises:
        ValueError: If C is even, or the states have another number of slots.
    """
    slots = readout.shape[-1] + 1
    if slots % 2:
        raise ValueError(
            f"chunk_cyfa: expected readout [H, C, C] of an odd number C, got {slots - 1}."
        )
    if initial_state is not None and initial_state[0].shape[-1] != slots:
        raise ValueError(
            f"chunk_cyfa: expected initial_state of M = C + 1 = {slots} slots, got "
            f"{initial_state[0].shape[-1]}."
        )
    S, Z, before = (None, None, None) if initial_state is None else initial_state
    q, k = rms_norm(q, q_norm_weight, q_norm_eps), rms_norm(k, k_norm_weight, k_norm_eps)
    more: Any = {"output_final_state": output_final_state, "cu_seqlens": cu_seqlens}
    more |= {"segment_ids": segment_ids}
    before = None if before is None else _split(before)[..., None, :]
    parts, after = run(_clock, (wide(delta),), (*delta.shape, 2), initial_state=before, **more)
    clock = _time(parts, slots - 1)
    s = _written(clock, beta, slots).astype(v.dtype)
    first = partial(simple_gla, scale=scale)
    y, S = run(first, (q, k, s, g), s.shape, initial_state=S, **more)
    a = _read(wide(y), clock, readout).astype(v.dtype)
    second = partial(simple_gla, scale=1.0)
    o, Z = run(second, (a, s, v, g), v.shape, initial_state=Z, **more)
    if S is None or Z is None or after is None:
        return o, None
    return o, (S, Z, after.sum(axis=(-1, -2)))


fused_recurrent_cyfa = chunk_cyfa
