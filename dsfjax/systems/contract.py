"""What the functions of an `Architecture` owe each other, tried on abstract tokens."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp

from dsfjax.core import KernelSystem, System
from dsfjax.core.dtypes import state_dtype
from dsfjax.systems.architecture import Architecture

_STEPS = 3


def check(name: str, arch: Any, d_model: int) -> None:
    """Raise unless the functions of an architecture fit together. Computes nothing.

    Args:
        name: Its name, for the message.
        arch: What its builder returned.
        d_model: The width of tokens that it was built for.

    Raises:
        TypeError: Where something is of a wrong type.
        ValueError: Where shapes or names do not fit.
    """
    if not isinstance(arch, Architecture):
        raise TypeError(_message(name, "an Architecture", type(arch).__name__))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(arch.init, key)
    if not _is_named_tuple(params):
        raise TypeError(_message(name, "init to return a NamedTuple", type(params).__name__))
    mask = jax.ShapeDtypeStruct((_STEPS,), jnp.bool_)
    dtype = state_dtype(*(x.dtype for x in jax.tree.leaves(params)))
    u = jax.ShapeDtypeStruct((_STEPS, d_model), dtype)
    more = (mask, None) if arch.reads_state else (mask,) if arch.reads_start else ()
    signals = jax.eval_shape(arch.signals, params, u, *more)
    if not (_is_named_tuple(signals) and hasattr(signals, "v")):
        fields = getattr(signals, "_fields", type(signals).__name__)
        expected = "signals to return a NamedTuple with a field v, the values"
        raise TypeError(_message(name, expected, fields))
    if signals.v.shape[:1] != (_STEPS,):
        expected = f"signals.v of shape ({_STEPS}, …), the steps first"
        raise ValueError(_message(name, expected, signals.v.shape))
    try:
        inspect.signature(arch.assemble).bind(params, signals, reset=mask)
    except TypeError as error:
        expected = "assemble(params, signals, *, reset=None), with the starts of documents"
        raise TypeError(_message(name, expected, f"one for which {error}")) from None
    system = jax.eval_shape(lambda p, s, r: arch.assemble(p, s, reset=r), params, signals, mask)
    if not isinstance(system, (System, KernelSystem)):
        expected = "assemble to return a System or a KernelSystem"
        raise TypeError(_message(name, expected, type(system).__name__))
    if system.reset is None:
        raise ValueError(_message(name, "assemble to pass reset on to the System", "reset=None"))
    values = math.prod(signals.v.shape[1:])
    if (W := system.W) is not None:
        expected = "assemble to return the System that acts on values, without W"
        raise ValueError(
            _message(name, expected, f"W of shape {W.shape}", "Return W from value_map.")
        )
    if system.token_width != values:
        expected = f"a System that reads the {values} values of a step (signals.v, flattened)"
        raise ValueError(_message(name, expected, f"one that reads {system.token_width}"))
    _check_value_map(name, arch, params, (values, d_model))
    if arch.solved is not None and isinstance(system, System):
        found = tuple(x.shape for x in jax.eval_shape(arch.solved, signals))
        shapes = (_STEPS, system.output_width), system.carried_shape
        if found != shapes:
            expected = f"solved to return outputs {shapes[0]} and the last state {shapes[1]}"
            raise ValueError(_message(name, expected, found))
    labels = jax.tree.structure(arch.labels(params))
    if labels != jax.tree.structure(params):
        expected = f"labels of the structure of params, {jax.tree.structure(params)}"
        raise ValueError(_message(name, expected, labels))


def _check_value_map(name: str, arch: Architecture, params: Any, shape: tuple[int, int]) -> None:
    try:
        W = jax.eval_shape(arch.value_map, params)
    except ValueError:
        return  # values that are not linear in the token: `Architecture.system` says so
    got = None if W is None else W.shape
    if got != (None if W is None and shape[0] == shape[1] else shape):
        expected = f"value_map to return W of shape {shape}, so that v = W u"
        hint = "None stands for values that are the tokens."
        raise ValueError(_message(name, expected, got, hint))


def _is_named_tuple(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def _message(name: str, expected: str, got: Any, hint: str = "") -> str:
    hint = hint or "See dsfjax.systems.Architecture."
    return f"architecture {name!r}: expected {expected}, got {got}. {hint}"
