r"""Diagonal transitions: every entry of the state decays by itself.

Decays are kept as log |a|: products over many steps become sums, and a decay of exactly 0 is
``-inf``. Complex decays have complex logarithms. A real decay may be negative, which a field
``sign`` says: eigenvalues in [−1, 1] need no complex state.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import product_dtype
from dsfjax.core.pytree import constant, pytree
from dsfjax.core.transitions import (
    Transition,
    check_sign,
    expect,
    group_of,
    pad_axis,
)


class Elementwise(Transition):
    """A transition that multiplies every entry of the state by a decay of its own.

    You write `log_decay` and `negative`, and what changes the decays: `modulus`, `rescale`, `pad`,
    `product` and `compose`, which otherwise go through matrices.

    You get the rest. Engines ask for `log_decay` and `negative` and never form a matrix.
    """

    sign: Array | None = None

    @property
    def factors(self) -> Factored | None:
        """The two factors of a log decay that is kept as a product, or None."""
        return None

    @abc.abstractmethod
    def log_decay(self) -> Array:
        """Log |a_t|, or the complex log a_t, with axes (T, H, n|1, p|1)."""

    @abc.abstractmethod
    def negative(self) -> Array | None:
        """Where a_t is negative, with axes (T, H, n|1, p|1); None for nowhere."""

    def decay_axes(self) -> tuple[int, ...]:
        """How the decay varies within a head: the sizes of its axes n and p, or 1."""
        return jax.eval_shape(lambda A: A.decay(), self).shape[2:]

    def decay(self) -> Array:
        """a_t with axes (T, H, n|1, p|1)."""
        a, negative = jnp.exp(self.log_decay()), self.negative()
        return a if negative is None else jnp.where(negative, -a, a)

    def parts(self) -> tuple[Array, None]:
        """The decays, and nothing added to them."""
        return self.decay(), None

    def matrix(self) -> Array:
        """A_t as matrices (T, H, k, k): k is n, or 1 where the decay is that of every state."""
        if self.per_channel:
            raise ValueError(
                f"{type(self).__name__}: a decay that varies over the value channels is not one "
                "n × n matrix per head. Use decay(), or dense(state_shape)."
            )
        a = self.decay()[..., 0]
        return a[..., None] * jnp.eye(a.shape[-1], dtype=a.dtype)[None, None]

    @property
    def is_diagonal(self) -> bool:
        """True."""
        return True

    @property
    def is_positive(self) -> bool:
        """Whether the decays are real and have no sign."""
        return self.sign is None and not jnp.issubdtype(self.dtype, jnp.complexfloating)

    def apply(self, h: Array, precision: str = "highest") -> Array:
        """A_t h_t."""
        return self.decay().astype(h.dtype) * h

    def transpose(self) -> Transition:
        """The transition itself."""
        return self

    def of_head(self, head: int) -> Diagonal:
        """The transition of one head, alone."""
        log_a, negative = self.log_decay(), self.negative()
        heads = log_a.shape[1]
        sign = None if negative is None else jnp.where(negative, -1, 1)
        return Diagonal(group_of(log_a, head, heads), group_of(sign, head, heads))

    def log_eigenvalues(self) -> tuple[Array, Array | None]:
        """Logarithms of the decays (T, H, k), k = n, p or n·p as they vary, and their signs."""
        log_a, negative = self.log_decay(), self.negative()
        flat = (*log_a.shape[:2], -1)
        if negative is not None:
            negative = jnp.broadcast_to(negative, jnp.broadcast_shapes(negative.shape, log_a.shape))
            negative = negative.reshape(*negative.shape[:2], -1)
        return log_a.reshape(flat), negative

    def dense(self, state_shape: tuple[int, int, int]) -> Array:
        """A_t on the flattened state, (T, N, N)."""
        a = self.decay()
        a = jnp.broadcast_to(a, (a.shape[0], *state_shape)).reshape(a.shape[0], -1)
        return a[..., None] * jnp.eye(a.shape[1], dtype=a.dtype)[None]

    @abc.abstractmethod
    def modulus(self) -> Elementwise:
        """The transition of the moduli |a_t|, real."""

    def _sign_of(self, length: int) -> Array | None:
        """Sign of the product over the steps, one step long."""
        if self.sign is None:
            return None
        # The sign of a product is that of the number of its negative factors.
        count = (self.sign < 0).sum(axis=0, keepdims=True)
        count = count * length if self.sign.shape[0] == 1 else count
        return jnp.where(count % 2 == 1, -1, 1).astype(jnp.int8)


def _total(x: Array, length: int) -> Array:
    """The sum over the steps, one step long."""
    return repeated(x, length) if x.shape[0] == 1 else x.sum(axis=0, keepdims=True)


def repeated(log_a: Array, steps: Array | int) -> Array:
    """The sum of a log decay over steps in which it is the same; a decay of 0 stays one."""
    if not jnp.iscomplexobj(log_a):
        return log_a * steps
    # Real and imaginary part by themselves: the product (−∞ + 0i) (k + 0i) of complex numbers has
    # the imaginary part −∞ · 0, which is NaN.
    return jax.lax.complex(log_a.real * steps, log_a.imag * steps)


def _both_signs(early: Array | None, late: Array | None) -> Array | None:
    if early is None or late is None:
        return late if early is None else early
    return jnp.where((early < 0) != (late < 0), -1, 1).astype(jnp.int8)


@pytree
class Scalar(Elementwise):
    """One decay per head: A_t = a_t I.

    Attributes:
        log_a: log |a_t|, or the complex log a_t, shape (T, H) with T the number of steps or 1.
        sign: Negative where a_t is, of a shape that broadcasts to that of ``log_a``; None if all
            are positive. It has no gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> Scalar(jnp.zeros((1, 4)))
        Scalar(log_a=float32[1, 4], sign=None)
    """

    log_a: Array
    sign: Array | None = None

    def __post_init__(self) -> None:
        expect(jnp.ndim(self.log_a) == 2, self, "log_a", "(T, H)", jnp.shape(self.log_a))
        check_sign(self)

    @property
    def dtype(self) -> Any:
        """Dtype of the decay."""
        return self.log_a.dtype

    def log_decay(self) -> Array:
        """Log decay with axes (T, H, 1, 1), broadcasting against the state."""
        return self.log_a[..., None, None]

    def negative(self) -> Array | None:
        """Where a_t is negative, (T, H, 1, 1), or None."""
        return None if self.sign is None else (self.sign < 0)[..., None, None]

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        ok = self.log_a.shape[-1] == state_shape[0]
        expect(ok, self, "log_a", f"(T, {state_shape[0]})", self.log_a.shape)

    def rescale(self, log_r: Array) -> Scalar:
        """The transition exp(log_r_t) A_t."""
        return Scalar(self.log_a + log_r.astype(self.log_a.dtype), self.sign)

    def pad(self, n_now: int, n: int) -> Scalar:
        """The transition itself: its decay is that of every state."""
        return self

    def product(self, length: int) -> Scalar:
        """The sum of the log decays, as a transition of one step."""
        return Scalar(_total(self.log_a, length), self._sign_of(length))

    def compose(self, late: Any) -> Scalar:
        """The transition of a stretch of steps followed by ``late``."""
        return Scalar(self.log_a + late.log_a, _both_signs(self.sign, late.sign))

    def modulus(self) -> Scalar:
        """The transition of |a_t|."""
        return Scalar(self.log_a.real)

    def describe(self) -> str:
        """The structure in words."""
        return "scalar decay per head" + (", of either sign" if self.sign is not None else "")


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
        expect(jnp.ndim(self.step) == 3, self, "step", "(T, H, p)", jnp.shape(self.step))
        heads = jnp.shape(self.step)[1]
        ok = jnp.ndim(self.rate) == 3 and jnp.shape(self.rate)[0] == heads
        expect(ok, self, "rate (no time axis)", f"({heads}, n, p)", jnp.shape(self.rate))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, (T, H, n, p)."""
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
        """The log decay (T, H, n, p)."""
        return self.step[:, :, None].astype(self.dtype) * self.rate[None].astype(self.dtype)


@pytree
class Diagonal(Elementwise):
    """A diagonal transition over the n axis, the p axis, or both.

    Attributes:
        log_a: log |a_t|, or the complex log a_t, shape (T, H, n, p) where n or p (or both) may be 1
            if the decay does not vary along that axis; or `Factored`.
        sign: Negative where a_t is, of a shape that broadcasts to that of ``log_a``; None if all
            are positive. It has no gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> Diagonal(jnp.zeros((5, 2, 8, 1))).log_decay().shape
        (5, 2, 8, 1)
    """

    log_a: Array | Factored
    sign: Array | None = None

    def __post_init__(self) -> None:
        shape = self.log_a.shape
        expect(len(shape) == 4, self, "log_a", "(T, H, n or 1, p or 1)", shape)
        check_sign(self)

    @classmethod
    def factored(cls, step: Array, rate: Array) -> Diagonal:
        """Diagonal with log a_t = step_t × rate, kept as the two factors."""
        return cls(Factored(step, rate))

    @property
    def factors(self) -> Factored | None:
        """The two factors of the log decay, or None if it is one array."""
        return self.log_a if isinstance(self.log_a, Factored) else None

    @property
    def dtype(self) -> Any:
        """Dtype of the decay."""
        return self.log_a.dtype

    @property
    def per_channel(self) -> bool:
        """Whether the decay differs between the value channels p of a head."""
        varies = self.sign is not None and self.sign.shape[-1] > 1
        return self.log_a.shape[-1] > 1 or varies

    def log_decay(self) -> Array:
        """Log decay with axes (T, H, n|1, p|1)."""
        return self.log_a.product() if isinstance(self.log_a, Factored) else self.log_a

    def negative(self) -> Array | None:
        """Where a_t is negative, (T, H, n|1, p|1), or None."""
        return None if self.sign is None else self.sign < 0

    def check(self, state_shape: tuple[int, int, int]) -> None:
        """Raise `ValueError` unless the shapes fit a state (H, n, p)."""
        heads, n, p = state_shape
        got = self.log_a.shape[-3:]
        ok = got[0] == heads and got[1] in (1, n) and got[2] in (1, p)
        expect(ok, self, "log_a", f"(T, {heads}, {n} or 1, {p} or 1)", self.log_a.shape)

    def rescale(self, log_r: Array) -> Diagonal:
        """The transition exp(log_r_t) A_t; a factored decay becomes explicit."""
        return Diagonal(self.log_decay() + log_r[:, :, None, None].astype(self.dtype), self.sign)

    def pad(self, n_now: int, n: int) -> Diagonal:
        """A transition of n states per head.

        The new ones do not decay; where all states share one decay, they share it too.
        """
        if self.log_a.shape[-2] == 1:
            return self

        def padded(x: Array) -> Array:
            return pad_axis(jnp.broadcast_to(x, (*x.shape[:-2], n_now, x.shape[-1])), -2, n)

        sign = None if self.sign is None else padded(self.sign)  # of 1 for the new ones
        # A rate of 0 is a log decay of 0 in every step: the new states keep what they hold.
        if isinstance(self.log_a, Factored):
            return Diagonal(Factored(self.log_a.step, padded(self.log_a.rate)), sign)
        return Diagonal(padded(self.log_a), sign)

    def product(self, length: int) -> Diagonal:
        """The sum of the log decays, as a transition of one step."""
        return Diagonal(_total(self.log_decay(), length), self._sign_of(length))

    def compose(self, late: Any) -> Diagonal:
        """The transition of a stretch of steps followed by ``late``."""
        return Diagonal(self.log_decay() + late.log_decay(), _both_signs(self.sign, late.sign))

    def modulus(self) -> Diagonal:
        """The transition of |a_t|."""
        # |exp(Δ r)| = exp(Δ Re r) for real Δ: the factors stay apart.
        factors = self.factors
        if factors is None or jnp.iscomplexobj(factors.step):
            return Diagonal(self.log_decay().real)
        return Diagonal.factored(factors.step, factors.rate.real)

    def describe(self) -> str:
        """The structure in words."""
        n_varies, p_varies = (size > 1 for size in self.log_a.shape[-2:])
        over = {(1, 1): "full", (1, 0): "per state", (0, 1): "per channel", (0, 0): "per head"}
        factored = ", factored as step × rate" if self.factors is not None else ""
        sign = ", of either sign" if self.sign is not None else ""
        return f"diagonal, {over[int(n_varies), int(p_varies)]}{factored}{sign}"
