r"""Input maps B_t, output maps C_t, skips D_t and normalisers η_t of a `System`.

A dense B_t of one step is (H·n·p) × d. The maps of real architectures are products of a few small
arrays, and they are stored as those factors:

.. math::
   (B_t u_t)_{h,i,j} = b_{t,h,i} \, s_{t,h,j} \, (W u_t)_{h,j}, \qquad
   (C_t h_t)_{h,j} = o_{t,h,j} \sum_i c_{t,h,i} \, h_{t,h,i,j}.

b and c may have G groups of heads (G divides H) and are then shared without being repeated. Every
array has a leading time axis, 1 where the quantity is constant, except the value map W.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dsfjax.core.pytree import constant, pytree, static
from dsfjax.core.transitions import _ArrayLike, _expect


@pytree
class OuterInput:
    """B_t u_t = b_t ⊗ (s_t ⊙ W u_t): a vector over n times a value over p.

    Attributes:
        b: (T, G, n), the key; None for n = 1 and b = 1.
        scale: (T, H, p) or (T, H, 1), a step size or an input gate; None for 1.
        W: Value map (H·p, d), constant in time; None if the token is the value (d = H·p).
    """

    b: Array | None = None
    scale: Array | None = None
    W: Array | None = constant(default=None)

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        _check_vector(self, "b", self.b, heads, n)
        _check_channels(self, "scale", self.scale, heads, p)
        if self.W is not None:
            ok = self.W.ndim == 2 and self.W.shape[0] == heads * p
            _expect(ok, self, "W (no time axis)", f"({heads * p}, d)", self.W.shape)

    def token_width(self, state_shape: tuple[int, int, int]) -> int:
        """d, the width of the tokens."""
        heads, _, p = state_shape
        return heads * p if self.W is None else self.W.shape[1]


@pytree
class DenseInput(_ArrayLike):
    """B_t as a matrix from the token to the flattened state.

    Attributes:
        matrix: (T, H·n·p, d), real or complex. Reads as an array.
    """

    matrix: Array

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        ok = self.matrix.ndim == 3 and self.matrix.shape[1] == heads * n * p
        _expect(ok, self, "matrix", f"(T, {heads * n * p}, d)", self.matrix.shape)

    def token_width(self, state_shape: tuple[int, int, int]) -> int:
        """d, the width of the tokens."""
        return self.matrix.shape[-1]


@pytree
class InnerOutput:
    """y_t = o_t ⊙ (c_tᵀ h_t): an inner product over n, then a gate over p.

    Attributes:
        c: (T, G, n), the query; None for n = 1 and c = 1.
        gate: (T, H, p) or (T, H, 1); None for 1.
        conjugate_pairs: With complex states the output is the real part; if the state holds one of
            each conjugate pair, twice the real part.
    """

    c: Array | None = None
    gate: Array | None = None
    conjugate_pairs: bool = static(default=False)

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        _check_vector(self, "c", self.c, heads, n)
        _check_channels(self, "gate", self.gate, heads, p)

    def output_width(self, state_shape: tuple[int, int, int]) -> int:
        """d_out, the width of the outputs."""
        return state_shape[0] * state_shape[2]


@pytree
class DenseOutput(_ArrayLike):
    """C_t as a matrix from the flattened state to the output; real part if complex.

    Attributes:
        matrix: (T, d_out, H·n·p), real or complex. Reads as an array.
        conjugate_pairs: See `InnerOutput`.
    """

    matrix: Array
    conjugate_pairs: bool = static(default=False)

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        ok = self.matrix.ndim == 3 and self.matrix.shape[2] == heads * n * p
        _expect(ok, self, "matrix", f"(T, d_out, {heads * n * p})", self.matrix.shape)

    def output_width(self, state_shape: tuple[int, int, int]) -> int:
        """d_out, the width of the outputs."""
        return self.matrix.shape[1]


@pytree
class TokenSkip:
    """D_t u_t = d_t ⊙ u_t. Attribute ``d``: (T, d_out), and the token has width d_out."""

    d: Array


@pytree
class ValueSkip:
    """D_t u_t = d_t ⊙ (W u_t), on the value before its scale.

    Attributes:
        d: (T, H, p) or (T, H, 1).
    """

    d: Array


@pytree
class DenseSkip(_ArrayLike):
    """D_t as a matrix (T, d_out, d). Reads as an array."""

    matrix: Array


@pytree
class GivenNormalizer:
    """η_t computed from the token alone (normalized attention). ``log_eta``: (T, H)."""

    log_eta: Array


@pytree
class SummedNormalizer:
    r"""η_t = c_tᵀ z_t with z_t = A_t z_{t-1} + b_t: the recurrence applied to values of 1.

    With A_t = I this is the normaliser of linear attention, z_t = z_{t-1} + b_t. Following A_t in
    general makes it invariant under a change of coordinates. z is carried with the state, as one
    more value channel: h has shape (H, n, p + 1).
    """


InputMap = OuterInput | DenseInput
OutputMap = InnerOutput | DenseOutput
Skip = TokenSkip | ValueSkip | DenseSkip
Normalizer = GivenNormalizer | SummedNormalizer


def to_heads(x: Array, num_heads: int) -> Array:
    """Repeat the G groups of (…, G, n) to H heads; heads of a group are neighbours.

    Example:
        >>> to_heads(jnp.array([[1.0], [2.0]]), 4)[:, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    groups = x.shape[-2]
    return x if groups == num_heads else jnp.repeat(x, num_heads // groups, axis=-2)


def _check_vector(owner: object, name: str, x: Array | None, heads: int, n: int) -> None:
    if x is None:
        if n != 1:
            raise ValueError(
                f"{type(owner).__name__}: {name} is None, which means a state expansion of n = 1, "
                f"but state_shape has n = {n}. Give {name} of shape (T, G, {n})."
            )
        return
    ok = x.ndim == 3 and x.shape[2] == n and heads % x.shape[1] == 0
    _expect(ok, owner, name, f"(T, G, {n}) with G dividing {heads}", x.shape)


def _check_channels(owner: object, name: str, x: Array | None, heads: int, p: int) -> None:
    if x is not None:
        ok = x.ndim == 3 and x.shape[1] == heads and x.shape[2] in (1, p)
        _expect(ok, owner, name, f"(T, {heads}, {p} or 1)", x.shape)
