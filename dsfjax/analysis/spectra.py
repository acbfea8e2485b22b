r"""Eigenvalues of the normalised transition, the numbers that say what a state keeps.

The paper's transition is :math:`Λ_t = (η_{t-1}/η_t) A_t`. Its eigenvalues follow from the structure
of A without ever forming an N×N matrix, and each of them stands for as many states as share it.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from dsfjax.core import (
    Dense,
    DiagonalPlusLowRank,
    GivenNormalizer,
    InnerOutput,
    KernelSystem,
    OuterInput,
    System,
)
from dsfjax.engines import log_normalizer, scan


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
    `KernelSystem`             1: the ratio of its normalisers                  the whole past
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
        Decays and given normalisers are combined as logarithms, log-normalisers of a `KernelSystem`
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
    steps = system.length if length is None else length
    if system.length not in (1, steps):
        raise ValueError(
            f"eigenvalues: expected length {system.length}, that of the system, got {length}. Only "
            "a system that is constant in time needs it."
        )
    if isinstance(system, KernelSystem):
        log_eta = log_normalizer(system)
        return _undefined_first(jnp.exp(log_eta[:-1] - log_eta[1:])[:, :, None], system.reset)
    log_values = _log_eigenvalues(system, steps)
    if system.eta is None:
        values = jnp.exp(log_values)
        return values if system.reset is None else jnp.where(system.reset[:, None, None], 0, values)
    if isinstance(system.eta, GivenNormalizer):
        log_eta = jnp.broadcast_to(system.eta.log_eta, log_values.shape[:2])
        log_ratio, sign = log_eta[:-1] - log_eta[1:], None
    else:
        eta = _summed_eta(system, steps)
        log_ratio, sign = jnp.log(jnp.abs(eta[:-1])) - jnp.log(jnp.abs(eta[1:])), eta[:-1] * eta[1:]
    values = jnp.exp(log_values[1:] + log_ratio[:, :, None].astype(log_values.dtype))
    if sign is not None:
        values = jnp.where(sign[:, :, None] < 0, -values, values)
    return _undefined_first(values, system.reset)


def _log_eigenvalues(system: System, steps: int) -> Array:
    """Logarithms of the eigenvalues of A, (L, H, k); log 0 is -inf."""
    heads = system.state_shape[0]
    if isinstance(system.A, Dense | DiagonalPlusLowRank):
        A = system.A
        matrices = A.with_heads() if isinstance(A, Dense) else A.matrix_of_step()
        log_values = jnp.log(jnp.linalg.eigvals(matrices.astype(system.dtype)))
    else:
        log_values = system.A.log_decay().astype(system.dtype)
        log_values = log_values.reshape(*log_values.shape[:2], -1)
    return jnp.broadcast_to(log_values, (steps, heads, log_values.shape[-1]))


def _summed_eta(system: System, steps: int) -> Array:
    """η_t of a summed normaliser, (L, H): the system itself, run on values of 1."""
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


def _undefined_first(later: Inexact[Array, "M H k"], reset: Array | None) -> Array:
    """The values of steps 1, 2, … with NaN put in at step 0 and at resets."""
    nan = jnp.full((1, *later.shape[1:]), jnp.nan, later.dtype)
    values = jnp.concatenate([nan, later])
    return values if reset is None else jnp.where(reset[:, None, None], nan, values)
