r"""Eigenvalues of the normalised transition, the numbers that say what a state keeps.

The paper's transition is :math:`Λ_t = (η_{t-1}/η_t) A_t`. Its eigenvalues follow from the structure
of A without ever forming an N×N matrix, and each of them stands for as many states as share it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from dsfjax.analysis.normalizer import has_finite_state, normalizers
from dsfjax.core import KernelSystem, System, steps
from dsfjax.core.dtypes import state_dtype


class LogEigenvalues(NamedTuple):
    """Eigenvalues λ = exp(log_modulus + i phase), real arrays (L, H, k).

    Attributes:
        log_modulus: log |λ|; −∞ for a zero.
        phase: Angle in (−π, π], 0 or π for real eigenvalues.
    """

    log_modulus: Array
    phase: Array


def eigenvalues(
    system: System | KernelSystem, *, length: int | None = None
) -> Inexact[Array, "L H k"]:
    r"""Distinct eigenvalues of the normalised transition, per step and head.

    .. math:: Λ_t = \frac{η_{t-1}}{η_t} A_t, \qquad λ \in \operatorname{spec} Λ_t

    with the ratio 1 where there is no normaliser. How many are distinct by structure:

    =========================  ===============================================  ===================
    A                          k                                                each stands for
    =========================  ===============================================  ===================
    `Scalar`                   1                                                n·p states
    `Diagonal`                 n, p or n·p (row-major), as the decay varies     p, n or 1 states
    `DiagonalPlusLowRank`      n, in the order of the eigensolver               p states
    `Dense`                    n, in the order of the eigensolver               p states
    your `Transition`          n, in the order of the eigensolver               p states
    `KernelSystem`             1: its decay, times the ratio of normalisers     the whole past
    =========================  ===============================================  ===================

    The first step and every reset step have no η before them: NaN where there is a normaliser.
    Where there is none, Λ_t is A_t, and 0 at a reset step, as in `to_dense`.

    Args:
        system: A system of one sequence; batches, seeds and layers come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time (one step otherwise).

    Returns:
        (L, H, k) in the dtype of the state: real for real `Scalar` and `Diagonal` and for a
        `KernelSystem`, complex for complex ones and always for `DiagonalPlusLowRank` and `Dense`.

    Raises:
        ValueError: If ``length`` contradicts the length of the system.

    Numerics:
        Decays and normalisers are combined as logarithms, log-normalisers of a `KernelSystem`
        are streamed: O(L H) memory, O(L² H m) work. `Scalar` and `Diagonal` cost O(L H k),
        a normaliser that is summed one `scan` with one value channel, the other structures an
        eigensolve of n×n per head and step, O(L H n³). Nothing bounds the ratio of normalisers by
        1, so moduli above 1 are no error.

    References:
        Rickenbach et al. (2025), arXiv:2510.09379. Sieber et al. (2024), arXiv:2405.15731.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5, 0.25]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(2, 1, 3))
        >>> eigenvalues(s, length=2)[:, :, 0].tolist()
        [[0.5, 0.25], [0.5, 0.25]]
    """
    log_values, negative = _log_values("eigenvalues", system, length)
    # exp of a NaN that is a constant of the program is any number where LLVM optimises.
    nan = jnp.isnan(log_values)
    values = jnp.where(nan, jnp.nan, jnp.exp(jnp.where(nan, 0, log_values)))
    return values if negative is None else jnp.where(negative, -values, values)


def log_eigenvalues(system: System | KernelSystem, *, length: int | None = None) -> LogEigenvalues:
    """The `eigenvalues` as logarithms of moduli and phases, which neither under- nor overflow.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time (one step otherwise).

    Returns:
        `LogEigenvalues`, real arrays (L, H, k); NaN where `eigenvalues` are.

    Raises:
        ValueError: If ``length`` contradicts the length of the system.

    Numerics:
        As `eigenvalues`. A decay of e^{−300} is 0 in float32; its logarithm here is −300.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.array([[-300.0]]))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> log_eigenvalues(s).log_modulus.item()
        -300.0
    """
    log_values, negative = _log_values("log_eigenvalues", system, length)
    log_modulus = log_values.real
    if jnp.iscomplexobj(log_values):
        phase = log_values.imag
        if negative is not None:
            phase = phase + jnp.where(negative, jnp.asarray(math.pi, phase.dtype), 0)
        phase = math.pi - jnp.mod(math.pi - phase, 2 * math.pi)
    else:
        phase = jnp.zeros_like(log_modulus)
        if negative is not None:
            phase = jnp.where(negative, jnp.asarray(math.pi, phase.dtype), phase)
    return LogEigenvalues(log_modulus, jnp.where(jnp.isnan(log_modulus), jnp.nan, phase))


def are_positive(system: System | KernelSystem) -> bool:
    """Whether all eigenvalues are real and not negative, by the structure of the system."""
    if not has_finite_state(system):
        return True
    summed = system.eta is not None and system.eta.num_channels > 0
    return system.A.is_positive and not system.is_complex and not summed


def carried_log_moduli(
    system: System | KernelSystem, *, length: int | None = None
) -> Inexact[Array, "L H k"]:
    """Log |λ| of what is carried into every step: −∞ at the first step and at resets."""
    log_modulus = log_eigenvalues(system, length=length).log_modulus
    return jnp.where(starts(system, log_modulus.shape[0])[:, None, None], -jnp.inf, log_modulus)


def starts(system: System | KernelSystem, steps: int) -> Array:
    """Boolean (L,): steps before which there is no state, the first one and resets."""
    first = jnp.arange(steps, dtype=jnp.int32) == 0
    return first if system.reset is None else first | system.reset


def _log_values(
    owner: str, system: System | KernelSystem, length: int | None
) -> tuple[Array, Array | None]:
    """Logarithms of the eigenvalues (L, H, k), and where their sign is flipped."""
    length = steps(system, length, owner=owner)
    log_values, negative = None, None
    if has_finite_state(system):
        log_values, negative = _of_transition(system, length)
        if system.eta is None:
            if system.reset is not None:
                zero = jnp.asarray(-jnp.inf, log_values.dtype)
                log_values = jnp.where(system.reset[:, None, None], zero, log_values)
            return log_values, negative
    elif isinstance(system, KernelSystem) and system.key_transition is not None:
        raise ValueError(
            f"{owner}: expected a kernel whose weights decay by numbers, got a KernelSystem whose "
            "keys are moved by a transition: its state has no eigenvalues. Look at those of "
            "system.transition."
        )
    elif isinstance(system, KernelSystem) and system.weight_log_decay is not None:
        decay = system.weight_log_decay.astype(system.dtype)
        log_values = jnp.broadcast_to(decay, (length, system.num_heads))[..., None]
    log_eta, sign = normalizers(system, length=length)
    ratio = (log_eta[:-1] - log_eta[1:])[:, :, None]
    if log_values is not None:
        ratio = log_values[1:] + ratio.astype(log_values.dtype)
    nan = jnp.full((1, *ratio.shape[1:]), jnp.nan, ratio.dtype)
    log_values = jnp.concatenate([nan, ratio])
    if system.reset is not None:
        log_values = jnp.where(system.reset[:, None, None], nan, log_values)
    if sign is None:
        return log_values, negative
    flipped = jnp.concatenate([jnp.zeros_like(sign[:1]), sign[:-1] * sign[1:]]) < 0
    flipped = flipped[:, :, None]
    return log_values, flipped if negative is None else flipped != negative


def _of_transition(system: System, steps: int) -> tuple[Array, Array | None]:
    """Logarithms of the eigenvalues of A, (L, H, k); log 0 is -inf; and where they are negative."""
    log_values, negative = system.A.log_eigenvalues()
    dtype = state_dtype(log_values.dtype, system.dtype)
    shape = (steps, system.num_heads, log_values.shape[-1])
    if negative is not None:
        negative = jnp.broadcast_to(negative, shape)
    return jnp.broadcast_to(log_values.astype(dtype), shape), negative
