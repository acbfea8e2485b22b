r"""How old what a system reads is, from its kernel Φ."""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import has_finite_state, num_output_heads
from dsfjax.analysis.phi import each_row, map_rows, on_values, token_rows
from dsfjax.core import (
    DenseInput,
    DenseOutput,
    Elementwise,
    InnerOutput,
    InputMap,
    KernelSystem,
    OuterInput,
    OutputMap,
    System,
    steps,
)
from dsfjax.engines import scan

_ROWS = 16  # rows of Φ that are held at once


@jitted("length")
def mean_age(system: System | KernelSystem, *, length: int | None = None) -> Float[Array, "L H c"]:
    r"""Mean age in steps of what is read at every step, per head.

    .. math:: \frac{\sum_{s \le t} w_{t,s} \, (t - s)}{\sum_{s \le t} w_{t,s}},

    0 if only the present token is read. The weights are

    * for diagonal transitions :math:`w_{t,s} = |c_t|^\top |A_t| \cdots |A_{s+1}| \, |b_s| |s_s|`,
      which is |Φ| wherever the terms of the inner product have one sign (one state per channel,
      positive features), and elsewhere what is read from the entries of the state before they
      cancel;
    * for all others, whose entries of the state have no past of their own, |Φ| itself; with a
      dense B or C, Σ|Φ| over the entries of a token.

    Normaliser and gate cancel.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        (L, H, c), with c = p if decay or scale vary over the value channels, else 1; (L, 1, d_out)
        for a dense C, whose outputs belong to no head. NaN where nothing is read.

    Raises:
        ValueError: For B or C of a rank above 1 around a transition that is not diagonal.

    Numerics:
        No L × L array. Diagonal transitions and a `KernelSystem`: two runs of `scan`, on values 1
        and s, O(L) memory; the age is a difference of positions, exact to rounding of t. Others:
        row after row of Φ, O(L² N) work and O(L N) memory, d_out times that for a dense B or C.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> [round(x, 3) for x in mean_age(s, length=30)[jnp.array([0, 1, 29]), 0, 0].tolist()]
        [0.0, 0.333, 1.0]
    """
    length = steps(system, length, owner="mean_age")
    if has_finite_state(system):
        C = _without_gate(system.C)
        system = dataclasses.replace(system, C=C, eta=None, D=None)
        if not system.A.is_diagonal:
            return _by_rows(system, length)
    heads, dtype = num_output_heads(system), system.real_dtype
    positive = _positive(system)
    position = jnp.arange(length).astype(dtype)[:, None]
    tokens = jnp.broadcast_to(position, (length, positive.token_width))
    weight, weighted = (scan(positive, u)[0] for u in (jnp.ones_like(tokens), tokens))
    read = weight > 0
    mean = jnp.where(read, weighted / jnp.where(read, weight, 1), jnp.nan)
    return (position - mean).reshape(length, heads, -1)


def _by_rows(system: System, steps: int) -> Array:
    """Ages with the weights |Φ|, of a dense B or C those of all entries of a token together."""
    index = jnp.arange(steps)

    def age(t: Array, row: Array) -> Array:
        weight = jnp.abs(row)
        distance = (t - index).astype(weight.dtype)[:, None, None]
        return (weight * distance).sum(axis=0) / weight.sum(axis=0)

    if system.acts_on_values:
        return each_row("mean_age", system, steps, age)
    entries = token_rows(system, steps)
    return map_rows(lambda t: age(t, jnp.abs(entries(t)).sum(axis=2).T[:, None]), steps, _ROWS)


@singledispatch
def _positive(system: Any) -> System | KernelSystem:
    """The system of the moduli of all entries, on values."""
    raise TypeError(f"mean_age: expected a System or KernelSystem, got {type(system).__name__}.")


@_positive.register
def _(system: KernelSystem) -> KernelSystem:
    return dataclasses.replace(system, W=None, num_channels=1)


@_positive.register
def _(system: System) -> System:
    A = system.A
    assert isinstance(A, Elementwise)
    if system.acts_on_values:
        system = on_values("mean_age", system)
    shape = system.state_shape
    return dataclasses.replace(
        system, A=A.modulus(), B=_abs_input(system.B, shape), C=_abs_output(system.C, shape)
    )


@singledispatch
def _without_gate(C: OutputMap) -> OutputMap:
    return C


@_without_gate.register
def _(C: InnerOutput) -> OutputMap:
    return C.with_arrays(C.c, None)


@singledispatch
def _abs_input(B: InputMap, shape: tuple[int, int, int]) -> InputMap:
    """Every token entry weighs the same, so one column carries them all."""
    return DenseInput(jnp.abs(B.matrix(shape)).sum(axis=2, keepdims=True))


@_abs_input.register
def _(B: OuterInput, shape: tuple[int, int, int]) -> InputMap:
    return dataclasses.replace(B, b=_abs(B.b), scale=_abs(B.scale))


@singledispatch
def _abs_output(C: OutputMap, shape: tuple[int, int, int]) -> OutputMap:
    return DenseOutput(jnp.abs(C.matrix(shape)), before_update=C.before_update)


@_abs_output.register
def _(C: InnerOutput, shape: tuple[int, int, int]) -> OutputMap:
    return dataclasses.replace(C, c=_abs(C.c), conjugate_pairs=False)


def _abs(x: Array | None) -> Array | None:
    return None if x is None else jnp.abs(x)
