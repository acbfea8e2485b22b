r"""Input maps B_t and output maps C_t of a `System`.

A dense B_t of one step is (H·n·p) × d. The maps of real architectures are products of a few small
arrays, and they are stored as those factors:

.. math::
   (B_t u_t)_{h,i,j} = \sum_r b^r_{t,h,i} \, s^r_{t,h,j} \, (W u_t)^r_{h,j}, \qquad
   (C_t h_t)^r_{h,j} = o^r_{t,h,j} \sum_i c^r_{t,h,i} \, h_{t,h,i,j}.

b and c may have G groups of heads (G divides H) and are then shared without being repeated. Every
array has a leading time axis, 1 where the quantity is constant, except the value map W.
"""

from __future__ import annotations

import abc
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.pytree import constant, pytree, static
from dsfjax.core.transitions import ArrayLike, expect, pad_axis, to_heads

Shape = tuple[int, int, int]


class InputMap(abc.ABC):
    """The input map B_t of a `System`. Subclass it to bring a structure of your own.

    You write a class with the decorator `dsfjax.pytree` and two methods: `matrix` and
    `token_width`.

    You get every engine that runs the transition step by step or by its prefixes, gradients, and
    the analysis of the system as one block of N states, as with `DenseInput`.
    """

    W: Array | None = None
    rank: int = 1

    @abc.abstractmethod
    def matrix(self, state_shape: Shape) -> Array:
        """B_t from the token to the flattened state (H, n, p), (T, N, d)."""

    @abc.abstractmethod
    def token_width(self, state_shape: Shape) -> int:
        """d, the width of the tokens."""

    @property
    def acts_on_values(self) -> bool:
        """Whether the tokens are values: each drives its own channel; then it is `OuterInput`."""
        return False

    def slot_size(self, state_shape: Shape) -> int:
        """Numbers that a cache of everything written would keep of one step."""
        return self.token_width(state_shape)

    def check(self, state_shape: Shape) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        shape = jax.eval_shape(lambda B: B.matrix(state_shape), self).shape
        ok = len(shape) == 3 and shape[1:] == (heads * n * p, self.token_width(state_shape))
        expect(ok, self, "matrix(state_shape)", f"(T, {heads * n * p}, d)", shape)

    def rescale(self, t: Array, state_shape: Shape, *, vectors: bool) -> InputMap:
        """The map t_t B_t, for factors t (T, H); ``vectors`` scales b and not the values."""
        _, n, p = state_shape
        m = self.matrix(state_shape)
        return DenseInput(m * jnp.repeat(t, n * p, axis=1)[:, :, None].astype(m.dtype))

    def pad(self, n: int, state_shape: Shape) -> InputMap:
        """A map to n states per head, zero on the new ones."""
        heads, n_now, p = state_shape
        m = self.matrix(state_shape)
        m = pad_axis(m.reshape(m.shape[0], heads, n_now, p, -1), 2, n)
        return DenseInput(m.reshape(m.shape[0], heads * n * p, -1))


@pytree
class OuterInput(InputMap):
    r"""B_t u_t = Σ_r b_t^r ⊗ (s_t^r ⊙ v_t^r), v_t = W u_t: vectors over n times values over p.

    Attributes:
        b: The keys, (T, G, n); (T, r, G, n) for rank r > 1. None for n = 1 and b = 1.
        scale: (T, H, p) or (T, H, 1), a step size or an input gate, or (T, r, H, p or 1); None
            for 1.
        W: Value map (r·H·p, d), constant in time; None if the token is the value. Values are
            flattened row-major from (r, H, p).
        rank: r, static: how many terms are written per step.
    """

    b: Array | None = None
    scale: Array | None = None
    W: Array | None = constant(default=None)
    rank: int = static(default=1)

    @property
    def acts_on_values(self) -> bool:
        """True."""
        return True

    def check(self, state_shape: Shape) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        _check_vector(self, "b", self.b, self.rank, heads, "n", n)
        check_channels(self, "scale", self.scale, self.rank, heads, p)
        if self.W is not None:
            width = self.num_values(state_shape)
            ok = self.W.ndim == 2 and self.W.shape[0] == width
            expect(ok, self, "W (no time axis)", f"({width}, d)", self.W.shape)

    def num_values(self, state_shape: Shape) -> int:
        """r·H·p, the numbers that are written per step."""
        return self.rank * state_shape[0] * state_shape[2]

    def slot_size(self, state_shape: Shape) -> int:
        """Numbers of the keys and values of one step."""
        keys = 0 if self.b is None else math.prod(self.b.shape[1:])
        return keys + self.num_values(state_shape)

    def token_width(self, state_shape: Shape) -> int:
        """d, the width of the tokens."""
        return self.num_values(state_shape) if self.W is None else self.W.shape[1]

    def vectors(self) -> Array | None:
        """B with the axis of the rank in any case, (T, r, G, n)."""
        return ranked(self.b, self.rank)

    def scales(self) -> Array | None:
        """The scale with the axis of the rank in any case, (T, r, H, p or 1)."""
        return ranked(self.scale, self.rank)

    def on_values(self) -> OuterInput:
        """The map without W: its tokens are the values."""
        return OuterInput(self.b, self.scale, None, self.rank)

    def matrix(self, state_shape: Shape) -> Array:
        """B_t from the token to the flattened state, (T, N, d)."""
        heads, n, p = state_shape
        one = jnp.ones((1, self.rank, heads, 1))
        dtype = widest(*jax.tree.leaves(self)) if jax.tree.leaves(self) else one.dtype
        b, s = self.vectors(), self.scales()
        b = one if b is None else to_heads(b, heads)
        s = one if s is None else s
        W = jnp.eye(self.token_width(state_shape)) if self.W is None else self.W
        W = W.astype(dtype).reshape(self.rank, heads, p, -1)
        s = s.astype(dtype)[:, :, :, :, None] * W[None]
        full = b.astype(dtype)[:, :, :, :, None, None] * s[:, :, :, None]
        return full.sum(axis=1).reshape(full.shape[0], heads * n * p, -1)

    def rescale(self, t: Array, state_shape: Shape, *, vectors: bool) -> OuterInput:
        """The map t_t B_t: the factors go to b if ``vectors``, else to the scale."""
        if vectors:  # z is driven by b alone
            return OuterInput(_times(self.b, t, self.rank), self.scale, self.W, self.rank)
        return OuterInput(self.b, _times(self.scale, t, self.rank), self.W, self.rank)

    def pad(self, n: int, state_shape: Shape) -> OuterInput:
        """A map to n states per head, zero on the new ones."""
        return OuterInput(_padded(self.b, n, self.rank), self.scale, self.W, self.rank)


@pytree
class DenseInput(ArrayLike, InputMap):
    """B_t as a matrix from the token to the flattened state.

    Attributes:
        array: (T, H·n·p, d), real or complex. Reads as an array.
    """

    array: Array

    def check(self, state_shape: Shape) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        ok = self.array.ndim == 3 and self.array.shape[1] == heads * n * p
        expect(ok, self, "array", f"(T, {heads * n * p}, d)", self.array.shape)

    def token_width(self, state_shape: Shape) -> int:
        """d, the width of the tokens."""
        return self.array.shape[-1]

    def matrix(self, state_shape: Shape) -> Array:
        """The array."""
        return self.array


class OutputMap(abc.ABC):
    """The output map C_t of a `System`. Subclass it to bring a structure of your own.

    You write a class with the decorator `dsfjax.pytree` and two methods: `matrix` and
    `output_width`. Add ``conjugate_pairs`` or ``before_update`` as fields (`dsfjax.static()`) if
    they can be true.

    You get every engine that runs the transition step by step or by its prefixes, gradients, and
    the analysis of the system as one block of N states, as with `DenseOutput`.

    Attributes:
        conjugate_pairs: With complex states the output is the real part; if the state holds one of
            each conjugate pair, twice the real part.
        before_update: Whether y_t reads h_{t−1}, the state before the step, instead of h_t. At a
            reset that is zero.
    """

    conjugate_pairs: bool = False
    before_update: bool = False
    rank: int = 1

    @abc.abstractmethod
    def matrix(self, state_shape: Shape) -> Array:
        """C_t from the flattened state (H, n, p) to the output, (T, d_out, N)."""

    @abc.abstractmethod
    def output_width(self, state_shape: Shape) -> int:
        """d_out, the width of the outputs."""

    @property
    def acts_on_values(self) -> bool:
        """Whether every value channel is read by itself; then it is an `InnerOutput` over n."""
        return False

    def real(self, y: Array) -> Array:
        """The output of what a complex state gives: its real part, twice for conjugate pairs."""
        if not jnp.iscomplexobj(y):
            return y
        return y.real * (2 if self.conjugate_pairs else 1)

    def check(self, state_shape: Shape) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        shape = jax.eval_shape(lambda C: C.matrix(state_shape), self).shape
        ok = len(shape) == 3 and shape[1:] == (self.output_width(state_shape), heads * n * p)
        expect(ok, self, "matrix(state_shape)", f"(T, d_out, {heads * n * p})", shape)

    def rescale(self, t: Array, state_shape: Shape, *, vectors: bool) -> OutputMap:
        """The map t_t C_t, for factors t (T, H); ``vectors`` scales c and not the gate."""
        _, n, p = state_shape
        m = self.matrix(state_shape)
        t = jnp.repeat(t, n * p, axis=1)[:, None, :].astype(m.dtype)
        return DenseOutput(m * t, self.conjugate_pairs, self.before_update)

    def pad(self, n: int, state_shape: Shape) -> OutputMap:
        """A map from n states per head that does not read the new ones."""
        heads, n_now, p = state_shape
        m = self.matrix(state_shape)
        m = pad_axis(m.reshape(*m.shape[:2], heads, n_now, p), 3, n)
        m = m.reshape(*m.shape[:2], heads * n * p)
        return DenseOutput(m, self.conjugate_pairs, self.before_update)


@pytree
class InnerOutput(OutputMap):
    """y_t = o_t ⊙ (c_tᵀ h_t): an inner product over n, then a gate over p.

    Attributes:
        c: The queries, (T, G, n); (T, R, G, n) for rank R > 1. None for n = 1 and c = 1.
        gate: (T, H, p) or (T, H, 1), or (T, R, H, p or 1); None for 1.
        conjugate_pairs: With complex states the output is the real part; if the state holds one of
            each conjugate pair, twice the real part.
        before_update: Whether y_t reads h_{t−1}, the state before the step, instead of h_t.
        rank: R, static: how many inner products are read per step. The output is flattened
            row-major from (R, H, p).
        over: The axis that is contracted, "n", or "p": then c is (T, G, p), the gate (T, H, n or 1)
            and the output (R, H, n).
    """

    c: Array | None = None
    gate: Array | None = None
    conjugate_pairs: bool = static(default=False)
    before_update: bool = static(default=False)
    rank: int = static(default=1)
    over: Literal["n", "p"] = static(default="n")

    @property
    def acts_on_values(self) -> bool:
        """Whether n is contracted: every value channel is then read by itself."""
        return self.over == "n"

    def check(self, state_shape: Shape) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        if self.over not in ("n", "p"):
            raise ValueError(f'InnerOutput: expected over to be "n" or "p", got {self.over!r}.')
        heads, contracted, left = self._axes(state_shape)
        _check_vector(self, "c", self.c, self.rank, heads, self.over, contracted)
        check_channels(self, "gate", self.gate, self.rank, heads, left)

    def output_width(self, state_shape: Shape) -> int:
        """d_out, the width of the outputs."""
        heads, _, left = self._axes(state_shape)
        return self.rank * heads * left

    def _axes(self, state_shape: Shape) -> Shape:
        """Heads, the size of the contracted axis, and of the axis that is left."""
        heads, n, p = state_shape
        return (heads, n, p) if self.over == "n" else (heads, p, n)

    def vectors(self) -> Array | None:
        """C with the axis of the rank in any case, (T, R, G, n)."""
        return ranked(self.c, self.rank)

    def gates(self) -> Array | None:
        """The gate with the axis of the rank in any case, (T, R, H, p or 1)."""
        return ranked(self.gate, self.rank)

    def with_arrays(self, c: Array | None, gate: Array | None) -> InnerOutput:
        """The same kind of map with other arrays."""
        return InnerOutput(c, gate, self.conjugate_pairs, self.before_update, self.rank, self.over)

    def matrix(self, state_shape: Shape) -> Array:
        """C_t from the flattened state to the output, (T, d_out, N)."""
        heads, _, left = self._axes(state_shape)
        one = jnp.ones((1, self.rank, heads, 1))
        dtype = widest(*jax.tree.leaves(self)) if jax.tree.leaves(self) else one.dtype
        c, gate = self.vectors(), self.gates()
        c = one if c is None else to_heads(c, heads)
        gate = one if gate is None else gate
        gate = jnp.broadcast_to(gate, (*gate.shape[:-1], left)).astype(dtype)
        rows = (
            c.astype(dtype)[:, :, :, :, None] * gate[:, :, :, None]
        )  # (T, R, H, contracted, left)
        eye_h, eye = jnp.eye(heads, dtype=dtype), jnp.eye(left, dtype=dtype)
        order = "tkgrhiq" if self.over == "n" else "tkgrhqi"
        full = jnp.einsum(f"tkhiq,hg,qr->{order}", rows, eye_h, eye)
        return full.reshape(full.shape[0], self.rank * heads * left, -1)

    def rescale(self, t: Array, state_shape: Shape, *, vectors: bool) -> InnerOutput:
        """The map t_t C_t: the factors go to c if ``vectors``, else to the gate."""
        if vectors:
            return self.with_arrays(_times(self.c, t, self.rank), self.gate)
        return self.with_arrays(self.c, _times(self.gate, t, self.rank))

    def pad(self, n: int, state_shape: Shape) -> OutputMap:
        """A map from n states per head that does not read the new ones."""
        if self.over == "p":
            raise ValueError(
                "pad_state: an InnerOutput over p has one output per state; more states would be "
                "more outputs."
            )
        return self.with_arrays(_padded(self.c, n, self.rank), self.gate)


@pytree
class DenseOutput(ArrayLike, OutputMap):
    """C_t as a matrix from the flattened state to the output; real part if complex.

    Attributes:
        array: (T, d_out, H·n·p), real or complex. Reads as an array.
        conjugate_pairs: See `InnerOutput`.
        before_update: See `InnerOutput`.
    """

    array: Array
    conjugate_pairs: bool = static(default=False)
    before_update: bool = static(default=False)

    def check(self, state_shape: Shape) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        ok = self.array.ndim == 3 and self.array.shape[2] == heads * n * p
        expect(ok, self, "array", f"(T, d_out, {heads * n * p})", self.array.shape)

    def output_width(self, state_shape: Shape) -> int:
        """d_out, the width of the outputs."""
        return self.array.shape[1]

    def matrix(self, state_shape: Shape) -> Array:
        """The array."""
        return self.array


def ranked(x: Array | None, rank: int) -> Array | None:
    """An array (T, …) of rank 1 with the axis of the rank, (T, 1, …); others as they are."""
    return x if x is None or rank > 1 else x[:, None]


def widest(*arrays: Array | None) -> Any:
    """The dtype of a product of the arrays; theirs if they have one."""
    dtypes = [x.dtype for x in arrays if x is not None]
    return dtypes[0] if len({*dtypes}) == 1 else state_dtype(*dtypes)


def _times(x: Array | None, t: Array, rank: int) -> Array:
    """The product of t (L, H) with an array (T, [r,] G or H, ·), or with 1."""
    heads = t.shape[1]
    t = (
        t[:, :, None]
        if rank == 1
        else jnp.broadcast_to(t[:, None, :, None], (len(t), rank, heads, 1))
    )
    return t if x is None else to_heads(x, heads) * t.astype(x.dtype)


def _padded(x: Array | None, n: int, rank: int) -> Array:
    """A vector (T, [r,] G, n) with zeros up to n; None stands for n = 1 and the entry 1."""
    one = jnp.ones((1, 1, 1) if rank == 1 else (1, rank, 1, 1))
    return pad_axis(one if x is None else x, -1, n)


def _check_vector(
    owner: object, name: str, x: Array | None, rank: int, heads: int, axis: str, size: int
) -> None:
    r = f"{rank}, " if rank > 1 else ""
    if x is None:
        if size != 1:
            what = "a state expansion of n = 1" if axis == "n" else "p = 1 value channel"
            raise ValueError(
                f"{type(owner).__name__}: {name} is None, which means {what}, but state_shape has "
                f"{axis} = {size}. Give {name} of shape (T, {r}G, {size})."
            )
        return
    ok = x.ndim == 3 + (rank > 1) and x.shape[-1] == size and heads % x.shape[-2] == 0
    ok = ok and (rank == 1 or x.shape[1] == rank)
    expect(ok, owner, name, f"(T, {r}G, {size}) with G dividing {heads}", x.shape)


def check_channels(
    owner: object, name: str, x: Array | None, rank: int, heads: int, p: int
) -> None:
    """Raise unless x has the shape (T, [r,] H, p or 1)."""
    if x is not None:
        r = f"{rank}, " if rank > 1 else ""
        ok = x.ndim == 3 + (rank > 1) and x.shape[-2] == heads and x.shape[-1] in (1, p)
        ok = ok and (rank == 1 or x.shape[1] == rank)
        expect(ok, owner, name, f"(T, {r}{heads}, {p} or 1)", x.shape)
