r"""The real-gated linear recurrent unit of Griffin and RecurrentGemma (arXiv:2402.19427)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import Diagonal, InnerOutput, OuterInput, System
from dsfjax.ops.batch import run, wide
from dsfjax.ops.op import Assembled, op

DECAY_SCALE = 8.0
MAX_SQRT_GRADIENT = 1000.0


def complement(log_a: Array, start: Array, reset: Array | None = None) -> Array:
    """√(1 − a²) of a decay (L, …), and 1 where a document starts, as no state is kept there.

    Args:
        log_a: Log decays (L, …).
        start: Boolean (L,), where documents start.
        reset: Boolean (L,) of further starts, or None.

    Returns:
        The factor (L, …). Its gradient is bounded where a → 1.

    Example:
        >>> complement(jnp.log(jnp.array([0.6, 0.8])), jnp.array([False, True])).tolist()
        [0.800000011920929, 1.0]
    """
    kept = _bounded_sqrt(-jnp.expm1(2 * log_a))
    start = start if reset is None else start | reset
    return jnp.where(start.reshape(-1, *[1] * (log_a.ndim - 1)), 1, kept)


def decay_and_gate(
    v: Array, a_param: Array, a_gate: tuple[Array, Array], input_gate: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Log decays −8 softplus(Λ) r and the gate i of values, both (L, H, p), at least float32.

    Args:
        v: Values (L, H, p).
        a_param: Λ (H, p).
        a_gate: Weights (H, p in, p out) and biases (H, p) of r, before the sigmoid.
        input_gate: Those of i.
    """
    v = wide(v)

    def gate(W: Array, bias: Array) -> Array:
        z = jnp.einsum("lhi,hij->lhj", v, W.astype(v.dtype), precision="highest")
        return jax.nn.sigmoid(z + bias[None].astype(v.dtype))

    rate = DECAY_SCALE * jax.nn.softplus(a_param.astype(v.dtype))[None]
    return -rate * gate(*a_gate), gate(*input_gate)


def gated_channels(log_a: Array, scale: Array, *, reset: Array | None = None) -> System:
    """h_t = e^{log a_t} ⊙ h_{t−1} + scale_t ⊙ v_t, y = h, with log a and the scale (L, H, p)."""
    length, heads, p = log_a.shape
    return System(
        Diagonal(log_a[:, :, None, :]),
        OuterInput(scale=scale),
        InnerOutput(),
        reset=reset,
        state_shape=(heads, 1, p),
        length=length,
    )


def _rg_lru(
    x: Array,
    segment_pos: Array,
    a_param: Array,
    input_gate_w: Array,
    input_gate_b: Array,
    a_gate_w: Array,
    a_gate_b: Array,
    *,
    reset: Array | None = None,
) -> Assembled:
    heads, p = a_gate_b.shape
    log_a, i = decay_and_gate(
        x.reshape(-1, heads, p),
        a_param.reshape(heads, p),
        (a_gate_w, a_gate_b),
        (input_gate_w, input_gate_b),
    )
    start = segment_pos == 0
    reset = start if reset is None else start | reset
    return Assembled(gated_channels(log_a, complement(log_a, reset) * i, reset=reset), x)


@op(_rg_lru, "recurrentgemma.jax.layers", peer_name="RGLRU")
def rg_lru(
    x: Float[Array, "B T D"],
    segment_pos: Int[Array, "B T"],
    cache: Float[Array, "B D"] | None = None,
    return_cache: bool = True,
    *,
    a_param: Float[Array, " D"],
    input_gate_w: Float[Array, "H P P"],
    input_gate_b: Float[Array, "H P"],
    a_gate_w: Float[Array, "H P P"],
    a_gate_b: Float[Array, "H P"],
) -> tuple[Array, Array | None]:
    r"""A recurrence of single channels whose input is scaled by what its decay forgets (RG-LRU).

    .. math:: h_t = a_t ⊙ h_{t-1} + \sqrt{1 - a_t^2} ⊙ i_t ⊙ x_t, \quad y_t = h_t, \quad
              a_t = e^{-8\, \mathrm{softplus}(Λ) ⊙ r_t},

    with gates r = σ(x W_a + b_a) and i = σ(x W_x + b_x) of H blocks of channels. A = a per channel,
    B = √(1 − a²) i, C = 1, D = 0. Where ``segment_pos`` is 0 a document starts: the state before it
    is forgotten, and √(1 − a²) is 1.

    Args:
        x: Inputs.
        segment_pos: Place of every step in its document.
        cache: h, that of the steps before; None for zero.
        return_cache: Whether to return the state at the end.
        a_param: Λ.
        input_gate_w: Weights of i, (H, P in, P out) with D = H·P.
        input_gate_b: Biases of i.
        a_gate_w: Weights of r.
        a_gate_b: Biases of r.

    Returns:
        ``(y, cache)``: y [B, T, D]; h [B, D] at least float32, or None.

    Raises:
        ValueError: If the blocks of the gates are not those of the channels.

    Numerics:
        The gradient of √(1 − a²) is bounded by 1000, as the peer's, where a → 1. Gates and decays
        are computed in at least float32, those of the peer in the dtype of x.

    References:
        De et al. (2024), arXiv:2402.19427.

    Example:
        A gate of ½ everywhere; the second token is the first of its document:

        >>> zero = {"input_gate_w": jnp.zeros((1, 1, 1)), "input_gate_b": jnp.zeros((1, 1))}
        >>> zero |= {"a_gate_w": jnp.zeros((1, 1, 1)), "a_gate_b": jnp.zeros((1, 1))}
        >>> x, where = jnp.ones((1, 3, 1)), jnp.array([[5, 0, 1]])
        >>> y, cache = rg_lru(x, where, a_param=jnp.zeros(1), **zero)
        >>> [round(h, 4) for h in y[0, :, 0].tolist()]
        [0.499, 0.5, 0.5303]
    """
    heads, p = a_gate_b.shape
    if x.shape[2] != heads * p:
        raise ValueError(
            f"rg_lru: expected x of {heads} · {p} = {heads * p} channels, H·P of the gates, got "
            f"{x.shape[2]}."
        )
    weights = {
        "a_param": a_param,
        "input_gate_w": input_gate_w,
        "input_gate_b": input_gate_b,
        "a_gate_w": a_gate_w,
        "a_gate_b": a_gate_b,
    }
    y, last = run(
        partial(_rg_lru, **weights),
        (x, segment_pos),
        x.shape,
        initial_state=None if cache is None else cache.reshape(-1, heads, 1, p),
        output_final_state=return_cache,
    )
    return y, None if last is None else last.reshape(x.shape[0], -1)


@jax.custom_jvp
def _bounded_sqrt(x: Array) -> Array:
    """√x with a derivative of at most `MAX_SQRT_GRADIENT`."""
    return jnp.sqrt(x)


@_bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    floor = 1 / (4 * MAX_SQRT_GRADIENT**2)
    return jnp.sqrt(x), dx * (0.5 / jnp.sqrt(jnp.maximum(x, floor)))
