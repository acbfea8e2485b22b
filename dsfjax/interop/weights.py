"""Weights by their original names: their shapes, checks, and the layouts of PyTorch.

A linear map there is ``weight (out, in)`` and a depthwise convolution ``weight (d, 1, W)``; here
they are ``kernel (in, out)`` and ``kernel (W, d)``. Every function of weights is differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from dsfjax._util.names import hint

Weights = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]


def check(
    owner: str, weights: Mapping[str, Any], shapes: Shapes, complex_weights: tuple[str, ...] = ()
) -> dict[str, Array]:
    """The weights as arrays, if names and shapes are exactly those of ``shapes``.

    Args:
        owner: Whose weights they are, for messages.
        weights: Arrays of JAX or NumPy by name.
        shapes: Expected shapes by name.
        complex_weights: Names of those that are complex.

    Returns:
        The same as JAX arrays, in the order of ``shapes``.

    Raises:
        TypeError: If ``weights`` is no mapping or a value is no array of real numbers.
        ValueError: For a missing, an extra, or a misshapen weight, by name.

    Example:
        >>> check("Linear", {"wieght": jnp.ones((2, 3))}, {"weight": (2, 3)})
        Traceback (most recent call last):
            ...
        ValueError: Linear: unexpected weight 'wieght' of shape (2, 3); did you mean 'weight'?
        Expected weight (2, 3).
    """
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"{owner}: expected weights as a dict by name, got {type(weights).__name__}."
        )
    expected = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    for name, value in weights.items():
        if name not in shapes:
            shape, free = tuple(jnp.shape(value)), [k for k in shapes if k not in weights]
            raise ValueError(
                f"{owner}: unexpected weight {name!r} of shape {shape}{hint(name, free)} "
                f"Expected {expected}."
            )
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"{owner}: missing weight {name!r} of shape {shape}.")
        value = weights[name]
        is_complex = name in complex_weights
        kind = jnp.complexfloating if is_complex else jnp.floating
        if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, kind):
            got = getattr(value, "dtype", type(value).__name__)
            what = "complex numbers" if is_complex else "floats"
            raise TypeError(f"{owner}: weight {name!r}: expected an array of {what}, got {got}.")
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{owner}: weight {name!r}: expected shape {shape}, got {tuple(value.shape)}."
            )
    return {name: jnp.asarray(weights[name]) for name in shapes}


def linear_shapes(name: str, d_in: int, d_out: int, *, bias: bool = True) -> Shapes:
    """Shapes of a linear map."""
    shapes: Shapes = {f"{name}.weight": (d_out, d_in)}
    return shapes | {f"{name}.bias": (d_out,)} if bias else shapes


def conv_shapes(name: str, channels: int, width: int, *, bias: bool = True) -> Shapes:
    """Shapes of a depthwise convolution."""
    shapes: Shapes = {f"{name}.weight": (channels, 1, width)}
    return shapes | {f"{name}.bias": (channels,)} if bias else shapes


def norm_shapes(name: str, width: int) -> Shapes:
    """Shapes of a LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    """The same shapes under ``prefix.name``."""
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def under(prefix: str, weights: Weights) -> dict[str, Array]:
    """The weights named ``prefix.name``, under ``name``."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def linear(weights: Weights, name: str) -> dict[str, Array]:
    """Parameters of a linear map, without a bias if it has none."""
    params = {"kernel": weights[f"{name}.weight"].T}
    bias = weights.get(f"{name}.bias")
    return params if bias is None else params | {"bias": bias}


def conv(weights: Weights, name: str) -> dict[str, Array]:
    """Parameters of a `dsfjax.nn.CausalConv`; the bias is 0 if there is none."""
    kernel = weights[f"{name}.weight"][:, 0, :].T
    bias = weights.get(f"{name}.bias")
    return {"kernel": kernel, "bias": jnp.zeros_like(kernel[0]) if bias is None else bias}


def norm(weights: Weights, name: str) -> dict[str, Array]:
    """Parameters of a LayerNorm."""
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def rows(weights: Weights, name: str, sizes: Mapping[str, int]) -> dict[str, dict[str, Array]]:
    """A packed linear map in its parts: consecutive rows of the weight (and of the bias).

    Args:
        weights: The weights.
        name: Of the packed map.
        sizes: Outputs of each part, in order.

    Returns:
        By part, ``{"weight": (size, in)}``, with ``"bias": (size,)`` where there is one.

    Example:
        >>> parts = rows({"W.weight": jnp.arange(6.0).reshape(3, 2)}, "W", {"q": 1, "k": 2})
        >>> parts["k"]["weight"].tolist()
        [[2.0, 3.0], [4.0, 5.0]]
    """
    ends, total = [], 0
    for size in sizes.values():
        total += size
        ends.append(total)
    parts: dict[str, dict[str, Array]] = {part: {} for part in sizes}
    for kind in ("weight", "bias"):
        packed = weights.get(f"{name}.{kind}")
        if packed is not None:
            for part, piece in zip(sizes, jnp.split(packed, ends[:-1]), strict=True):
                parts[part][kind] = piece
    return parts
