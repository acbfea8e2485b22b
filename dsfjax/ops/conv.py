"""The short causal convolution of causal-conv1d, in its layout: channels before time."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from dsfjax.core import Dense, InnerOutput, OuterInput, System, ValueSkip
from dsfjax.core.dtypes import whole_numbers
from dsfjax.ops.batch import Cache, Indices, wide
from dsfjax.ops.op import Assembled, op

Activation = Literal["silu", "swish"] | None


def _conv(x: Array, weight: Array, bias: Array | None = None) -> Assembled:
    """The last W − 1 inputs as a state that moves on by one, read before the new one comes in."""
    (channels, width), dtype = weight.shape, wide(x).dtype
    if width < 2:
        raise ValueError(f"causal_conv1d_fn.system: expected W >= 2 taps, got {width}.")
    if bias is not None:
        raise ValueError(
            "causal_conv1d_fn.system: expected no bias, which is no linear function of the inputs; "
            "add it to the outputs."
        )
    # State n of a channel: its input W − 1 − n steps ago. All but the last taps weigh them.
    A = Dense(jnp.eye(width - 1, k=1, dtype=dtype)[None])
    B = OuterInput(jnp.eye(width - 1, dtype=dtype)[None, -1:])
    C = InnerOutput(weight[None, :, :-1].astype(dtype), before_update=True)
    D = ValueSkip(weight[None, :, -1:].astype(dtype))
    shape = (channels, width - 1, 1)
    return Assembled(System(A, B, C, D, state_shape=shape, length=x.shape[1]), x.T)


@op(_conv, "causal_conv1d")
def causal_conv1d_fn(
    x: Float[Array, "B D T"],
    weight: Float[Array, "D W"],
    bias: Float[Array, " D"] | None = None,
    seq_idx: Int[Array, "B T"] | None = None,
    initial_states: Float[Array, "B D _"] | None = None,
    return_final_states: bool = False,
    *,
    activation: Activation = None,
) -> Array | tuple[Array, Array]:
    r"""A convolution per channel over the last W inputs.

    .. math:: y_t = f(b + \sum_{j=0}^{W-1} w_{W-1-j} \, x_{t-j}) .

    Args:
        x: Inputs, time last.
        weight: Taps, the last one for the present input.
        bias: b.
        seq_idx: Documents of each row: taps do not reach into another one, and outputs where it is
            negative are 0.
        initial_states: The inputs before the first, [B, D, W − 1]; by default 0.
        return_final_states: Whether to return the last W − 1 inputs.
        activation: f, "silu" (or "swish", the same) or None.

    Returns:
        y [B, D, T] in the dtype of x; with ``return_final_states`` also [B, D, W − 1]. Its
        ``system`` has the inputs of before as state (D, W − 1, 1), and no bias or activation.

    Raises:
        ValueError: For states together with ``seq_idx``, or shapes that do not fit.

    Example:
        >>> x, w = jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([[10.0, 1.0]])
        >>> causal_conv1d_fn(x, w).tolist()
        [[[1.0, 12.0, 23.0]]]
    """
    batch, channels, length = x.shape
    width = weight.shape[1]
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError(
            "causal_conv1d_fn: expected no initial or final states next to seq_idx, got both; "
            "leave one of them out."
        )
    past = _past(x, initial_states, width, "causal_conv1d_fn", "initial_states")
    full = jnp.concatenate([past, x], axis=2)
    y = jnp.zeros((batch, channels, length), wide(x).dtype)
    for back in range(width):
        tap = wide(jax.lax.slice_in_dim(full, width - 1 - back, width - 1 - back + length, axis=2))
        if seq_idx is not None and back:
            before = jnp.pad(seq_idx, [(0, 0), (back, 0)], constant_values=-1)[:, :length]
            tap = jnp.where((before == seq_idx)[:, None], tap, 0)
        y = y + wide(weight[None, :, width - 1 - back, None]).astype(y.dtype) * tap
    y = _finished(y, bias, activation)
    if seq_idx is not None:
        y = jnp.where((seq_idx >= 0)[:, None], y, 0)
    y = y.astype(x.dtype)
    return (y, full[:, :, length:]) if return_final_states else y


@op(_conv, "causal_conv1d")
def causal_conv1d_update(
    x: Float[Array, "B D T"] | Float[Array, "B D"],
    conv_state: Float[Array, "N D S"],
    weight: Float[Array, "D W"],
    bias: Float[Array, " D"] | None = None,
    activation: Activation = None,
    cache_seqlens: Int[Array, " B"] | None = None,
    conv_state_indices: Indices | None = None,
) -> tuple[Array, Array]:
    """Some more steps of `causal_conv1d_fn`, from the state that it left.

    Args:
        x: New inputs, [B, D, T], or [B, D] for one.
        conv_state: The last S ≥ W − 1 inputs.
        weight: Taps.
        bias: Bias.
        activation: As of `causal_conv1d_fn`.
        cache_seqlens: How many inputs each row has seen: the state is then a ring, in which input t
            lies at t modulo S. By default the newest input is the last.
        conv_state_indices: The row of the state of each row of x, [B]; by default the same, N = B.
            Rows of x with a negative one are padding, with outputs 0 and no state; so are those
            beyond the last if that is not known while tracing.

    Returns:
        ``(y, conv_state)``: outputs like x, and the new state, which the peer's writes in place.

    Raises:
        ValueError: If shapes do not fit, or an index is beyond the last state.

    Example:
        >>> state, w = jnp.array([[[2.0]]]), jnp.array([[10.0, 1.0]])
        >>> y, state = causal_conv1d_update(jnp.array([[3.0]]), state, w)
        >>> y.tolist(), state.tolist()
        ([[23.0]], [[[3.0]]])
    """
    new = x if x.ndim == 3 else x[:, :, None]
    length, width, size = new.shape[2], weight.shape[1], conv_state.shape[2]
    if size < width - 1 or (cache_seqlens is not None and length > size):
        raise ValueError(
            f"causal_conv1d_update: expected a conv_state of at least W - 1 = {width - 1} inputs, "
            f"of a ring at least the {length} new ones, got {size}."
        )
    names = "causal_conv1d_update", "conv_state_indices"
    cache = Cache.of(*names, conv_state, conv_state_indices, new.shape[0])
    rows, new = cache.rows, new.astype(conv_state.dtype)
    if cache_seqlens is None:
        past, kept = rows, jnp.concatenate([rows, new], axis=2)[:, :, length:]
    else:
        cache_seqlens = whole_numbers("causal_conv1d_update", "cache_seqlens", cache_seqlens)
        seen = (
            cache_seqlens[:, None] - jnp.arange(width - 1, 0, -1, dtype=cache_seqlens.dtype)[None]
        )
        past = jnp.take_along_axis(rows, (seen % size)[:, None], axis=2)
        place = cache_seqlens[:, None] + jnp.arange(length, dtype=cache_seqlens.dtype)[None]
        kept = jax.vmap(lambda row, at, x: row.at[:, at].set(x))(rows, place % size, new)
    past = past[:, :, past.shape[2] - (width - 1) :]
    y = causal_conv1d_fn(new, weight, bias, None, past, activation=activation)
    assert isinstance(y, Array)
    return cache.padded(y.astype(x.dtype).reshape(x.shape)), cache.updated(kept)


def _past(x: Array, states: Array | None, width: int, owner: str, name: str) -> Array:
    shape = (*x.shape[:2], width - 1)
    if states is None:
        return jnp.zeros(shape, x.dtype)
    if states.shape != shape:
        raise ValueError(
            f"{owner}: expected {name} of shape [B, D, W - 1] = {list(shape)}, got "
            f"{list(states.shape)}."
        )
    return states.astype(x.dtype)


def _finished(y: Array, bias: Array | None, activation: Activation) -> Array:
    """Outputs [B, D, T] with bias and activation."""
    y = y if bias is None else y + bias[None, :, None].astype(y.dtype)
    if activation not in (None, "silu", "swish"):
        raise ValueError(
            f"causal_conv1d: expected activation to be None, 'silu' or 'swish', got {activation!r}."
        )
    return y if activation is None else jax.nn.silu(y)
