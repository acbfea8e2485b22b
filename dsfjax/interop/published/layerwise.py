"""Layers as programs: one for all layers of a kind, run, or traced for what they ask for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.interop.published.naming import Definition, Layer, Stream, Weights
from dsfjax.interop.published.running import Run, Used

Params = dict[str, Array]


@partial(jax.jit, static_argnames=("one", "batched", "capacity", "keep", "show"))
def _compiled(
    one: tuple[Any, ...],
    tensors: Params,
    stream: Stream,
    positions: Array,
    state: dict[str, Any] | None,
    *,
    batched: bool,
    capacity: int | None,
    keep: bool,
    show: bool,
    nudges: tuple[Array, ...] | None,
) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
    kind, settings = one

    def of_sequence(
        stream: Stream, positions: Array, state: dict[str, Any] | None
    ) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
        # Only where something continues can there be padding, and a document that starts within.
        reset = positions == 0 if keep and positions.shape[0] > 1 else None
        run = Run(positions, reset=reset, state=state, capacity=capacity, nudges=nudges)
        out = kind(Weights(tensors), stream, run, **dict(settings))
        return out, run.left if keep else {}, tuple(run.systems) if show else ()

    return (
        jax.vmap(of_sequence)(stream, positions, state)
        if batched
        else of_sequence(stream, positions, state)
    )


def through(
    one: Layer,
    tensors: Params,
    stream: Stream,
    positions: Array,
    state: dict[str, Any] | None,
    *,
    batched: bool = False,
    capacity: int | None = None,
    keep: bool = False,
    show: bool = False,
    nudges: tuple[Array, ...] | None = None,
) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
    """A layer as a program that all layers of its kind share."""
    return _compiled(
        *((one.kind, one.settings), tensors, stream, positions, state),
        batched=batched,
        capacity=capacity,
        keep=keep,
        show=show,
        nudges=nudges,
    )


class Checked(NamedTuple):
    """What a definition makes of the tensors of a file.

    Attributes:
        names: The tensors that are read, by the names of the file.
        systems: Shapes of the Systems of every layer that is opened, on two tokens.
    """

    names: set[str]
    systems: tuple[tuple[Used, ...], ...]


def check(definition: Definition, shapes: dict[str, Any], held: Iterable[int]) -> Checked:
    """What layers ask for, by tracing every kind of layer once, without any numbers.

    Args:
        definition: The model.
        shapes: `jax.ShapeDtypeStruct` by the names of the file.
        held: Numbers of the layers that are opened.

    Returns:
        The tensors that are read, and the Systems.

    Raises:
        ValueError: If a tensor is missing or misshapen.
    """
    model, chosen = definition, [definition.layers[i] for i in held]
    traced: dict[str, tuple[set[str], Stream, tuple[Used, ...]]] = {}
    every: set[str] = set()
    systems = []
    stream: Stream = {"ids": jax.ShapeDtypeStruct((2,), jnp.int32)}
    whole = len(chosen) == len(model.layers)
    for one in (model.embed, *chosen, *([model.head] if whole else [])):
        names = one.tensors(shapes)
        tensors = {own: shapes[name] for own, name in names.items()}
        kind = f"{(one.kind, one.settings, tensors, stream)}"
        if kind not in traced:
            used: set[str] = set()

            def run(
                tensors: Params, stream: Stream, one: Layer = one, used: set[str] = used
            ) -> tuple[Stream, tuple[Used, ...]]:
                of_layer = Run(jnp.arange(2))
                out = one(Weights(tensors, one.full, used=used), stream, of_layer)
                return out, tuple(of_layer.systems)

            traced[kind] = used, *jax.eval_shape(run, tensors, stream)
        used, stream, found = traced[kind]
        systems.append(found)
        every |= {names[own] for own in used}
    return Checked(every, tuple(systems[1:-1] if whole else systems[1:]))
