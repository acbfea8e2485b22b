r"""The plain recurrence that every engine runs, and the way from a `System` to it and back.

.. math:: h_t = A_t h_{t-1} + \sum_r b^r_t ⊗ x^r_t \;(+ f_t), \qquad s^k_t = {c^k_t}^\top h_t .

`prepare` applies the value map and the input scale; `read_out` applies η, the gate and the skip.
Engines thus know transitions and nothing else: no skip, no normaliser, no gate.

An output that reads the state before the update is the same thing one step late: with c of the next
step, an engine reads at step t − 1 what the output of step t needs (`prepare`, `delay`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import singledispatch
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import product_dtype, real_numbers, state_dtype
from dsfjax.core.maps import InnerOutput, InputMap, OuterInput, OutputMap
from dsfjax.core.normalizers import Normalizer, SummedNormalizer
from dsfjax.core.policy import DEFAULT, Precision
from dsfjax.core.pytree import map_time, pytree, static, time_leaves
from dsfjax.core.rows import projected, scaled_rows
from dsfjax.core.skips import Skip, TokenSkip, ValueSkip
from dsfjax.core.steps import steps
from dsfjax.core.system import System
from dsfjax.core.transitions import DiagonalPlusLowRank, Transition, to_heads

T = TypeVar("T")


@pytree
class Recurrence:
    """Inputs of an engine; the leading axis of every array is time (L, or 1 if constant).

    Attributes:
        A: Transition.
        b: (T, r, G, n) with G groups of heads; None for n = 1, where x contains it, and where W of
            the transition is written (`tied`).
        x: Values (L, r, H, p).
        c: (T, R, G, n); None for n = 1, where `read_out` applies it.
        f: Full forcing (L, H, n, p) in place of b ⊗ x, or None.
        reset: Boolean (L,) or None.
        live: Boolean (L,) or None; a step where it is False leaves the state as it is. Only
            `advance` knows it: it is for what fills up a last chunk.
        emit_states: Engines return all states (L, H, n, p) instead of s (L, R, H, p).
        precision: Of matrix products: "highest" (float32 and float64) or "default" (bfloat16).
        is_real: Of complex states: x is real, and nothing but the real part of s is used.
        tied: What is written is W of a low-rank transition, and b is None (`untie`).

    Of complex states, b, x and c may be real; `in_dtype` gives them the dtype of the states, as do
    `forcing` and `read`.
    """

    A: Transition
    b: Array | None
    x: Array
    c: Array | None
    f: Array | None = None
    reset: Array | None = None
    live: Array | None = None
    emit_states: bool = static(default=False)
    precision: str = static(default="highest")
    is_real: bool = static(default=False)
    tied: bool = static(default=False)

    @property
    def length(self) -> int:
        """Number of steps L."""
        return self.x.shape[0]

    @property
    def dtype(self) -> Any:
        """That of the states: complex where anything is."""
        numbers = [x.dtype for x in jax.tree.leaves(self) if jnp.iscomplexobj(x)]
        return numbers[0] if numbers else self.x.dtype

    def in_dtype(self, dtype: Any) -> Recurrence:
        """The recurrence with b, x and c in the dtype of the states."""
        b, c = (None if v is None else v.astype(dtype) for v in (self.b, self.c))
        return dataclasses.replace(self, b=b, x=self.x.astype(dtype), c=c)

    def untie(self) -> Recurrence:
        """The recurrence with a b of its own, also where that is W."""
        if not self.tied:
            return self
        assert isinstance(self.A, DiagonalPlusLowRank)
        b = jnp.moveaxis(self.A.factors()[0], -1, 1)
        return dataclasses.replace(self, b=b, tied=False)

    def tie(self) -> Recurrence:
        """The inverse of `untie`: W becomes b, which it has to be wherever Z is not zero."""
        assert isinstance(self.A, DiagonalPlusLowRank) and self.b is not None
        A = dataclasses.replace(self.A, w=jnp.moveaxis(self.b, 1, -1))
        return dataclasses.replace(self, A=A, b=None, tied=True)

    def forcing(self) -> Array:
        """The forcing Σ b ⊗ x, (T, H, n, p), in the dtype of the states."""
        if self.f is not None:
            return self.f
        whole = self.in_dtype(self.dtype)
        b, x = whole.b, whole.x
        if b is None:
            return x[:, 0, :, None, :]
        b = to_heads(b, x.shape[-2])
        if b.shape[1] == 1:
            return b[:, 0, :, :, None] * x[:, 0, :, None, :]
        b = jnp.broadcast_to(b, (*x.shape[:3], b.shape[3]))
        return jnp.einsum("trhn,trhp->thnp", b, x, precision=self.precision)

    def read(self, h: Array) -> Array:
        """What is read of the states after the steps (T, H, n, p): s (T, R, H, p), or h itself."""
        return h if self.emit_states else read_states(self.c, h, self.precision)


def read_states(c: Array | None, h: Array, precision: str) -> Array:
    """The inner products cᵀh over n: (T, R, H, p) from c (T, R, G, n) or None, h (T, H, n, p)."""
    if c is None:
        return h[:, None, :, 0, :]
    c = to_heads(c.astype(h.dtype), h.shape[1])
    if h.shape[2] == 1:
        return c * h[:, None, :, 0, :]
    # A product, not a multiplication and a sum: inside loops on a CPU XLA takes ten times as long
    # for the latter.
    c = jnp.broadcast_to(c, (h.shape[0], *c.shape[1:]))
    if c.shape[1] == 1:
        return jnp.einsum("thn,thnp->thp", c[:, 0], h, precision=precision)[:, None]
    return jnp.einsum("trhn,thnp->trhp", c, h, precision=precision)


def split_time(x: T, length: int) -> tuple[list[Array], Callable[[list[Array]], T]]:
    """Separate what varies in time, as `jax.lax.scan` wants it, from what is constant.

    Args:
        x: Dataclass whose arrays have time axes of size ``length`` or 1.
        length: L.

    Returns:
        The varying arrays, and a function ``arrays -> x`` that puts others, of any length, in their
        places and leaves the constant ones as they are.
    """

    def varies(leaf: Array) -> bool:
        return leaf.shape[0] == length

    def rebuild(arrays: list[Array]) -> T:
        iterator = iter(arrays)
        return map_time(lambda leaf: next(iterator) if varies(leaf) else leaf, x)

    return [leaf for leaf in time_leaves(x) if varies(leaf)], rebuild


def by_steps(x: T, length: int) -> tuple[list[Array], Callable[[list[Array]], T]]:
    """`split_time` for a loop over steps: what the loop gets becomes one step, its time axis 1."""
    xs, rebuild = split_time(x, length)
    return xs, lambda arrays: rebuild([leaf[None] for leaf in arrays])


def is_tied(system: System, cast: System) -> bool:
    """Whether a system writes along W of its low-rank transition, as all delta rules do.

    Both then hold one and the same array. So this is to be asked of the system that the caller has
    given: of a copy, or beyond `jax.jit`, equal arrays are two, with a cotangent each, and the
    answer is no, which costs time and nothing else. It is no as well if one of the two was rounded
    in ``cast``, the system that is run: they are no longer equal.
    """
    A, B, new_A, new_B = system.A, system.B, cast.A, cast.B
    if not isinstance(A, DiagonalPlusLowRank) or not isinstance(B, OuterInput):
        return False
    assert isinstance(new_A, DiagonalPlusLowRank) and isinstance(new_B, OuterInput)
    # Above rank 1, W and b have different axes even where one array serves as both.
    if A.w is not B.b or B.rank != 1 or system.state_shape[1] == 1:
        return False
    assert new_B.b is not None
    least = jnp.finfo(A.w.dtype).bits
    return all(jnp.finfo(x.dtype).bits >= least for x in (new_A.w, new_B.b))


def prepare(
    system: System,
    u: Array,
    *,
    emit_states: bool,
    policy: Precision = DEFAULT,
    tied: bool = False,
) -> Recurrence:
    """Apply value map and scale; cast to the dtype of the state."""
    dtype, precision = state_dtype(system.dtype, u.dtype), policy.products(u.dtype)
    b, x, f = write(system.B, system, u, dtype, precision)
    c = read_vectors(system.C, system, dtype)
    # Read one step early, with the c of the next step; what the last step reads is not used.
    if c is not None and system.C.before_update and c.shape[0] > 1:
        c = jnp.roll(c, -1, axis=0)

    def cast(leaf: Array) -> Array:
        return _with_digits_of(dtype, leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    A = jax.tree.map(cast, system.A)
    # Where c is known, `read_out` takes the real part of what is read before all else.
    is_real = jnp.issubdtype(dtype, jnp.complexfloating) and f is None and c is not None
    is_real = is_real and not jnp.iscomplexobj(x)
    return Recurrence(
        A,
        None if tied else b,
        x,
        c,
        f,
        system.reset,
        emit_states=emit_states,
        precision=precision,
        is_real=is_real and not emit_states,
        tied=tied,
    )


@singledispatch
def write(
    B: InputMap, system: System, u: Array, dtype: Any, precision: str
) -> tuple[Array | None, Array, Array | None]:
    """What a step writes, as b, x and f of a `Recurrence`; by its matrix for any input map."""
    f = matvec(B.matrix(system.state_shape).astype(dtype), u.astype(dtype), precision)
    empty = jnp.zeros((u.shape[0], 1, system.num_heads, 0), jnp.finfo(dtype).dtype)
    return None, empty, f.reshape(u.shape[0], *system.state_shape)


@write.register
def _(
    B: OuterInput, system: System, u: Array, dtype: Any, precision: str
) -> tuple[Array | None, Array, Array | None]:
    heads, n, _ = system.state_shape
    real = jnp.finfo(dtype).dtype
    x = _scaled_values(system, u, real, precision)
    if system.eta is not None and system.eta.num_channels:
        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), real)], axis=-1)
    b = B.vectors()
    b = None if b is None else _with_digits_of(dtype, b)
    if n > 1:
        return b, x, None
    x, b = x.astype(dtype), None if b is None else b.astype(dtype)
    # With one state per channel b is a number: it goes into the values, whose terms are then a sum.
    x = x if b is None else x * to_heads(b, heads)
    return None, (x if B.rank == 1 else x.sum(axis=1, keepdims=True)), None


@singledispatch
def read_vectors(C: OutputMap, system: System, dtype: Any) -> Array | None:
    """The vectors c that an engine reads with, (T, R, G, n); None for maps that read states."""
    return None


@read_vectors.register
def _(C: InnerOutput, system: System, dtype: Any) -> Array | None:
    if C.c is None or not C.acts_on_values or system.state_shape[1] == 1:
        return None
    return ranked_c(C, dtype if jnp.iscomplexobj(C.c) else jnp.finfo(dtype).dtype)


def ranked_c(C: InnerOutput, dtype: Any) -> Array:
    """C with the axis of the rank, (T, R, G, n)."""
    c = C.vectors()
    assert c is not None
    return c.astype(dtype)


def _with_digits_of(dtype: Any, x: Array) -> Array:
    """Numbers in the precision of a dtype, complex where they are."""
    return x.astype(dtype if jnp.iscomplexobj(x) else jnp.finfo(dtype).dtype)


def reads_states(system: System) -> bool:
    """Whether input or output maps need the states themselves."""
    # An output over p is among them. The products within a chunk have n inside and p outside; with
    # the two exchanged they are those of the transposed state, whose decays must then act on p. So
    # a `Scalar` would need values and keys to change places on every way from a system to an
    # engine and back, a decay per state has no matrix products left, and a low-rank part, which
    # acts on n from the left, no form at all. Such outputs are rare: all states are formed.
    return not system.acts_on_values


def observe(
    system: System, problem: Recurrence, out: Array, first: Array, starts: Array | None = None
) -> Array:
    """What the output map sees, for `read_out`, from what an engine gave for ``problem``.

    An output before the update sees what there was one step earlier: at resets zero, and before
    all else the state ``first`` (1, H, n, p); or, at all steps that ``starts`` marks, (L,), the
    state of ``first`` (L, H, n, p) there.
    """
    states = problem.emit_states
    c = read_vectors(system.C, system, first.dtype)
    if system.C.before_update:

        def column(flags: Array) -> Array:
            return flags.reshape(-1, *[1] * (out.ndim - 1))

        if not states:
            of_first = c[:1] if c is not None and starts is None else c
            first = read_states(of_first, first, problem.precision)
        first = first.astype(out.dtype)
        out = jnp.concatenate([first[:1], out[:-1]])
        if starts is not None:
            out = jnp.where(column(starts), first, out)
        elif system.reset is not None:
            out = jnp.where(column(system.reset), 0, out)
    if states and not reads_states(system):
        return read_states(c, out, problem.precision)
    return out


def read_out(system: System, u: Array, s: Array, policy: Precision = DEFAULT) -> Array:
    """Outputs y (L, d_out) from s = cᵀh (L, R, H, p), or from states if the system reads them."""
    precision, C = policy.products(u.dtype), system.C
    if reads_states(system):
        s = C.real(read_map(C, system, s, precision))
    else:
        assert isinstance(C, InnerOutput)
        if C.c is not None and system.state_shape[1] == 1:
            s = s * to_heads(ranked_c(C, s.dtype), s.shape[2])
        s = C.real(s)
    s = s if system.eta is None else normalize(system.eta, system, u, s, precision)
    y = gated(C, s).reshape(u.shape[0], -1)
    if system.D is not None:
        y = y + skip(system.D, system, u, y.dtype, precision)
    return y.astype(u.dtype)


@singledispatch
def read_map(C: OutputMap, system: System, h: Array, precision: str) -> Array:
    """What an output map reads of the states (L, H, n, p), without gate; by its matrix."""
    m = C.matrix(system.state_shape).astype(h.dtype)
    return matvec(m, h.reshape(h.shape[0], -1), precision)


@read_map.register
def _(C: InnerOutput, system: System, h: Array, precision: str) -> Array:
    c = None if C.c is None else ranked_c(C, h.dtype)
    return read_states(c, h if C.over == "n" else h.swapaxes(2, 3), precision)


@singledispatch
def gated(C: OutputMap, s: Array) -> Array:
    """The gate of an output map; most have none."""
    return s


@gated.register
def _(C: InnerOutput, s: Array) -> Array:
    # Without c all R vectors read the same, and an engine gives it once.
    s = jnp.broadcast_to(s, (s.shape[0], C.rank, *s.shape[2:]))
    gate = C.gates()
    return s if gate is None else scaled_rows(s, gate.astype(s.dtype))


@singledispatch
def normalize(eta: Normalizer, system: System, u: Array, s: Array, precision: str) -> Array:
    """Divide what was read, (L, R, H, p), by the normaliser."""
    return scaled_rows(s, jnp.exp(-eta.log().astype(s.dtype))[:, None, :, None])


@normalize.register
def _(eta: SummedNormalizer, system: System, u: Array, s: Array, precision: str) -> Array:
    numerator, summed = s[..., :-1], eta.eta(s[:, 0, :, -1])
    if eta.bonus is not None:
        bonus = eta.bonus.astype(s.dtype)[:, None, :, None]  # type: ignore[union-attr]
        numerator = numerator + bonus * _scaled_values(system, u, s.dtype, precision)
    return _quotient(numerator, summed[:, None, :, None])


@jax.custom_jvp
def _quotient(s: Array, eta: Array) -> Array:
    """The quotient s / η: its derivative (ds − y dη) / η needs no η², which may underflow."""
    return s / eta


@_quotient.defjvp
def _quotient_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    (s, eta), (ds, d_eta) = primals, tangents
    y = _quotient(s, eta)
    return y, (ds - scaled_rows(y, d_eta)) / eta


@singledispatch
def skip(D: Skip, system: System, u: Array, dtype: Any, precision: str) -> Array:
    """D_t u_t, (L, d_out); by its matrix for any skip."""
    return matvec(D.matrix(system).astype(dtype), u.astype(dtype), precision)


@skip.register
def _(D: TokenSkip, system: System, u: Array, dtype: Any, precision: str) -> Array:
    return D.d.astype(dtype) * u.astype(dtype)


@skip.register
def _(D: ValueSkip, system: System, u: Array, dtype: Any, precision: str) -> Array:
    v = _values(system, u, precision)[:, 0].astype(dtype)
    return scaled_rows(v, D.d.astype(dtype)).reshape(u.shape[0], -1)


def check_tokens(owner: str, system: Any, u: Array) -> Array:
    """The tokens as real numbers; raise unless they are (L, d) and fit the system."""
    u = real_numbers(owner, "tokens u", u, *(x.dtype for x in jax.tree.leaves(system)))
    length = system.length
    fits = u.ndim == 2 and u.shape[1] == system.token_width and u.shape[0] >= 1
    if not fits or length not in (None, u.shape[0]):
        count = "L" if length is None else length
        raise ValueError(
            f"{owner}: expected tokens u of shape ({count}, {system.token_width}), one sequence, "
            f"got {u.shape}. For a batch use jax.vmap over systems and tokens."
        )
    steps(system, u.shape[0], owner=owner)
    return u


def _scaled_values(system: System, u: Array, dtype: Any, precision: str) -> Array:
    """The values with their scale, (L, r, H, p)."""
    assert isinstance(system.B, OuterInput)
    x, scale = _values(system, u, precision).astype(dtype), system.B.scales()
    return x if scale is None else scaled_rows(x, scale.astype(dtype))


def _values(system: System, u: Array, precision: str) -> Array:
    """The values W u_t, (L, r, H, p), in the wider dtype of W and u."""
    assert isinstance(system.B, OuterInput)
    heads, _, p = system.state_shape
    W = system.B.W
    if W is not None:
        u = project(u, W, precision, system.real_dtype)
    return u.reshape(u.shape[0], system.B.rank, heads, p)


def project(u: Array, W: Array, precision: str, sums: Any = jnp.float32) -> Array:
    """W u_t for every t; sums in at least ``sums``."""
    dtype = product_dtype(u.dtype, W.dtype)
    u, W = u.astype(dtype), W.astype(dtype)
    return projected(u, W, axis=1, precision=precision, sums=state_dtype(dtype, sums))


def matvec(matrix: Array, x: Array, precision: str) -> Array:
    """M_t x_t for every t, from (T, o, i) and (L, i)."""
    if matrix.shape[0] == 1:
        return projected(x, matrix[0], axis=1, precision=precision)
    return jnp.einsum("li,loi->lo", x, matrix, precision=precision)
