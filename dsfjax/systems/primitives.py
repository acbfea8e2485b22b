"""Small pieces that several architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.engines.recurrence import project

Init = Literal["published", "authors"]


def affine(W: Array, u: Array, bias: Array | None = None) -> Array:
    """W u_t + bias for every step; W (…, out, d) gives (L, …, out)."""
    *lead, d = W.shape
    y = project(u, W.reshape(-1, d), "default" if u.dtype == jnp.bfloat16 else "highest")
    y = y.reshape(u.shape[0], *lead).astype(u.dtype)
    return y if bias is None else y + bias[None].astype(y.dtype)


def projection(key: Array, shape: tuple[int, ...], init: Init) -> Array:
    """Weights of a linear map, input axis last: N(0, 1/d) as published, N(0, 0.02²) by the authors."""
    check_choice("init", init, ("published", "authors"))
    std = 0.02 if init == "authors" else 1 / math.sqrt(shape[-1])
    return std * jax.random.normal(key, shape)


def step_bias(key: Array, shape: tuple[int, ...], init: Init) -> Array:
    """b with softplus(b) log-uniform in [1e-3, 0.1] (Mamba); 0, so a step of 0.69, by the authors."""
    if init == "authors":
        return jnp.zeros(shape)
    low, high = math.log(1e-3), math.log(0.1)
    return inverse_softplus(jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high)))


def inverse_softplus(x: Array) -> Array:
    """y with log(1 + e^y) = x, for x > 0.

    Example:
        >>> round(float(jax.nn.softplus(inverse_softplus(jnp.array(0.01)))), 6)
        0.01
    """
    return x + jnp.log(-jnp.expm1(-x))


def elu1(x: Array) -> Array:
    """The feature map elu(x) + 1 of linear attention, positive."""
    return jax.nn.elu(x) + 1


def divide(name: str, total: int, parts: int, what: str) -> int:
    """total / parts, or an error that names the nearest number of parts that divides."""
    if parts < 1 or total % parts:
        divisors = [k for k in range(1, total + 1) if total % k == 0]
        nearest = min(divisors, key=lambda k: (abs(k - parts), k))
        raise ValueError(f"{name}: {what} = {total} is not divisible by {parts}; the nearest number that divides it is {nearest}.")
    return total // parts


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}.")


def labels_without_decay(*fields: str) -> Callable[[Any], Any]:
    """Labels for a NamedTuple of parameters: "no_decay" for ``fields`` and biases, else "decay"."""

    def labels(params: Any) -> Any:
        def label(name: str, value: Array | None) -> str | None:
            plain = name in fields or name.startswith("bias")
            return None if value is None else "no_decay" if plain else "decay"

        return type(params)(*(label(k, v) for k, v in params._asdict().items()))

    return labels
