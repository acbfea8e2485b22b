"""Skips D_t of a `System`: what of a token reaches the output of its own step directly."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.maps import Shape, check_channels, widest
from dsfjax.core.pytree import pytree
from dsfjax.core.transitions import ArrayLike


class Skip(abc.ABC):
    """The skip D_t of a `System`, a linear map of the token of the same step.

    You write a class with the decorator `dsfjax.pytree` and one method, `matrix`.

    You get every engine and every analysis. Override `check` to say early what does not fit.
    """

    @abc.abstractmethod
    def matrix(self, system: Any) -> Array:
        """D_t from the token to the output, (T, d_out, d)."""

    def check(self, system: Any) -> None:
        """Raise `ValueError` unless the skip fits the widths of the system."""
        width = (system.output_width, system.token_width)
        shape = jax.eval_shape(lambda s: s.D.matrix(s), system).shape
        if len(shape) != 3 or shape[1:] != width:
            raise ValueError(
                f"{type(self).__name__}: expected matrix of shape (T, {width[0]}, {width[1]}), got "
                f"{shape}."
            )

    def split_heads(self, num_heads: int, state_shape: Shape) -> Skip:
        """The same skip for a system whose heads are divided into ``num_heads``."""
        return self


@pytree
class TokenSkip(Skip):
    """D_t u_t = d_t ⊙ u_t. Attribute ``d``: (T, d_out), and the token has width d_out."""

    d: Array

    def check(self, system: Any) -> None:
        """Raise `ValueError` unless tokens and outputs have the width of d."""
        d, d_out = system.token_width, system.output_width
        if self.d.ndim != 2 or self.d.shape[1] != d_out or d != d_out:
            raise ValueError(
                f"TokenSkip: expected d of shape (T, {d_out}) and tokens of the output's width "
                f"{d_out}, got {self.d.shape} and tokens of width {d}. Use DenseSkip otherwise."
            )

    def matrix(self, system: Any) -> Array:
        """The diagonal matrices (T, d, d)."""
        return self.d[:, :, None] * jnp.eye(self.d.shape[1], dtype=self.d.dtype)[None]


@pytree
class ValueSkip(Skip):
    """D_t u_t = d_t ⊙ (W u_t), on the value before its scale.

    Attributes:
        d: (T, H, p) or (T, H, 1).
    """

    d: Array

    def check(self, system: Any) -> None:
        """Raise `ValueError` unless there is one value and one output per channel."""
        heads, _, p = system.state_shape
        B = system.B
        if not B.acts_on_values or B.num_values(system.state_shape) != system.output_width:
            raise ValueError(
                "ValueSkip: needs an OuterInput and an output of as many channels as there are "
                "values; use DenseSkip."
            )
        check_channels(self, "d", self.d, 1, heads, p)

    def matrix(self, system: Any) -> Array:
        """The matrices d_t ⊙ W, (T, H·p, d)."""
        heads, _, p = system.state_shape
        d = jnp.broadcast_to(self.d, (self.d.shape[0], heads, p)).reshape(-1, heads * p, 1)
        W = system.B.W  # an OuterInput: `check` saw to it
        W = jnp.eye(heads * p, dtype=d.dtype) if W is None else W.astype(widest(d, W))
        return d.astype(W.dtype) * W[None]

    def split_heads(self, num_heads: int, state_shape: Shape) -> ValueSkip:
        """The same skip for a system whose heads are divided into ``num_heads``."""
        heads, _, p = state_shape
        if num_heads == heads:
            return self
        d = jnp.broadcast_to(self.d, (self.d.shape[0], heads, p))
        return ValueSkip(d.reshape(d.shape[0], num_heads, -1))


@pytree
class DenseSkip(ArrayLike, Skip):
    """D_t as a matrix: ``array`` of shape (T, d_out, d). Reads as an array."""

    array: Array

    def check(self, system: Any) -> None:
        """Raise `ValueError` unless the shapes fit."""
        width = (system.output_width, system.token_width)
        if self.array.ndim != 3 or self.shape[1:] != width:
            raise ValueError(
                f"DenseSkip: expected array of shape (T, {width[0]}, {width[1]}), got {self.shape}."
            )

    def matrix(self, system: Any) -> Array:
        """The array."""
        return self.array
