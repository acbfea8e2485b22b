r"""The normaliser η_t of a system, and the system in the coordinates in which the paper writes it.

A, B, C and the state of a `System` are un-normalised. Sizes of states and of gradients depend on
coordinates, and the ones in which they mean something are the paper's, h_t / η_t: there the
transition is :math:`Λ_t = (η_{t-1}/η_t) A_t`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax.core import GivenNormalizer, InnerOutput, KernelSystem, OuterInput, System, rescale
from dsfjax.engines import log_normalizer, scan


class SignedLog(NamedTuple):
    """A real quantity as sign × exp(log).

    Attributes:
        log: Logarithm of the modulus, (L, H).
        sign: 1, −1 or 0, (L, H); None where the quantity is positive by its definition.
    """

    log: Array
    sign: Array | None


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
    steps = num_steps("normalizers", system, length)
    if isinstance(system, KernelSystem):
        return SignedLog(log_normalizer(system), None)
    real = jnp.finfo(system.dtype).dtype
    shape = (steps, system.state_shape[0])
    if system.eta is None:
        return SignedLog(jnp.zeros(shape, real), None)
    if isinstance(system.eta, GivenNormalizer):
        return SignedLog(jnp.broadcast_to(system.eta.log_eta.astype(real), shape), None)
    eta = _summed(system, steps)
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
    if system.eta is None:
        return system
    log_eta, sign = normalizers(system, length=length)
    assert isinstance(system.C, InnerOutput)
    gate = system.C.gate
    if sign is not None:
        gate = sign[:, :, None] if gate is None else gate * sign[:, :, None].astype(gate.dtype)
    moved = rescale(dataclasses.replace(system, eta=None), -log_eta)
    return dataclasses.replace(moved, C=InnerOutput(system.C.c, gate, system.C.conjugate_pairs))


def finite(owner: str, system: System | KernelSystem) -> System:
    """The system, if it has a finite state to look at."""
    if isinstance(system, KernelSystem):
        raise ValueError(
            f"{owner}: a KernelSystem has no finite state, its state is the whole past. Use a "
            "finite system that approximates it."
        )
    return system


def num_steps(owner: str, system: System | KernelSystem, length: int | None) -> int:
    """L: the length of the system, or of what a constant one is looked at for."""
    steps = system.length if length is None else length
    if system.length not in (1, steps) or steps < 1:
        raise ValueError(
            f"{owner}: expected length {system.length}, that of the system, got {length}. Only a "
            "system that is constant in time needs it."
        )
    return steps


def _summed(system: System, steps: int) -> Float[Array, "L H"]:
    """η_t of a summed normaliser: the system itself, run on values of 1."""
    heads, n, _ = system.state_shape
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    ones = dataclasses.replace(
        system,
        B=OuterInput(system.B.b),
        C=InnerOutput(system.C.c),
        D=None,
        eta=None,
        state_shape=(heads, n, 1),
    )
    return scan(ones, jnp.ones((steps, heads), system.dtype))[0]
