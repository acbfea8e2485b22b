r"""Transitions A_t: how the state decays and mixes from one step to the next.

The paper writes the transition Λ_t; in code it is ``A``. The *type* is the structure, and the
structure decides which algorithms apply. The state of one step is ``h`` of shape (H, n, p): heads,
state expansion per head, value channels per head.

==========================  =====================================  ===========================
type                        A_t on one head                        parameters per step
==========================  =====================================  ===========================
`Scalar`                    a I                                    log |a| (H,), sign
`Diagonal`                  diag(a) over n, over p, or both        log |a| (H, n|1, p|1), sign
`DiagonalPlusLowRank`       diag(a) − W S Zᵀ on the n axis         log |a| (H, n), W, Z (G, n, r)
`Dense`                     any matrix on the n axis               (H, n, n)
your subclass               any matrix on the n axis               whatever it holds
==========================  =====================================  ===========================

Every array has a leading time axis; a time axis of size 1 means constant in time.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.factor import one_by_one
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.pytree import pytree


def expect(condition: bool, owner: Any, name: str, expected: str, got: Any) -> None:
    """Raise `ValueError` about the shape of a field, unless the condition holds."""
    if not condition:
        raise ValueError(
            f"{type(owner).__name__}: expected {name} of shape {expected}, got {got}. The leading "
            "axis is time: one entry per step, or 1 if constant. For a batch use jax.vmap."
        )


def to_heads(x: Array, num_heads: int, axis: int = -2) -> Array:
    """Repeat G groups to H heads along an axis; heads of a group are neighbours.

    Example:
        >>> to_heads(jnp.array([[1.0], [2.0]]), 4)[:, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    groups = x.shape[axis]
    return x if groups == num_heads else jnp.repeat(x, num_heads // groups, axis=axis)


def group_of(x: Any, head: int, num_heads: int, axis: int = 1) -> Any:
    """What `to_heads` would repeat for one head, its axis of groups kept as 1; None for None.

    Example:
        >>> group_of(jnp.array([[[1.0], [2.0]]]), 2, 4)[0, 0].tolist()
        [2.0]
    """
    if x is None:
        return None
    group = head * x.shape[axis] // num_heads
    return jax.lax.slice_in_dim(x, group, group + 1, axis=axis)


class Transition(abc.ABC):
    """The transition A_t of a `System`. Subclass it to bring a structure of your own.

    You write a class with the decorator `dsfjax.pytree`, arrays with a leading time axis as its
    fields (`dsfjax.constant()` marks an array without one, `dsfjax.static()` a Python value), and
    one method, `matrix`, which is always called with the time axis in place.

    You get everything else: `dsfjax.scan` (sequential, associative, checkpointed, materialized),
    `dsfjax.step`, `dsfjax.materialize`, `dsfjax.to_dense`, `dsfjax.rescale`, `dsfjax.pad_state`,
    composition in time, in parallel and in series, resets, gradients, and every function of
    `dsfjax.analysis`. The other methods have defaults that follow from `matrix`. Override one where
    your structure allows something cheaper, as the built-in structures do; all are called with the
    time axis, which is 1 for a single step.

    Example:
        A rotation of two states by an angle per step and head:

        >>> import dsfjax
        >>> @dsfjax.pytree
        ... class Rotation(dsfjax.Transition):
        ...     angle: jax.Array  # (T, H)
        ...
        ...     def matrix(self):
        ...         c, s = jnp.cos(self.angle), jnp.sin(self.angle)
        ...         rows = jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)
        ...         return jnp.stack(rows, axis=-2)
        >>> quarter = Rotation(jnp.full((4, 1), jnp.pi / 2))
        >>> e = jnp.array([[[1.0, 0.0]]])
        >>> B, C = dsfjax.OuterInput(e), dsfjax.InnerOutput(e)
        >>> s = dsfjax.System(quarter, B, C, state_shape=(1, 2, 1))
        >>> y, h = dsfjax.scan(s, jnp.array([[1.0], [0.0], [0.0], [0.0]]))
        >>> [abs(round(x)) * (1 if x > 0 else -1) for x in y[:, 0].tolist()]
        [1, 0, -1, 0]
    """

    @abc.abstractmethod
    def matrix(self) -> Array:
        """A_t of every step and head, (T, H, n, n) with T steps or 1."""

    @property
    def is_diagonal(self) -> bool:
        """Whether A_t acts on every entry of the state alone; then it is an `Elementwise`."""
        return False

    @property
    def per_channel(self) -> bool:
        """Whether A_t differs between the value channels p of a head."""
        return False

    @property
    def is_positive(self) -> bool:
        """Whether all eigenvalues are real and not negative, whatever the values of the fields."""
        return False

    @property
    def low_rank(self) -> int:
        """Rank of what a low-rank transition adds to a diagonal; 0 for every other structure."""
        return 0

    def decay_axes(self) -> tuple[int, ...]:
        """How the decay of an `Elementwise` transition varies within a head; () for others."""
        return ()

    def parts(self) -> tuple[Array | None, Array | None]:
        """A_t as the sum of a diagonal and a matrix: (T, H, n|1, p|1) and (T, H, n, n).

        None stands for 0. Products of sums that are kept apart are more accurate where the matrix
        is small next to the diagonal.
        """
        return None, self.matrix()

    @property
    def dtype(self) -> Any:
        """Dtype of A_t."""
        return jax.eval_shape(lambda A: A.matrix(), self).dtype

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, _ = state_shape
        shape = jax.eval_shape(lambda A: A.matrix(), self).shape
        ok = len(shape) == 4 and shape[1] in (1, heads) and shape[2:] == (n, n)
        expect(ok, self, "matrix()", f"(T, {heads}, {n}, {n})", shape)

    def apply(self, h: Array, precision: str = "highest") -> Array:
        """A_t h_t for every step t: from (T, H, n, p) to (T, H, n, p); time axes of 1 broadcast."""
        return jnp.matmul(self.matrix().astype(h.dtype), h, precision=precision)

    def transpose(self) -> Transition:
        """The transition A_tᵀ, transposed and not conjugated."""
        return Dense(self.matrix().swapaxes(-1, -2))

    def rescale(self, log_r: Array) -> Transition:
        """The transition exp(log_r_t) A_t, for log_r (T, H)."""
        m = self.matrix()
        return Dense(m * jnp.exp(log_r)[:, :, None, None].astype(m.dtype))

    def pad(self, n_now: int, n: int) -> Transition:
        """A transition of n states per head that acts on the first ``n_now`` as this one."""
        return Dense(jnp.pad(self.matrix(), [(0, 0)] * 2 + [(0, n - n_now)] * 2))

    def of_head(self, head: int) -> Transition:
        """The transition of one head, alone."""
        m = self.matrix()
        return Dense(m[:, head : head + 1] if m.shape[1] > 1 else m)

    def log_eigenvalues(self) -> tuple[Array, Array | None]:
        """Logarithms of the distinct eigenvalues (T, H or 1, k), and which of them are negative.

        An eigenvalue is the exponential of its logarithm, with the sign flipped where the second
        array (of the same shape, or None for nowhere) says so.
        """
        m = self.matrix()
        return jnp.log(one_by_one(jnp.linalg.eigvals, m.astype(state_dtype(m.dtype)))), None

    def product(self, length: int) -> Transition:
        """A_L ⋯ A_1 over all of ``length`` steps, as a transition of one step."""
        m = self.matrix()
        m = m.astype(state_dtype(m.dtype))
        if m.shape[0] == 1:
            power = jnp.linalg.matrix_power(m[0], length)
            return Dense(power[None])

        def advance(P: Array, now: Array) -> tuple[Array, None]:
            return jnp.matmul(now, P, precision="highest"), None

        return Dense(jax.lax.scan(advance, m[0], m[1:])[0][None])

    def compose(self, late: Any) -> Transition:
        """The transition of a stretch of steps followed by ``late``, both of one step."""
        return Dense(jnp.matmul(late.matrix(), self.matrix(), precision="highest"))

    def dense(self, state_shape: tuple[int, int, int]) -> Array:
        """A_t on the flattened state, (T, N, N)."""
        heads, n, p = state_shape
        m = self.matrix()
        m = jnp.broadcast_to(m, (m.shape[0], heads, n, n))
        eye_h, eye_p = jnp.eye(heads, dtype=m.dtype), jnp.eye(p, dtype=m.dtype)
        full = jnp.einsum("thij,hg,qr->thiqgjr", m, eye_h, eye_p)
        return full.reshape(m.shape[0], heads * n * p, heads * n * p)

    def describe(self) -> str:
        """The structure in words, for `dsfjax.explain`."""
        return f"{type(self).__name__}, run by its matrices"


@pytree
class DiagonalPlusLowRank(Transition):
    """A_t = diag(a_t) − W_t S_t Z_tᵀ on the n axis, |a_t| = exp(log_a_t) (delta rule, RWKV-7).

    Attributes:
        log_a: (T, H, n) or (T, H, 1).
        w: Left factor W, (T, G, n, r), with G groups of heads, G divides H. For r = 1 also
            (T, G, n), as the keys of an `OuterInput`: where it is the very array that the input map
            writes, as in a delta rule, the engines take the products with both once.
        z: Right factor Z, (T, G', n, r), or (T, G', n); transposed, not conjugated.
        sign: Negative where a_t is, of a shape that broadcasts to that of ``log_a``; None if all
            are positive. It has no gradient.
        scale: The diagonal of S, (T, H, r) or (T, H, 1), such as the β of a delta rule; None for 1.
    """

    log_a: Array
    w: Array
    z: Array
    sign: Array | None = None
    scale: Array | None = None

    def __post_init__(self) -> None:
        expect(jnp.ndim(self.log_a) == 3, self, "log_a", "(T, H, n)", jnp.shape(self.log_a))
        for name in ("w", "z"):
            shape = jnp.shape(getattr(self, name))
            expect(len(shape) in (3, 4), self, name, "(T, G, n, r) or (T, G, n)", shape)
        shapes = tuple(jnp.shape(x) for x in (self.w, self.z))
        sizes = [(*x[2:], 1)[:2] for x in shapes]
        expect(sizes[0] == sizes[1], self, "w and z", "the same (n, r)", shapes)
        if self.scale is not None:
            shape = jnp.shape(self.scale)
            ok = len(shape) == 3 and shape[2] in (1, self.low_rank)
            expect(ok, self, "scale", f"(T, H, {self.low_rank}), or 1 along the last axis", shape)
        check_sign(self)

    @property
    def low_rank(self) -> int:
        """r, the number of columns of W and Z."""
        return self.w.shape[-1] if self.w.ndim > self.log_a.ndim else 1

    @property
    def dtype(self) -> Any:
        """Dtype of A_t."""
        fields = self.log_a, self.w, self.z, self.scale
        return state_dtype(*(x.dtype for x in fields if x is not None))

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, _ = state_shape
        for name in ("w", "z"):
            shape = getattr(self, name).shape
            ok = heads % shape[1] == 0 and shape[2] == n
            expect(ok, self, name, f"(T, G, {n}, r) with G dividing {heads}", shape)
        ok = self.log_a.shape[-2] == heads and self.log_a.shape[-1] in (1, n)
        expect(ok, self, "log_a", f"(T, {heads}, {n} or 1)", self.log_a.shape)
        if self.scale is not None:
            expect(
                self.scale.shape[1] == heads, self, "scale", f"(T, {heads}, r)", self.scale.shape
            )

    def factors(self) -> tuple[Array, Array]:
        """W and Z with the axis of the rank in any case, (T, G, n, r) and (T, G', n, r)."""
        w, z = (x if x.ndim == 4 else x[..., None] for x in (self.w, self.z))
        return w, z

    def parts(self) -> tuple[Array, Array]:
        """The decays (T, H, n or 1, 1), and −W S Zᵀ of every step and head, (T, H, n, n)."""
        a = signed_exp(self.log_a, self.sign).astype(self.dtype)[..., None]
        w, z = (to_heads(x, a.shape[1], -3).astype(self.dtype) for x in self.factors())
        if self.scale is not None:
            w = w * self.scale[:, :, None].astype(self.dtype)
        return a, -jnp.einsum("...nr,...mr->...nm", w, z, precision="highest")

    def matrix(self) -> Array:
        """A_t of every step and head, (T, H, n, n)."""
        a, low_rank = self.parts()
        return a * jnp.eye(self.w.shape[2], dtype=a.dtype)[None, None] + low_rank

    def apply(self, h: Array, precision: str = "highest") -> Array:
        """A_t h_t in O(n r p) per head and step."""
        heads = h.shape[1]
        a = signed_exp(self.log_a, self.sign).astype(h.dtype)[..., None]
        w, z = (to_heads(x, heads, -3).astype(h.dtype) for x in self.factors())
        read = jnp.matmul(z.swapaxes(-1, -2), h, precision=precision)
        if self.scale is not None:
            read = read * self.scale[..., None].astype(h.dtype)
        return a * h - jnp.matmul(w, read, precision=precision)

    def transpose(self) -> DiagonalPlusLowRank:
        """The transition A_tᵀ: W and Z change places."""
        return DiagonalPlusLowRank(self.log_a, self.z, self.w, self.sign, self.scale)

    def rescale(self, log_r: Array) -> DiagonalPlusLowRank:
        """The transition exp(log_r_t) A_t."""
        wide = jnp.finfo(self.dtype).dtype if self.scale is None else state_dtype(self.scale.dtype)
        scale = jnp.exp(log_r)[:, :, None].astype(wide)
        scale = scale if self.scale is None else self.scale.astype(wide) * scale
        log_a = self.log_a + log_r[:, :, None].astype(self.log_a.dtype)
        return DiagonalPlusLowRank(log_a, self.w, self.z, self.sign, scale)

    def of_head(self, head: int) -> DiagonalPlusLowRank:
        """The transition of one head, alone."""
        heads = self.log_a.shape[-2]
        fields = self.log_a, self.w, self.z, self.sign, self.scale
        return DiagonalPlusLowRank(*(group_of(x, head, heads) for x in fields))

    def pad(self, n_now: int, n: int) -> DiagonalPlusLowRank:
        """A transition of n states per head; the new ones neither decay nor meet the others."""
        log_a = jnp.broadcast_to(self.log_a, (*self.log_a.shape[:-1], n_now))
        w, z = (pad_axis(x, 2, n) for x in (self.w, self.z))
        sign = self.sign
        if sign is not None:  # of 1 for the new ones, also where the others share one
            sign = pad_axis(jnp.broadcast_to(sign, (*sign.shape[:-1], n_now)), -1, n)
        return DiagonalPlusLowRank(pad_axis(log_a, -1, n), w, z, sign, self.scale)

    def describe(self) -> str:
        """The structure in words."""
        return f"diagonal plus rank {self.low_rank}"


class ArrayLike:
    """Lets a dataclass of one array be read as that array by NumPy and jax.numpy."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the array."""
        return self.array.dtype

    def __getitem__(self, index: Any) -> Array:
        return self.array[index]

    def __jax_array__(self) -> Array:
        return self.array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)


@pytree
class Dense(ArrayLike, Transition):
    """An unstructured transition on the n axis.

    Attributes:
        array: (T, H, n, n), or (T, n, n) for one matrix shared by the heads. Reads as an array
            (``np.asarray(system.A)``).
    """

    array: Array

    def __post_init__(self) -> None:
        shape = jnp.shape(self.array)
        expect(len(shape) in (3, 4), self, "array", "(T, H, n, n) or (T, n, n)", shape)

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, _ = state_shape
        ok = self.array.shape[-2:] == (n, n)
        ok = ok and (self.array.ndim == 3 or self.array.shape[1] == heads)
        expect(ok, self, "array", f"(T, {heads}, {n}, {n}) or (T, {n}, {n})", self.array.shape)

    def matrix(self) -> Array:
        """A_t of every step with a head axis, (T, H or 1, n, n)."""
        return self.array if self.array.ndim == 4 else self.array[:, None]

    def transpose(self) -> Dense:
        """The transition A_tᵀ."""
        return Dense(self.array.swapaxes(-1, -2))

    def pad(self, n_now: int, n: int) -> Dense:
        """A transition of n states per head, zero on the new ones."""
        return Dense(pad_axis(pad_axis(self.array, -1, n), -2, n))

    def describe(self) -> str:
        """The structure in words."""
        return "dense"


def pad_axis(x: Array, axis: int, size: int) -> Array:
    """Zeros at the end of an axis, up to a size."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def check_sign(owner: Any) -> None:
    """Bring the field ``sign`` to −1 and 1 in int8, which has no gradient; raise if it misfits."""
    if owner.sign is None:
        return
    object.__setattr__(owner, "sign", jnp.where(owner.sign < 0, -1, 1).astype(jnp.int8))
    sign, log_a = jnp.shape(owner.sign), owner.log_a.shape
    ok = len(sign) == len(log_a) and all(
        s in (1, a) or (i == 0 and a == 1) for i, (s, a) in enumerate(zip(sign, log_a, strict=True))
    )
    expect(ok, owner, "sign", f"{log_a}, or 1 along an axis", sign)
    if jnp.issubdtype(owner.log_a.dtype, jnp.complexfloating):
        raise ValueError(
            f"{type(owner).__name__}: expected a real log_a together with a sign, got "
            f"{owner.log_a.dtype}. A complex decay has its sign in its phase."
        )


def signed_exp(log_a: Array, sign: Array | None) -> Array:
    """The decay a with log |a| and the sign given apart."""
    a = jnp.exp(log_a)
    return a if sign is None else jnp.where(sign < 0, -a, a)
