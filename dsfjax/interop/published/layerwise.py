"""Layers as programs: one for all layers of a kind, run, or traced for what they ask for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.interop.published.naming import Definition, Layer, Program, Stream, Weights
from dsfjax.interop.published.running import Run, Used

Params = dict[str, Array]


@partial(jax.jit, static_argnames=("program", "batched", "capacity", "starting", "keep", "show"))
def through(
    program: Program,
    tensors: Params,
    stream: Stream,
    positions: Array,
    state: dict[str, Any] | None = None,
    nudges: tuple[Array, ...] | None = None,
    *,
    batched: bool = False,
    capacity: int | None = None,
    starting: bool = False,
    keep: bool = False,
    show: bool = False,
) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
    """Run a layer, by the program that all layers of its kind share.

    Args:
        program: `Layer.program`.
        tensors: By their names within the layer.
        stream: What enters.
        positions: Of the steps, (L,).
        state: See `Run`.
        nudges: See `Run`.
        batched: Whether ``stream``, ``positions`` and ``state`` have an axis of sequences first.
        capacity: See `Run`.
        starting: Whether documents may start within, after padding.
        keep: Whether to return what the layer leaves for later tokens.
        show: Whether to return its Systems.

    Returns:
        What leaves the layer, what it leaves behind, and its Systems.
    """
    kind, settings = program

    def of_sequence(
        stream: Stream, positions: Array, state: dict[str, Any] | None
    ) -> tuple[Stream, dict[str, Any], tuple[Used, ...]]:
        reset = positions == 0 if starting else None
        run = Run(positions, reset=reset, state=state, capacity=capacity, nudges=nudges)
        out = kind(Weights(tensors), stream, run, **dict(settings))
        return out, run.left if keep else {}, tuple(run.systems) if show else ()

    return (jax.vmap(of_sequence) if batched else of_sequence)(stream, positions, state)


@partial(jax.jit, static_argnames=("program",))
def back(
    program: Program,
    tensors: Params,
    stream: Stream,
    positions: Array,
    nudges: tuple[Array, ...],
    out: Stream,
) -> tuple[Stream, tuple[Array, ...]]:
    """Gradients to what entered a layer and to its nudges, for ``out`` to what left it.

    The layer runs once more, so that nothing of it is kept in between, and layers of a kind share
    this program as they share `through`.
    """

    def run(entering: Stream, nudges: tuple[Array, ...]) -> Stream:
        of_layer = {**stream, **entering}
        return differentiable(through(program, tensors, of_layer, positions, None, nudges)[0])

    return jax.vjp(run, differentiable(stream), nudges)[1](out)


def differentiable(stream: Stream) -> Stream:
    """What of a stream has gradients: not the ids."""
    return {name: x for name, x in stream.items() if jnp.issubdtype(x.dtype, jnp.inexact)}


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
        kind = f"{(one.program, tensors, stream)}"
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
