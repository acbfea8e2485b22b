r"""Transitions A_t: how the state decays and mixes from one step to the next.

The paper writes the transition Λ_t; in code it is ``A``. The *type* is the structure, and the
structure decides which engines apply. The state of one step is ``h`` of shape (H, n, p): heads,
state expansion per head, value channels per head.

==========================  =====================================  ===========================
type                        A_t on one head                        parameters per step
==========================  =====================================  ===========================
`Scalar`                    a I                                    log a (H,)
`Diagonal`                  diag(a) over n, over p, or both        log a (H, n|1, p|1)
`DiagonalPlusLowRank`       diag(a) − W Zᵀ on the n axis           log a (H, n), W, Z (H, n, r)
`Dense`                     any matrix on the n axis               (H, n, n)
==========================  =====================================  ===========================

Decays are stored as logarithms: products over many steps become sums, and a decay of exactly 0 is
``-inf``. A leading time axis of size 1 means constant in time. `apply` acts on objects whose time
axis has been removed (one step).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import product_dtype
from dsfjax.core.pytree import constant, pytree


def _expect(condition: bool, owner: Any, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(
            f"{type(owner).__name__}: expected {name} of shape {expected}, got {got}. The leading "
            "axis is time: one entry per step, or 1 if constant. For a batch use jax.vmap."
        )


@pytree
class Scalar:
    """One decay per head: A_t = exp(log_a) I.

    Attributes:
        log_a: log a_t, real or complex, shape (T, H) with T the number of steps or 1.

    Example:
        >>> import jax.numpy as jnp
        >>> Scalar(jnp.zeros((1, 4)))
        Scalar(log_a=float32[1, 4])
    """

    log_a: Array

    def __post_init__(self) -> None:
        _expect(jnp.ndim(self.log_a) == 2, self, "log_a", "(T, H)", jnp.shape(self.log_a))

    def log_decay(self) -> Array:
        """Log decay with axes (…, H, 1, 1), broadcasting against the state."""
        return self.log_a[..., None, None]

    def apply(self, h: Array) -> Array:
        """A_t h for one step, h (H, n, p)."""
        return jnp.exp(self.log_decay()).astype(h.dtype) * h

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        _expect(
            self.log_a.shape[-1] == state_shape[0],
            self,
            "log_a",
            f"(T, {state_shape[0]})",
            self.log_a.shape,
        )


@pytree
class Factored:
    """A log decay that is an outer product: log a_t = step_t × rate (the Δ_t A of S6).

    No engine forms the product for all steps at once.

    Attributes:
        step: (T, H, p) or (T, H, 1), usually Δ_t ≥ 0.
        rate: (H, n, p), (H, 1, p) or (H, n, 1), constant in time, usually A ≤ 0.
    """

    step: Array
    rate: Array = constant()

    def __post_init__(self) -> None:
        _expect(jnp.ndim(self.step) == 3, self, "step", "(T, H, p)", jnp.shape(self.step))
        heads = jnp.shape(self.step)[1]
        ok = jnp.ndim(self.rate) == 3 and jnp.shape(self.rate)[0] == heads
        _expect(ok, self, "rate (no time axis)", f"({heads}, n, p)", jnp.shape(self.rate))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, (…, H, n, p)."""
        return (
            *self.step.shape[:-1],
            self.rate.shape[-2],
            max(self.step.shape[-1], self.rate.shape[-1]),
        )

    @property
    def dtype(self) -> Any:
        """Dtype of the product."""
        return product_dtype(self.step.dtype, self.rate.dtype)

    def product(self) -> Array:
        """The log decay (…, H, n, p), with or without a time axis as ``step``."""
        rate = self.rate[(None,) * (self.step.ndim - 2)]  # a time axis, if step still has one
        return self.step[..., None, :].astype(self.dtype) * rate.astype(self.dtype)


@pytree
class Diagonal:
    """A diagonal transition over the n axis, the p axis, or both.

    Attributes:
        log_a: log a_t, real or complex, shape (T, H, n, p) where n or p (or both) may be 1 if the
            decay does not vary along that axis; or `Factored`.

    Example:
        >>> import jax.numpy as jnp
        >>> Diagonal(jnp.zeros((5, 2, 8, 1))).log_decay().shape
        (5, 2, 8, 1)
    """

    log_a: Array | Factored

    def __post_init__(self) -> None:
        _expect(
            len(self.log_a.shape) == 4, self, "log_a", "(T, H, n or 1, p or 1)", self.log_a.shape
        )

    @classmethod
    def factored(cls, step: Array, rate: Array) -> Diagonal:
        """Diagonal with log a_t = step_t × rate, kept as the two factors."""
        return cls(Factored(step, rate))

    @property
    def per_state(self) -> bool:
        """Whether the decay is the same for all value channels p of a head."""
        return self.log_a.shape[-1] == 1

    def log_decay(self) -> Array:
        """Log decay with axes (…, H, n|1, p|1)."""
        return self.log_a.product() if isinstance(self.log_a, Factored) else self.log_a

    def apply(self, h: Array) -> Array:
        """A_t h for one step, h (H, n, p)."""
        return jnp.exp(self.log_decay()).astype(h.dtype) * h

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        got = self.log_a.shape[-3:]
        ok = got[0] == heads and got[1] in (1, n) and got[2] in (1, p)
        _expect(ok, self, "log_a", f"(T, {heads}, {n} or 1, {p} or 1)", self.log_a.shape)


@pytree
class DiagonalPlusLowRank:
    """A_t = diag(exp(log_a_t)) − W_t Z_tᵀ on the n axis (delta rule, RWKV-7).

    Attributes:
        log_a: (T, H, n) or (T, H, 1).
        w: Left factor W, (T, H, n, r).
        z: Right factor Z, (T, H, n, r); transposed, not conjugated.
    """

    log_a: Array
    w: Array
    z: Array

    def __post_init__(self) -> None:
        _expect(jnp.ndim(self.log_a) == 3, self, "log_a", "(T, H, n)", jnp.shape(self.log_a))
        for name in ("w", "z"):
            shape = jnp.shape(getattr(self, name))
            _expect(len(shape) == 4, self, name, "(T, H, n, r)", shape)
        _expect(
            self.w.shape[1:] == self.z.shape[1:],
            self,
            "w and z",
            "the same (H, n, r)",
            (self.w.shape, self.z.shape),
        )

    def apply(self, h: Array) -> Array:
        """A_t h for one step, h (H, n, p)."""
        a = jnp.exp(self.log_a).astype(h.dtype)[..., None]
        read = jnp.einsum("hnr,hnp->hrp", self.z.astype(h.dtype), h, precision="highest")
        return a * h - jnp.einsum("hnr,hrp->hnp", self.w.astype(h.dtype), read, precision="highest")

    def matrix_of_step(self) -> Array:
        """The n×n matrices, with axes (…, H, n, n)."""
        n = self.w.shape[-2]
        diagonal = jnp.broadcast_to(jnp.exp(self.log_a), (*self.log_a.shape[:-1], n))
        low_rank = jnp.einsum("...nr,...mr->...nm", self.w, self.z, precision="highest")
        eye = jnp.eye(n, dtype=diagonal.dtype)
        return jnp.einsum("...n,nm->...nm", diagonal, eye) - low_rank

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, _ = state_shape
        _expect(
            self.w.shape[-3:-1] == (heads, n),
            self,
            "w and z",
            f"(T, {heads}, {n}, r)",
            self.w.shape,
        )
        ok = self.log_a.shape[-2] == heads and self.log_a.shape[-1] in (1, n)
        _expect(ok, self, "log_a", f"(T, {heads}, {n} or 1)", self.log_a.shape)


class _ArrayLike:
    """Lets a one-matrix dataclass be read as that matrix by NumPy and jax.numpy."""

    matrix: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the matrix."""
        return self.matrix.dtype

    def __getitem__(self, index: Any) -> Array:
        return self.matrix[index]

    def __jax_array__(self) -> Array:
        return self.matrix

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        return np.array(self.matrix, dtype=dtype) if copy else np.asarray(self.matrix, dtype=dtype)


@pytree
class Dense(_ArrayLike):
    """An unstructured transition on the n axis.

    Attributes:
        matrix: (T, H, n, n), or (T, n, n) for one matrix shared by the heads. Reads as an array
            (``np.asarray(system.A)``).
    """

    matrix: Array

    def __post_init__(self) -> None:
        _expect(
            jnp.ndim(self.matrix) in (3, 4),
            self,
            "matrix",
            "(T, H, n, n) or (T, n, n)",
            jnp.shape(self.matrix),
        )

    def apply(self, h: Array) -> Array:
        """A_t h for one step, h (H, n, p)."""
        m = self.matrix_of_step()
        return jnp.einsum("hnm,hmp->hnp", m.astype(h.dtype), h, precision="highest")

    def matrix_of_step(self) -> Array:
        """The matrices of one step with a head axis, (H or 1, n, n)."""
        return self.matrix if self.matrix.ndim == 3 else self.matrix[None]

    def with_heads(self) -> Array:
        """The matrices of all steps with a head axis, (T, H or 1, n, n)."""
        return self.matrix if self.matrix.ndim == 4 else self.matrix[:, None]

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, _ = state_shape
        ok = self.matrix.shape[-2:] == (n, n) and (
            self.matrix.ndim == 3 or self.matrix.shape[1] == heads
        )
        _expect(ok, self, "matrix", f"(T, {heads}, {n}, {n}) or (T, {n}, {n})", self.matrix.shape)


Transition = Scalar | Diagonal | DiagonalPlusLowRank | Dense
