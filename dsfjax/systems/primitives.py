"""Small pieces that several architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from dsfjax._util.names import choose
from dsfjax.core.dtypes import state_dtype
from dsfjax.engines.recurrence import project

Init = Literal["published", "authors"]


def affine(W: Array, u: Array, bias: Array | None = None, *, wide: bool = False) -> Array:
    """W u_t + bias for every step; W (…, out, d) gives (L, …, out).

    In the dtype of u. ``wide`` keeps at least float32, for what ends in an exponent of the decay or
    the normaliser: there an error of bfloat16 would be multiplied by its size.
    """
    *lead, d = W.shape
    y = project(u, W.reshape(-1, d), "default" if u.dtype == jnp.bfloat16 else "highest")
    y = y.reshape(u.shape[0], *lead).astype(state_dtype(u.dtype) if wide else u.dtype)
    return y if bias is None else y + bias[None].astype(y.dtype)


def low_rank(
    down: Array,
    up: Array,
    u: Array,
    bias: Array | None = None,
    activation: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """A gate of low rank, W_up f(W_down u_t) + bias, in at least float32."""
    return affine(up, activation(affine(down, u, wide=True)), bias)


def rotary_frequencies(channels: int, base: float) -> tuple[float, ...]:
    """The frequencies of rotary positions, base^(−2i/channels) radians per step, one per pair.

    Example:
        >>> rotary_frequencies(4, 100.0)
        (1.0, 0.1)
    """
    return tuple(base ** (-2 * i / channels) for i in range(channels // 2))


def rotated(
    x: Float[Array, "L H m"],
    positions: Int[Array, " L"],
    frequencies: tuple[float, ...],
    *,
    amplitude: float = 1.0,
) -> Float[Array, "L H m"]:
    """Rotary positions on the first 2·len(frequencies) channels, halves paired.

    (x_i, x_{i+n}) is rotated by the angle position · frequency_i (arXiv:2104.09864, in the layout
    of GPT-NeoX); the channels after them stay as they are. So qᵀk depends on how far the positions
    lie apart alone.

    Args:
        x: Queries or keys (L, H, m).
        positions: Of the steps in their document (L,).
        frequencies: In radians per step; none for no rotation.
        amplitude: Of the channels that are rotated, next to what they were.

    Returns:
        The same, rotated, of the dtype of x; angles are float32 at least.

    Example:
        >>> x = jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]])
        >>> turned = rotated(x, jnp.arange(2), (math.pi / 4,))
        >>> [round(channel, 3) for channel in turned[1, 0].tolist()]
        [0.707, 0.707]
    """
    n = len(frequencies)
    if n == 0:
        return x
    wide = state_dtype(x.dtype)
    angle = positions.astype(wide)[:, None] * jnp.asarray(np.array(frequencies), wide)[None]
    cos, sin = (amplitude * wave(angle)[:, None] for wave in (jnp.cos, jnp.sin))
    a, b = (part.astype(wide) for part in (x[..., :n], x[..., n : 2 * n]))
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * n :]], axis=-1)


def decay_of_step(A_log: Array, z: Array) -> Array:
    """Log decay −e^{A_log} softplus(z_t) of Mamba-2 and its successors; A_log (H,), z (L, H, …)."""
    rate = jnp.exp(A_log).astype(z.dtype)
    return -rate.reshape(1, -1, *[1] * (z.ndim - 2)) * jax.nn.softplus(z)


def projection(key: Array, shape: tuple[int, ...], init: Init) -> Array:
    """Weights of a linear map, input axis last: N(0, 1/d) published, N(0, 0.02²) by the authors."""
    choose("init", init, ("published", "authors"))
    std = 0.02 if init == "authors" else 1 / math.sqrt(shape[-1])
    return std * jax.random.normal(key, shape)


def step_bias(key: Array, shape: tuple[int, ...], init: Init) -> Array:
    """Bias b, softplus(b) log-uniform in [1e-3, 0.1] (Mamba); by the authors 0, so 0.69."""
    if init == "authors":
        return jnp.zeros(shape)
    low, high = math.log(1e-3), math.log(0.1)
    return inverse_softplus(jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high)))


def log_rates(
    key: Array, shape: tuple[int, ...], init: Init, *, minimum: float = 0.0, maximum: float = 16.0
) -> Array:
    """A_log, e^{A_log} uniform between two numbers; by the authors 0."""
    if init == "authors":
        return jnp.zeros(shape)
    tiny = jnp.finfo(float).tiny  # a rate of exactly 0 has no logarithm
    return jnp.log(jax.random.uniform(key, shape, minval=max(minimum, float(tiny)), maxval=maximum))


def inverse_softplus(x: Array) -> Array:
    """The y with log(1 + e^y) = x, for x > 0.

    Example:
        >>> round(float(jax.nn.softplus(inverse_softplus(jnp.array(0.01)))), 6)
        0.01
    """
    return x + jnp.log(-jnp.expm1(-x))


def elu1(x: Array) -> Array:
    """The feature map elu(x) + 1 of linear attention, positive.

    For x < 0 that is e^x, which stays positive where (e^x − 1) + 1 has rounded to 0.

    Example:
        >>> elu1(jnp.array([-30.0, 0.0, 2.0])).tolist()
        [9.357622912219837e-14, 1.0, 3.0]
    """
    # Not minimum(x, 0), whose derivative at 0 is ½.
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def log_softplus(x: Array) -> Array:
    """Logarithm of log(1 + e^x); below −30 that is x to rounding, with a gradient of 1.

    Example:
        >>> [round(x, 3) for x in log_softplus(jnp.array([-200.0, 1.0])).tolist()]
        [-200.0, 0.273]
    """
    return jnp.where(x < -30, x, jnp.log(jax.nn.softplus(jnp.where(x < -30, -30, x))))


def divide(name: str, total: int, parts: int, what: str) -> int:
    """The quotient total / parts, or an error that names the nearest divisor."""
    if parts < 1 or total % parts:
        divisors = [k for k in range(1, total + 1) if total % k == 0]
        nearest = min(divisors, key=lambda k: (abs(k - parts), k))
        raise ValueError(
            f"{name}: {what} = {total} is not divisible by {parts}; the nearest number that "
            f"divides it is {nearest}."
        )
    return total // parts


def labels_without_decay(*fields: str) -> Callable[[Any], Any]:
    """Labels for a NamedTuple of parameters: "no_decay" for ``fields`` and biases, else "decay"."""

    def labels(params: Any) -> Any:
        def label(name: str, value: object) -> str | None:
            plain = name in fields or name.startswith("bias")
            return None if value is None else "no_decay" if plain else "decay"

        return type(params)(*(label(k, v) for k, v in params._asdict().items()))

    return labels


def weights_decay(params: Any) -> Any:
    """Labels for a NamedTuple of parameters: "decay" for fields W_…, "no_decay" for all others."""
    kinds = {
        name: None if value is None else "decay" if name.startswith("W") else "no_decay"
        for name, value in params._asdict().items()
    }
    return type(params)(**kinds)
