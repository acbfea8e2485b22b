r"""Input maps B_t, output maps C_t, skips D_t and normalisers η_t of a `System`.

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
        _check_channels(self, "scale", self.scale, self.rank, heads, p)
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
        dtype = _widest(*jax.tree.leaves(self)) if jax.tree.leaves(self) else one.dtype
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
        _check_channels(self, "gate", self.gate, self.rank, heads, left)

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
        dtype = _widest(*jax.tree.leaves(self)) if jax.tree.leaves(self) else one.dtype
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
        _check_channels(self, "d", self.d, 1, heads, p)

    def matrix(self, system: Any) -> Array:
        """The matrices d_t ⊙ W, (T, H·p, d)."""
        heads, _, p = system.state_shape
        d = jnp.broadcast_to(self.d, (self.d.shape[0], heads, p)).reshape(-1, heads * p, 1)
        W = system.B.W  # an OuterInput: `check` saw to it
        W = jnp.eye(heads * p, dtype=d.dtype) if W is None else W.astype(_widest(d, W))
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


class Normalizer(abc.ABC):
    """The normaliser η_t of a `System`: what is read from the state is divided by it.

    You write a class with the decorator `dsfjax.pytree` and one method, `log`, for a normaliser
    that is known before the recurrence runs.

    You get every engine and every analysis.

    Attributes:
        num_channels: Value channels that the engines carry for it next to those of the state; 0
            but for `SummedNormalizer`.
    """

    num_channels: int = 0

    @abc.abstractmethod
    def log(self) -> Array:
        """Log η_t per head, (T, H)."""

    def check(self, system: Any) -> None:
        """Raise `ValueError` unless the normaliser fits the system."""
        if not isinstance(system.C, InnerOutput):
            raise ValueError(
                "System: a normaliser needs an InnerOutput; fold η into the matrix of C instead."
            )
        self.check_shape(system.state_shape[0])

    def check_shape(self, heads: int) -> None:
        """Raise `ValueError` unless the arrays fit the number of heads."""
        shape = jax.eval_shape(lambda eta: eta.log(), self).shape
        if len(shape) != 2 or shape[1] != heads:
            raise ValueError(
                f"{type(self).__name__}: expected log() of shape (T, {heads}), got {shape}."
            )


@pytree
class GivenNormalizer(Normalizer):
    """η_t computed from the token alone (normalized attention).

    Attributes:
        log_eta: log η_t, (T, H).
    """

    log_eta: Array

    def check_shape(self, heads: int) -> None:
        """Raise `ValueError` unless there is one number per head."""
        if self.log_eta.ndim != 2 or self.log_eta.shape[1] != heads:
            raise ValueError(
                f"GivenNormalizer: expected log_eta of shape (T, {heads}), got "
                f"{self.log_eta.shape}."
            )

    def log(self) -> Array:
        """The array."""
        return self.log_eta


@pytree
class SummedNormalizer(Normalizer):
    r"""η_t = c_tᵀ z_t with z_t = A_t z_{t-1} + b_t: the recurrence applied to values of 1.

    With A_t = I this is the normaliser of linear attention, z_t = z_{t-1} + b_t. Following A_t in
    general makes it invariant under a change of coordinates. z is carried with the state, as one
    more value channel: h has shape (H, n, p + 1). With all options

    .. math:: η_t = \max(|c_t^\top z_t + β_t|, \mathrm{floor}_t) + ε_t, \qquad
       y_t = (c_t^\top h_t + β_t v_t) / η_t .

    Large gates overflow unless A, b and c are in coordinates that follow their running maximum:
    `dsfjax.stabilized` makes them. The floor is then exp(−m_t).

    Attributes:
        floor: Smallest η_t, a number or (T, H); None for no floor.
        modulus: Whether the modulus of c_tᵀ z_t is taken, static.
        epsilon: Added at the end, a number or (T, H); None for 0.
        bonus: β_t, the weight of the present value on top of the state, (T, H) (RWKV-4); None
            for 0. It belongs to an output that reads the state before the update.

    References:
        Beck et al. (2024), arXiv:2405.04517 (floor and modulus). Peng et al. (2023),
        arXiv:2305.13048 (bonus).
    """

    floor: Array | float | None = None
    modulus: bool = static(default=False)
    epsilon: Array | float | None = None
    bonus: Array | float | None = None

    num_channels = 1

    def __post_init__(self) -> None:
        for name in ("floor", "epsilon", "bonus"):
            x = getattr(self, name)
            if x is not None and jnp.ndim(x) == 0:
                object.__setattr__(self, name, jnp.reshape(jnp.asarray(x), (1, 1)))

    def check(self, system: Any) -> None:
        """Raise `ValueError` unless z can be carried with the state."""
        super().check(system)
        if not system.B.acts_on_values or system.is_complex:
            raise ValueError("SummedNormalizer: needs an OuterInput and real A, B, C.")
        if not system.C.acts_on_values or system.C.rank != 1:
            raise ValueError("SummedNormalizer: needs an InnerOutput of rank 1 over n.")
        if self.bonus is not None and system.B.rank != 1:
            raise ValueError("SummedNormalizer: a bonus needs an OuterInput of rank 1.")
        if system.A.per_channel:
            raise ValueError(
                "SummedNormalizer: z has one entry per state, so the decay must not vary over the "
                "value channels p."
            )

    def check_shape(self, heads: int) -> None:
        """Raise `ValueError` unless the options fit the number of heads."""
        for name in ("floor", "epsilon", "bonus"):
            x = getattr(self, name)
            if x is not None:
                ok = x.ndim == 2 and x.shape[1] in (1, heads)
                expect(ok, self, name, f"(T, {heads}), or one number,", x.shape)

    def log(self) -> Array:
        """Not known before the recurrence has run."""
        raise TypeError(
            "SummedNormalizer: η follows from the state; dsfjax.analysis.normalizers computes it."
        )

    def eta(self, summed: Array) -> Array:
        """η_t (L, H) from what is read of z, c_tᵀ z_t (L, H)."""

        def cast(x: Any) -> Array:
            return x.astype(summed.dtype)

        eta = summed if self.bonus is None else summed + cast(self.bonus)
        eta = jnp.abs(eta) if self.modulus else eta
        eta = eta if self.floor is None else jnp.maximum(eta, cast(self.floor))
        return eta if self.epsilon is None else eta + cast(self.epsilon)


def ranked(x: Array | None, rank: int) -> Array | None:
    """An array (T, …) of rank 1 with the axis of the rank, (T, 1, …); others as they are."""
    return x if x is None or rank > 1 else x[:, None]


def _widest(*arrays: Array | None) -> Any:
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


def _check_channels(
    owner: object, name: str, x: Array | None, rank: int, heads: int, p: int
) -> None:
    if x is not None:
        r = f"{rank}, " if rank > 1 else ""
        ok = x.ndim == 3 + (rank > 1) and x.shape[-2] == heads and x.shape[-1] in (1, p)
        ok = ok and (rank == 1 or x.shape[1] == rank)
        expect(ok, owner, name, f"(T, {r}{heads}, {p} or 1)", x.shape)
