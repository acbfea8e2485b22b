r"""The plain recurrence that every engine runs, and the way from a `System` to it and back.

.. math:: h_t = A_t h_{t-1} + b_t ⊗ x_t \;(+ f_t), \qquad s_t = c_t^\top h_t .

`prepare` applies the value map and the input scale; `read_out` applies η, the gate and the skip.
Engines thus know four structures of A and nothing else: no skip, no normaliser, no gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import product_dtype, state_dtype
from dsfjax.core.maps import (
    DenseOutput,
    DenseSkip,
    GivenNormalizer,
    InnerOutput,
    OuterInput,
    SummedNormalizer,
    TokenSkip,
    to_heads,
)
from dsfjax.core.pytree import map_time, pytree, static, time_leaves
from dsfjax.core.system import System
from dsfjax.core.transitions import Transition

T = TypeVar("T")


@pytree
class Recurrence:
    """Inputs of an engine; the leading axis of every array is time (L, or 1 if constant).

    Attributes:
        A: Transition.
        b: (T, G, n) with G groups of heads; None for n = 1, where x contains it.
        x: Values (L, H, p).
        c: (T, G, n); None for n = 1, where `read_out` applies it.
        f: Full forcing (L, H, n, p) in place of b ⊗ x, or None.
        reset: Boolean (L,) or None.
        emit_states: Engines return all states (L, H, n, p) instead of s (L, H, p).
        precision: Of matrix products: "highest" (float32 and float64) or "default" (bfloat16).
    """

    A: Transition
    b: Array | None
    x: Array
    c: Array | None
    f: Array | None = None
    reset: Array | None = None
    emit_states: bool = static(default=False)
    precision: str = static(default="highest")

    @property
    def length(self) -> int:
        """Number of steps L."""
        return self.x.shape[0]

    def forcing(self) -> Array:
        """The forcing b ⊗ x with axes (…, H, n, p); works on all steps and on one."""
        if self.f is not None:
            return self.f
        if self.b is None:
            return self.x[..., None, :]
        return to_heads(self.b, self.x.shape[-2])[..., None] * self.x[..., None, :]


def read_states(c: Array | None, h: Array, precision: str) -> Array:
    """The inner product cᵀh over n: (…, H, p) from c (…, G, n) or None and h (…, H, n, p)."""
    if c is None:
        return h[..., 0, :]
    c = to_heads(c, h.shape[-3])
    if h.shape[-2] == 1:
        return c * h[..., 0, :]
    # A product, not a multiplication and a sum: inside loops on a CPU XLA takes ten times as long
    # for the latter.
    c = jnp.broadcast_to(c, h.shape[:-1])
    return jnp.einsum("...hn,...hnp->...hp", c, h, precision=precision)


def split_time(
    x: T, length: int
) -> tuple[list[Array], Callable[[list[Array], Callable[[Array], Array]], T]]:
    """Separate what varies in time, as `jax.lax.scan` wants it, from what is constant.

    Args:
        x: Dataclass whose arrays have time axes of size ``length`` or 1.
        length: L.

    Returns:
        The varying arrays, and a function ``(arrays, of_constant) -> x`` that puts arrays back in
        their places and ``of_constant(array)`` in those of the constant ones.
    """

    def varies(leaf: Array) -> bool:
        return leaf.shape[0] == length

    def rebuild(arrays: list[Array], of_constant: Callable[[Array], Array]) -> T:
        iterator = iter(arrays)
        return map_time(lambda leaf: next(iterator) if varies(leaf) else of_constant(leaf), x)

    return [leaf for leaf in time_leaves(x) if varies(leaf)], rebuild


def prepare(system: System, u: Array, *, emit_states: bool) -> Recurrence:
    """Apply value map and scale; cast to the dtype of the state."""
    dtype = state_dtype(system.dtype, u.dtype)
    real = jnp.finfo(dtype).dtype
    precision = "default" if u.dtype == jnp.bfloat16 else "highest"
    heads, n, _ = system.state_shape
    b = c = f = None
    x = jnp.zeros((u.shape[0], heads, 0), real)
    if isinstance(system.B, OuterInput):
        b = None if system.B.b is None else system.B.b.astype(dtype)
        x = _values(system, u).astype(real)
        if system.B.scale is not None:
            x = x * system.B.scale.astype(real)
        if isinstance(system.eta, SummedNormalizer):
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), real)], axis=-1)
        x = x.astype(dtype)
        if n == 1 and b is not None:
            x, b = x * to_heads(b, heads), None
    else:
        f = _matvec(system.B.matrix.astype(dtype), u.astype(dtype), precision)
        f = f.reshape(u.shape[0], *system.state_shape)
    if isinstance(system.C, InnerOutput) and system.C.c is not None and n > 1:
        c = system.C.c.astype(dtype)
    A = jax.tree.map(lambda leaf: leaf.astype(_like(leaf, dtype)), system.A)
    return Recurrence(A, b, x, c, f, system.reset, emit_states=emit_states, precision=precision)


def reads_states(system: System) -> bool:
    """Whether dense input or output maps need the states themselves."""
    return isinstance(system.C, DenseOutput) or not isinstance(system.B, OuterInput)


def read_out(system: System, u: Array, s: Array, *, from_states: bool) -> Array:
    """Outputs y (L, d_out) from s = cᵀh (L, H, p), or from the states if ``from_states``."""
    dtype, precision = s.dtype, "default" if u.dtype == jnp.bfloat16 else "highest"
    C, steps = system.C, u.shape[0]
    if from_states and isinstance(C, DenseOutput):
        s = _matvec(C.matrix.astype(dtype), s.reshape(steps, -1), precision)
    elif from_states:
        assert isinstance(C, InnerOutput)
        s = read_states(None if C.c is None else C.c.astype(dtype), s, precision)
    elif isinstance(C, InnerOutput) and C.c is not None and system.state_shape[1] == 1:
        s = s * to_heads(C.c.astype(dtype), s.shape[1])
    if jnp.iscomplexobj(s):
        s = s.real * (2 if C.conjugate_pairs else 1)
    real = s.dtype
    if isinstance(system.eta, SummedNormalizer):
        s = _quotient(s[..., :-1], s[..., -1:])
    elif isinstance(system.eta, GivenNormalizer):
        s = s * jnp.exp(-system.eta.log_eta.astype(real))[..., None]
    if isinstance(C, InnerOutput) and C.gate is not None:
        s = s * C.gate.astype(real)
    y = s.reshape(steps, -1)
    D = system.D
    if isinstance(D, TokenSkip):
        y = y + D.d.astype(real) * u.astype(real)
    elif isinstance(D, DenseSkip):
        y = y + _matvec(D.matrix.astype(real), u.astype(real), precision)
    elif D is not None:
        y = y + (D.d.astype(real) * _values(system, u).astype(real)).reshape(steps, -1)
    return y.astype(u.dtype)


@jax.custom_jvp
def _quotient(s: Array, eta: Array) -> Array:
    """The quotient s / η: its derivative (ds − y dη) / η needs no η², which may underflow."""
    return s / eta


@_quotient.defjvp
def _quotient_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    (s, eta), (ds, d_eta) = primals, tangents
    y = _quotient(s, eta)
    return y, (ds - y * d_eta) / eta


def check_tokens(owner: str, system: Any, u: Array) -> None:
    """Raise unless u is (L, d) and fits the system."""
    length = system.length
    fits = u.ndim == 2 and u.shape[1] == system.token_width and u.shape[0] >= 1
    if not fits or (length != 1 and u.shape[0] != length):
        steps = "L" if length == 1 else length
        raise ValueError(
            f"{owner}: expected tokens u of shape ({steps}, {system.token_width}), one sequence, "
            f"got {u.shape}. For a batch use jax.vmap over systems and tokens."
        )
    if system.reset is not None and system.reset.shape != u.shape[:1]:
        raise ValueError(
            f"{owner}: expected reset of shape ({u.shape[0]},), one per token, got "
            f"{system.reset.shape}. Resets are never constant in time."
        )


def _values(system: System, u: Array) -> Array:
    """The values W u_t, (L, H, p), in the wider dtype of W and u."""
    assert isinstance(system.B, OuterInput)
    heads, _, p = system.state_shape
    W = system.B.W
    if W is not None:
        precision = "default" if u.dtype == jnp.bfloat16 else "highest"
        u = project(u, W, precision)
    return u.reshape(u.shape[0], heads, p)


def project(u: Array, W: Array, precision: str) -> Array:
    """W u_t for every t; sums in at least float32."""
    dtype = product_dtype(u.dtype, W.dtype)
    u, W = u.astype(dtype), W.astype(dtype)
    return jnp.einsum(
        "ld,ed->le", u, W, precision=precision, preferred_element_type=state_dtype(dtype)
    )


def _matvec(matrix: Array, x: Array, precision: str) -> Array:
    if matrix.shape[0] == 1:
        return jnp.einsum("li,oi->lo", x, matrix[0], precision=precision)
    return jnp.einsum("li,loi->lo", x, matrix, precision=precision)


def _like(leaf: Array, dtype: Any) -> Any:
    """``dtype`` for complex leaves, its real counterpart for real ones."""
    return dtype if jnp.iscomplexobj(leaf) else jnp.finfo(dtype).dtype
