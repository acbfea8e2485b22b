"""Normalisers η_t of a `System`: what an output is divided by."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.maps import InnerOutput
from dsfjax.core.pytree import pytree, static
from dsfjax.core.transitions import expect


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
