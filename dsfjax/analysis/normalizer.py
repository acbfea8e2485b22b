r"""The normaliser η_t of a system, and the system in the coordinates in which the paper writes it.

A, B, C and the state of a `System` are un-normalised. Sizes of states and of gradients depend on
coordinates, and the ones in which they mean something are the paper's, h_t / η_t: there the
transition is :math:`Λ_t = (η_{t-1}/η_t) A_t`.
"""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax._util.jitted import jitted
from dsfjax.core import (
    DenseSkip,
    InnerOutput,
    KernelSystem,
    OuterInput,
    SummedNormalizer,
    System,
    rescale,
    steps,
)
from dsfjax.core.dense import bonus_skip, skip_matrix
from dsfjax.engines import log_normalizer, scan


class SignedLog(NamedTuple):
    """A real quantity as sign × exp(log).

    Attributes:
        log: Logarithm of the modulus, (L, H).
        sign: 1, −1 or 0, (L, H); None where the quantity is positive by its definition.
    """

    log: Array
    sign: Array | None


@jitted("length")
def normalizers(system: System | KernelSystem, *, length: int | None = None) -> SignedLog:
    """The normaliser η_t of every step and head.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time (one step otherwise).

    Returns:
        `SignedLog` with arrays (L, H) in the real dtype of the state; η = 1 (log 0) where there is
        no normaliser. Only a `SummedNormalizer` can be negative.

    Raises:
        ValueError: If ``length`` contradicts the length of the system.

    Numerics:
        A given normaliser is read, a summed one costs a `scan` with one value channel, that of a
        `KernelSystem` is streamed: O(L H) memory in all cases.

    Example:
        >>> from dsfjax.core import GivenNormalizer, Scalar
        >>> eta = GivenNormalizer(jnp.array([[0.5], [1.5]]))
        >>> parts = Scalar(jnp.zeros((1, 1))), OuterInput(), InnerOutput()
        >>> normalizers(System(*parts, eta=eta, state_shape=(1, 1, 1))).log[:, 0].tolist()
        [0.5, 1.5]
    """
    return _signed_log(system, steps(system, length, owner="normalizers"))


@singledispatch
def _signed_log(system: Any, count: int) -> SignedLog:
    raise TypeError(
        f"normalizers: expected a System or a KernelSystem, got {type(system).__name__}."
    )


@_signed_log.register
def _(system: KernelSystem, count: int) -> SignedLog:
    return SignedLog(log_normalizer(system), None)


@_signed_log.register
def _(system: System, count: int) -> SignedLog:
    shape = (count, system.num_heads)
    if system.eta is None:
        return SignedLog(jnp.zeros(shape, system.real_dtype), None)
    if not system.eta.num_channels:
        log_eta = system.eta.log().astype(system.real_dtype)
        return SignedLog(jnp.broadcast_to(log_eta, shape), None)
    eta = _summed(system, count)
    return SignedLog(jnp.log(jnp.abs(eta)), jnp.sign(eta))


def normalized(system: System, *, length: int | None = None) -> System:
    r"""The same input–output map with the normaliser folded into A and B, as the paper writes it.

    .. math:: Λ_t = \frac{|η_{t-1}|}{|η_t|} A_t, \quad B_t / |η_t|, \quad \mathrm{sign}(η_t)\, C_t,

    for the state h_t / |η_t|: `to_dense` without writing out the matrices. Engines run the
    un-normalised form, which is the better conditioned one; this one is for looking at states.

    Args:
        system: A finite system; returned as it is if it has no normaliser.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        A `System` without normaliser and of the same structure (a factored decay becomes explicit),
        to be started from the zero state.

    Raises:
        ValueError: If ``length`` contradicts the length of the system.

    Numerics:
        O(L) memory. 1/|η_t| multiplies b: |log η| must stay below 700 (float64) or 80 (float32).

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 1.

    Example:
        >>> from dsfjax.core import GivenNormalizer, Scalar
        >>> eta = GivenNormalizer(jnp.array([[0.5], [1.5]]))
        >>> parts = Scalar(jnp.zeros((1, 1))), OuterInput(), InnerOutput()
        >>> paper = normalized(System(*parts, eta=eta, state_shape=(1, 1, 1)))
        >>> paper.A.log_a[1].tolist(), paper.eta
        ([-1.0], None)
    """
    return system if system.eta is None else _normalized(system, length)


@jitted("length")
def _normalized(system: System, length: int | None) -> System:
    log_eta, sign = normalizers(system, length=length)
    moved = rescale(dataclasses.replace(system, eta=None), -log_eta)
    C, D, one = system.C, system.D, jnp.ones_like(log_eta) if sign is None else sign
    # What `rescale` makes of C, exp(log η), meets the 1/η of the read-out: the sign is left.
    if C.before_update:  # the state that is read is in the coordinates of the step before
        before = jnp.roll(log_eta, 1, axis=0).at[0].set(0)
        C = C.rescale(one * jnp.exp(before - log_eta), system.state_shape, vectors=False)
    elif sign is not None:
        C = C.rescale(sign, system.state_shape, vectors=False)
    if (bonus := bonus_skip(system, log_eta, one)) is not None:
        D = bonus if D is None else DenseSkip(skip_matrix(system) + bonus.matrix(system))
    return dataclasses.replace(moved, C=C, D=D)


def has_finite_state(system: System | KernelSystem) -> TypeGuard[System]:
    """Whether there is a state of fixed size, rather than the whole past."""
    return isinstance(system, System)


def channel_maps(system: System) -> tuple[OuterInput, InnerOutput]:
    """B and C of a system that acts on values (`System.acts_on_values`)."""
    B, C = system.B, system.C
    assert isinstance(B, OuterInput) and isinstance(C, InnerOutput)
    return B, C


def num_output_heads(system: System | KernelSystem) -> int:
    """Heads to which the outputs belong; 1 where they belong to none."""
    if not has_finite_state(system):
        return system.num_heads
    C = system.C
    return system.num_heads if isinstance(C, InnerOutput) and C.rank == 1 else 1


def finite(owner: str, system: System | KernelSystem) -> System:
    """The system, if it has a finite state to look at."""
    if not has_finite_state(system):
        raise ValueError(
            f"{owner}: a {type(system).__name__} has no finite state, its state is the whole past. "
            "Use a finite system that approximates it."
        )
    return system


def _summed(system: System, steps: int) -> Float[Array, "L H"]:
    """η_t of a summed normaliser: the system itself, run on values of 1."""
    heads, n, _ = system.state_shape
    (B, C), eta = channel_maps(system), system.eta
    assert isinstance(eta, SummedNormalizer)
    ones = dataclasses.replace(
        system,
        B=OuterInput(B.b, rank=B.rank),
        C=InnerOutput(C.c, before_update=C.before_update),
        D=None,
        eta=None,
        state_shape=(heads, n, 1),
    )
    return eta.eta(scan(ones, jnp.ones((steps, B.rank * heads), system.dtype))[0])
