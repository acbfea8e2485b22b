r"""Interventions: change one thing in a `System`.

A System is data, so an intervention is a function from a System to a System: of one write
(`scale_write`, `replace_write`), one head (`scale_head`), one gate (`scale_gate`, `replace_gate`),
the decay (`freeze_decay`). `dsfjax.analysis.effects` says what the output does then; another
initial state is an argument of `effect` there.
"""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Shaped

from dsfjax._util.jitted import jitted
from dsfjax._util.names import choose
from dsfjax.analysis.positions import Number, checked_step
from dsfjax.core import (
    DenseInput,
    DenseOutput,
    Diagonal,
    Elementwise,
    Factored,
    InnerOutput,
    InputMap,
    KernelSystem,
    OuterInput,
    OutputMap,
    Scalar,
    System,
    steps,
)
from dsfjax.core.pytree import map_time
from dsfjax.core.skips import ValueSkip
from dsfjax.core.transitions import Transition
from dsfjax.engines.recurrence import prepare

Gate = Literal["input", "forget", "output"]
AnySystem = TypeVar("AnySystem", System, KernelSystem)


@jitted()
def written(system: System, u: Shaped[Array, "L d"]) -> Shaped[Array, "L H n p"]:
    """What every step writes into the state, B_t u_t, (L, H, n, p).

    Args:
        system: A system of one sequence.
        u: Its tokens (L, d).

    Returns:
        (L, H, n, p) in the dtype of the state.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((1, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> written(s, jnp.array([[2.0], [3.0]])).ravel().tolist()
        [2.0, 3.0]
    """
    bare = dataclasses.replace(system, eta=None)  # without the channel of a summed normaliser
    forcing = prepare(bare, u, emit_states=False).forcing()
    return jnp.broadcast_to(forcing, (u.shape[0], *system.state_shape))


def scale_write(
    system: System,
    step: Number,
    factor: Number,
    *,
    head: int | None = None,
    length: int | None = None,
) -> System:
    """The system with what one step writes multiplied by a factor; 0 removes it.

    A summed normaliser keeps its terms: what changes is the value, and outputs stay linear in it;
    its bonus (RWKV-4) has the value as well.

    Args:
        system: A system of one sequence. For a `KernelSystem` scale the row of its values instead.
        step: Which step; may be traced.
        factor: The factor.
        head: Which head; by default all.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        The changed system.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((1, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> scale_write(s, 1, 0.5, length=3).B.scale.ravel().tolist()
        [1.0, 0.5, 1.0]
    """
    return scale_gate(system, "input", factor, step=step, head=head, length=length)


def replace_write(
    system: System,
    u: Shaped[Array, "L d"],
    step: Number,
    *,
    key: Array | None = None,
    value: Array | None = None,
) -> tuple[System, Array]:
    """The system and values in which one step writes another key, another value, or both.

    Args:
        system: A system of one sequence that writes vectors (`OuterInput`).
        u: Its tokens (L, d).
        step: Which step; may be traced.
        key: b of that step in place of its own, (G, n), or (r, G, n) of a rank above 1. A summed
            normaliser, which sums keys, sees it as well.
        value: Values of that step in place of W u_t, flattened (r·H·p,). A `ValueSkip` sees them.

    Returns:
        ``(system, values)``: a system without value map, and the values (L, r·H·p) to run it on.

    Raises:
        TypeError: For a dense B, or a skip that reads tokens next to a value map.
        ValueError: For a key where B has none (n = 1), or shapes that do not fit.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((1, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> replace_write(s, jnp.ones((3, 1)), 1, value=jnp.array([5.0]))[1].ravel().tolist()
        [1.0, 5.0, 1.0]
    """
    B = system.B
    if not isinstance(B, OuterInput):
        raise TypeError(
            f"replace_write: expected an OuterInput, whose writes are keys and values, got "
            f"{type(B).__name__}; use response for a change of its writes."
        )
    if B.W is not None and system.D is not None and not isinstance(system.D, ValueSkip):
        raise TypeError(
            "replace_write: expected a skip on values next to a value map, got "
            f"{type(system.D).__name__}, which reads tokens; use response for a change of writes."
        )
    if not jnp.issubdtype(u.dtype, jnp.inexact):  # a value need not be a whole number
        u = u.astype(system.real_dtype)
    values = u if B.W is None else jnp.einsum("ld,ed->le", u, B.W, precision="highest")
    at = jnp.arange(u.shape[0]) == checked_step("replace_write", step, u.shape[0])
    if value is not None:
        _expect_shape("replace_write", "value", value.shape, values.shape[1:])
        values = jnp.where(at[:, None], value.astype(values.dtype)[None], values)
    b = B.b
    if key is not None:
        if b is None:
            raise ValueError(
                "replace_write: expected no key where B has none, as there is n = 1 state per "
                "channel; replace the value."
            )
        _expect_shape("replace_write", "key", key.shape, b.shape[1:])
        where = at.reshape(-1, *[1] * (b.ndim - 1))
        b = jnp.where(where, key.astype(b.dtype)[None], b)
    B = OuterInput(b, B.scale, None, B.rank)
    return dataclasses.replace(system, B=B, length=u.shape[0]), values


def scale_gate(
    system: System,
    gate: Gate,
    factor: Number,
    *,
    step: Number | None = None,
    head: int | None = None,
    length: int | None = None,
) -> System:
    """The system with one gate multiplied by a factor.

    Args:
        system: A system of one sequence.
        gate: "input", what scales the write of a step (the scale of `OuterInput`); "forget", A_t
            itself; "output", what is read of the state (the gate of `InnerOutput`). Dense maps and
            all transitions have them too.
        factor: The factor; for "forget" not negative, and differentiable but at 0, as decays are
            logarithms.
        step: Which step, which may be traced; by default all.
        head: Which head; by default all.
        length: L, needed for one step if nothing in the system varies in time.

    Returns:
        The changed system.

    Raises:
        ValueError: For an unknown gate, a head or step that is not there, a negative factor of a
            decay.
        TypeError: For a `KernelSystem`, which has none of them.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.full((3, 1), 0.5)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> jnp.exp(scale_gate(s, "forget", 0.0, step=1).A.log_a).ravel().tolist()
        [0.5, 0.0, 0.5]
    """
    choose("gate", gate, ("input", "forget", "output"))
    where, count = _where("scale_gate", system, step, head, length)
    if gate == "forget":
        _check_decay("scale_gate", "factor", factor)
        log = jnp.log(jnp.asarray(factor, system.real_dtype))
        A = system.A.rescale(jnp.where(where, log, 0).astype(system.real_dtype))
        return dataclasses.replace(system, A=A, length=count)
    factors = jnp.where(where, jnp.asarray(factor, system.real_dtype), 1)
    if gate == "input":
        B = _scaled_input(system.B, factors, system)
        return dataclasses.replace(system, B=B, length=count)
    C = _scaled_output(system.C, factors, system)
    return dataclasses.replace(system, C=C, length=count)


def replace_gate(
    system: System,
    gate: Gate,
    value: Number,
    *,
    step: Number | None = None,
    head: int | None = None,
    length: int | None = None,
) -> System:
    """The system with one gate set to a value; 1 removes the gate, and 0 shuts it.

    Args:
        system: A system of one sequence that has the gate as a field: an `OuterInput` for "input",
            an `InnerOutput` for "output", a `Scalar` or `Diagonal` for "forget".
        gate: As of `scale_gate`.
        value: The value; for "forget" from 0 on, and differentiable but at 0.
        step: Which step, which may be traced; by default all.
        head: Which head; by default all.
        length: L, needed for one step if nothing in the system varies in time.

    Returns:
        The changed system.

    Raises:
        ValueError: For an unknown gate, a head or step that is not there, a negative decay.
        TypeError: For a system without such a gate.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.full((3, 1), 0.5)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> jnp.exp(replace_gate(s, "forget", 1.0, step=1).A.log_a).ravel().tolist()
        [0.5, 1.0, 0.5]
    """
    choose("gate", gate, ("input", "forget", "output"))
    where, count = _where("replace_gate", system, step, head, length)
    part, kind = {
        "input": (system.B, OuterInput),
        "forget": (system.A, Elementwise),
        "output": (system.C, InnerOutput),
    }[gate]
    if not isinstance(part, kind):
        raise TypeError(
            f"replace_gate: expected an {kind.__name__}, which has the gate {gate!r}, got "
            f"{type(part).__name__}; use scale_gate."
        )
    if isinstance(part, Elementwise):
        _check_decay("replace_gate", "value", value)
        where = where[:, :, None, None]
        log_a, sign = part.log_decay(), part.negative()
        log_a = jnp.where(where, jnp.log(jnp.asarray(value, system.real_dtype)), log_a)
        if sign is not None:
            sign = jnp.where(sign & ~where, -1, 1)
        if isinstance(part, Scalar):
            A = Scalar(log_a[..., 0, 0], None if sign is None else sign[..., 0, 0])
        else:
            A = Diagonal(log_a, sign)
        return dataclasses.replace(system, A=A, length=count)
    # The gates of maps multiply: set to a value is scaled from 1.
    field = "scale" if gate == "input" else "gate"
    old = getattr(part, field)
    new = _with_factors(jnp.where(where, jnp.asarray(value, system.real_dtype), 1), part.rank)
    if old is not None:
        inside = _with_factors(where, part.rank)
        new = jnp.where(inside, new.astype(old.dtype), old)
    part = dataclasses.replace(part, **{field: new})
    return dataclasses.replace(system, **{"B" if gate == "input" else "C": part}, length=count)


@singledispatch
def scale_head(system: Any, head: int, factor: Number) -> Any:
    """The system with what one head puts out multiplied by a factor; 0 removes the head.

    Args:
        system: A `System` or `KernelSystem` of one sequence.
        head: Which head.
        factor: The factor.

    Returns:
        The changed system. Its skip on values is scaled as well; one on tokens belongs to no head.

    Raises:
        ValueError: For a head that is not there.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((1, 2)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(2, 1, 1))
        >>> dsfjax.scan(scale_head(s, 1, 0.0), jnp.ones((2, 2)))[0].tolist()
        [[1.0, 0.0], [2.0, 0.0]]
    """
    raise TypeError(f"scale_head: expected a System or KernelSystem, got {type(system).__name__}.")


@scale_head.register
def _(system: System, head: int, factor: Number) -> System:
    where, _ = _where("scale_head", system, None, head, None)
    factors = jnp.where(where, jnp.asarray(factor, system.real_dtype), 1)
    C, D = _scaled_output(system.C, factors, system), system.D
    if isinstance(D, ValueSkip):
        D = ValueSkip(D.d * factors[:, :, None].astype(D.d.dtype))
    return dataclasses.replace(system, C=C, D=D)


@scale_head.register
def _(system: KernelSystem, head: int, factor: Number) -> KernelSystem:
    _check_head("scale_head", system.num_heads, head)
    W = system.map_of_heads()
    dtype = system.q.dtype if W is None else W.dtype
    # Outputs of a head are linear in its values: the value map carries the factor, so that each
    # head has values of its own.
    heads = jnp.arange(system.num_heads) == head
    factors = jnp.repeat(jnp.where(heads, jnp.asarray(factor, dtype), 1), system.num_channels)
    W = jnp.diag(factors) if W is None else factors[:, None] * W
    return dataclasses.replace(system, W=W, value_heads=None)


def freeze_decay(system: AnySystem, step: Number | None = None) -> AnySystem:
    """The system with a transition that is the same at all steps: what selection adds is gone.

    Args:
        system: A system of one sequence. Of a `KernelSystem` its ``transition`` and ``log_decay``.
        step: The step whose A_t all steps get, which may be traced. By default the geometric mean
            of the decays, for a `Scalar` or `Diagonal` without signs.

    Returns:
        The changed system, of the same length.

    Raises:
        TypeError: For the mean of a transition that is no decay, or one of either sign.
        ValueError: For a kernel without decay.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.25], [1.0]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> jnp.exp(freeze_decay(s).A.log_a).tolist(), freeze_decay(s).length
        ([[0.5]], 2)
    """
    if isinstance(system, KernelSystem):
        if system.transition is None and system.log_decay is None:
            raise ValueError(
                "freeze_decay: expected a KernelSystem with a transition or a log_decay, got none."
            )
        transition, log_decay = system.transition, system.log_decay
        return dataclasses.replace(
            system,
            transition=None if transition is None else _frozen(transition, step),
            log_decay=None if log_decay is None else _frozen_array(log_decay, step),
        )
    return dataclasses.replace(system, A=_frozen(system.A, step))


def _frozen(A: Transition, step: Number | None) -> Transition:
    if step is not None:
        return map_time(lambda x: _frozen_array(x, step), A)
    if not isinstance(A, Scalar | Diagonal) or A.sign is not None:
        raise TypeError(
            "freeze_decay: expected a Scalar or Diagonal of positive decays for their mean, got "
            f"{A.describe()}; give a step."
        )
    log_a = A.log_a
    if isinstance(log_a, Factored):
        return Diagonal.factored(log_a.step.mean(axis=0, keepdims=True), log_a.rate)
    return type(A)(log_a.mean(axis=0, keepdims=True))


def _frozen_array(x: Array, step: Number | None) -> Array:
    """One row of an array that varies in time, or the mean of all."""
    if x.shape[0] == 1:
        return x
    if step is None:
        return x.mean(axis=0, keepdims=True)
    return jax.lax.dynamic_slice_in_dim(x, checked_step("freeze_decay", step, x.shape[0]), 1)


def _check_head(owner: str, heads: int, head: int | None) -> None:
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"{owner}: expected a head from 0 to {heads - 1}, got {head}.")


def _where(
    owner: str, system: System, step: Number | None, head: int | None, length: int | None
) -> tuple[Array, int | None]:
    """Where an intervention acts, (L or 1, H), and the length that the system then has."""
    if not isinstance(system, System):
        raise TypeError(
            f"{owner}: expected a System, got {type(system).__name__}. A kernel has no gates; "
            "scale rows of its values, or use scale_head."
        )
    _check_head(owner, system.num_heads, head)
    heads = jnp.arange(system.num_heads) == head if head is not None else True
    heads = jnp.broadcast_to(jnp.asarray(heads), (1, system.num_heads))
    if step is None:
        return heads, system.length
    count = steps(system, length, owner=owner)
    step = checked_step(owner, step, count)
    return (jnp.arange(count) == step)[:, None] & heads, count


def _check_decay(owner: str, what: str, value: Number) -> None:
    if not isinstance(value, Tracer) and (np.asarray(value) < 0).any():
        raise ValueError(f"{owner}: expected a {what} >= 0 for a decay, got {value}.")


def _with_factors(factors: Array, rank: int) -> Array:
    """Factors (T, H) with the axes of a scale or gate, (T, [r,] H, 1)."""
    if rank == 1:
        return factors[:, :, None]
    shape = (factors.shape[0], rank, factors.shape[1], 1)
    return jnp.broadcast_to(factors[:, None, :, None], shape)


def _times(old: Array | None, factors: Array, rank: int) -> Array:
    new = _with_factors(factors, rank)
    return new if old is None else old * new.astype(old.dtype)


def _scaled_input(B: InputMap, factors: Array, system: System) -> InputMap:
    if isinstance(B, OuterInput):
        return dataclasses.replace(B, scale=_times(B.scale, factors, B.rank))
    matrix = B.matrix(system.state_shape)
    _, n, p = system.state_shape
    rows = jnp.repeat(factors, n * p, axis=1).astype(matrix.dtype)
    return DenseInput(matrix * rows[:, :, None])


def _scaled_output(C: OutputMap, factors: Array, system: System) -> OutputMap:
    if isinstance(C, InnerOutput):
        return dataclasses.replace(C, gate=_times(C.gate, factors, C.rank))
    matrix = C.matrix(system.state_shape)
    _, n, p = system.state_shape
    columns = jnp.repeat(factors, n * p, axis=1).astype(matrix.dtype)
    return DenseOutput(matrix * columns[:, None], C.conjugate_pairs, C.before_update)


def _expect_shape(owner: str, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(f"{owner}: expected {name} of shape {expected}, got {got}.")
