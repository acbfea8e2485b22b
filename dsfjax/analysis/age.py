r"""How old what is read is: the mean distance at which the kernel Φ reads."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsfjax.analysis.normalizer import num_steps
from dsfjax.analysis.rows import kernel_rows, map_rows, on_values
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    DiagonalPlusLowRank,
    Factored,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    System,
)
from dsfjax.core.dtypes import real_dtype, state_dtype
from dsfjax.engines import scan

_ROWS = 16  # rows of Φ that are held at once


def mean_age(system: System | KernelSystem, *, length: int | None = None) -> Float[Array, "L H c"]:
    r"""Mean age in steps of what is read at every step, per head.

    .. math:: \frac{\sum_{s \le t} w_{t,s} \, (t - s)}{\sum_{s \le t} w_{t,s}},

    0 if only the present token is read. The weights are

    * for diagonal transitions :math:`w_{t,s} = |c_t|^\top |A_t| \cdots |A_{s+1}| \, |b_s| |s_s|`,
      which is |Φ| wherever the terms of the inner product have one sign (one state per channel,
      positive features), and elsewhere what is read from the entries of the state before they
      cancel;
    * for all others, whose entries of the state have no past of their own, |Φ| itself.

    Normaliser and gate cancel.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        (L, H, c), with c = p if decay or scale vary over the value channels, else 1; (L, 1, d_out)
        for a dense C, whose outputs belong to no head. NaN where nothing is read.

    Raises:
        ValueError: For dense B or C around a transition that is not diagonal.

    Numerics:
        No L × L array. Diagonal transitions and a `KernelSystem`: two runs of `scan`, on values 1
        and s, O(L) memory; the age is a difference of positions, exact to rounding of t. Others:
        row after row of Φ, O(L² N) work and O(L N) memory.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> [round(x, 3) for x in mean_age(s, length=30)[jnp.array([0, 1, 29]), 0, 0].tolist()]
        [0.0, 0.333, 1.0]
    """
    steps = num_steps("mean_age", system, length)
    if isinstance(system, System):
        system = dataclasses.replace(system, eta=None, D=None)
        if isinstance(system.C, InnerOutput):
            system = dataclasses.replace(system, C=InnerOutput(system.C.c))
        if isinstance(system.A, Dense | DiagonalPlusLowRank):
            return _by_rows(system, steps)
    heads, dtype = _num_heads(system), _real_dtype(system)
    positive = _positive(system)
    position = jnp.arange(steps).astype(dtype)[:, None]
    tokens = jnp.broadcast_to(position, (steps, positive.token_width))
    weight, weighted = (scan(positive, u)[0] for u in (jnp.ones_like(tokens), tokens))
    read = weight > 0
    mean = jnp.where(read, weighted / jnp.where(read, weight, 1), jnp.nan)
    return (position - mean).reshape(steps, heads, -1)


def _by_rows(system: System, steps: int) -> Array:
    """Ages with the weights |Φ|."""
    row = kernel_rows("mean_age", system, steps)
    index = jnp.arange(steps)

    def age(t: Array) -> Array:
        weight = jnp.abs(row(t))
        distance = (t - index).astype(weight.dtype)[:, None, None]
        return (weight * distance).sum(axis=0) / weight.sum(axis=0)

    return map_rows(age, steps, _ROWS)


def _positive(system: System | KernelSystem) -> System | KernelSystem:
    """The system of the moduli of all entries, on values."""
    if isinstance(system, KernelSystem):
        return dataclasses.replace(system, W=None, num_channels=1)
    if isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput):
        system = on_values("mean_age", system)
    A, B, C = system.A, system.B, system.C
    assert isinstance(A, Scalar | Diagonal)
    B = OuterInput(_abs(B.b), _abs(B.scale)) if isinstance(B, OuterInput) else _row_sums(B)
    C = InnerOutput(_abs(C.c)) if isinstance(C, InnerOutput) else DenseOutput(jnp.abs(C.matrix))
    return System(_modulus(A), B, C, reset=system.reset, state_shape=system.state_shape)


def _num_heads(system: System | KernelSystem) -> int:
    if isinstance(system, KernelSystem):
        return system.num_heads
    return 1 if isinstance(system.C, DenseOutput) else system.state_shape[0]


def _modulus(A: Scalar | Diagonal) -> Scalar | Diagonal:
    if isinstance(A, Scalar):
        return Scalar(A.log_a.real)
    if not isinstance(A.log_a, Factored):
        return Diagonal(A.log_a.real)
    step, rate = A.log_a.step, A.log_a.rate
    if jnp.iscomplexobj(step):
        return Diagonal(A.log_decay().real)
    return Diagonal.factored(step, rate.real)


def _abs(x: Array | None) -> Array | None:
    return None if x is None else jnp.abs(x)


def _row_sums(B: DenseInput) -> DenseInput:
    """Every token entry weighs the same, so one column carries them all."""
    return DenseInput(jnp.abs(B.matrix).sum(axis=2, keepdims=True))


def _real_dtype(system: System | KernelSystem) -> np.dtype:
    if isinstance(system, KernelSystem):
        return state_dtype(system.q.dtype)
    return real_dtype(system.dtype)
