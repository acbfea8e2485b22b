"""Runs of ours as opened models: `Opened` over the modules that were trained.

A layer is a `dsfjax.nn.Block`, in full precision whatever it was trained in. Parameters have the
names that they have in the run, joined by dots.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dsfjax import nn
from dsfjax.interop.published.finetuning import Checkpoint
from dsfjax.interop.published.naming import Definition, Stream, Weights, layer
from dsfjax.interop.published.opened import Opened
from dsfjax.interop.published.opening import held_layers, inspect
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config
from dsfjax.nn.pattern import Layer
from dsfjax.nn.residual_block import depends_on_layer
from dsfjax.training import MemberResult, RunError, load, read_results
from dsfjax.training.storage import serial


def open_run(
    folder: Path, *, dtype: DTypeLike | None = None, layers: Iterable[int] | None = None
) -> Opened:
    """Open the best member of a finished run, or of all runs of a sweep or comparison.

    Args:
        folder: Its folder.
        dtype: As of `dsfjax.open`; that of the run by default.
        layers: As of `dsfjax.open`.

    Returns:
        The model; that of a checkpoint which was trained further has the names of its file.

    Raises:
        RunError: If the run is not finished, or damaged, or the runs have several tasks.
        ValueError: If the model continues no text, or there are not these layers.
    """
    member = None
    if not (folder / "result.json").exists():
        one = best(folder, read_results(folder))
        folder, member = folder / one.run, one.member
    loaded = load(folder)
    member = best(folder, loaded.members).member if member is None else member
    names = _by_name(loaded.params)
    params = {name: jnp.asarray(x[member], dtype) for name, x in names.items()}
    model, dtype = loaded.config.model, next(iter(params.values())).dtype
    if isinstance(model, Checkpoint):
        found = inspect(model.path)
        path, config, definition = found.path, found.config, found.definition
    else:
        path, definition = folder, _definition(folder, loaded.config.architecture)
        values = {"model_type": f"run of {model.mixer}", **serial.to_dict(model)}
        config = Config(values, str(folder / "config.json"))
    held = held_layers(len(definition.layers), layers)
    return Opened(path, config, definition, params, dtype, held)


def best(folder: Path, members: Iterable[MemberResult]) -> MemberResult:
    """The member with the best score."""
    ended = [member for member in members if member.status != "failed"]
    # Scores of different tasks, or of one in different settings, are no order.
    tasks = {json.dumps(member.config.get("task"), sort_keys=True) for member in ended}
    if len(tasks) != 1:
        raise RunError(
            f"{folder}: expected finished runs of one task, got {len(tasks)} tasks; open the "
            "folder of one run in it"
        )
    return min(ended, key=lambda member: member.metric.order(member.score))


def _definition(folder: Path, config: nn.ModelConfig) -> Definition:
    """The layers of a language model of ours."""
    if config.channels or config.head not in ("tied", "untied") or config.bidirectional:
        kind = "bidirectional" if config.bidirectional else f"with the head {config.head!r}"
        raise ValueError(
            f"{folder}: expected a run of a model that continues text, of token ids and with the "
            f"head 'tied' or 'untied', got one {kind}; read it with dsfjax.training.load."
        )
    config = dataclasses.replace(config, precision="float32", remat=False)
    around = {f"{name}.": f"{name}." for name in ("embed", "positions", "norm_f", "head_map")}
    return Definition(
        config.vocab_size,
        layer(_embed, around, config=config),
        tuple(
            layer(
                *(_block, f"blocks.block_{i - 1}."),
                config=config,
                mixers=mixers,
                # Layers of equal settings are one program, so others than these have one number.
                number=i if any(map(depends_on_layer, mixers)) else 1,
            )
            for i, mixers in enumerate(config.layers, 1)
        ),
        layer(_head, around, config=config),
    )


def _embed(w: Weights, stream: Stream, run: Run, *, config: nn.ModelConfig) -> Stream:
    if config.max_length and run.reach > config.max_length:
        raise ValueError(
            f"expected at most {config.max_length} tokens, for so many positions were learned, got "
            f"{run.reach}."
        )
    ends = _module(config, None).bound(w)
    return {"x": ends.embedded(stream["ids"], run.positions[0], run.reset)[0]}


def _block(
    w: Weights, stream: Stream, run: Run, *, config: nn.ModelConfig, mixers: Layer, number: int
) -> Stream:
    block, x = _module(config, mixers, number).bound(w), stream["x"]
    states = run.recall("mixers", None)
    if states is None and run.capacity is not None:
        states = tuple(mixer.init_state(run.capacity) for mixer in block.mixers)
    added = run.shown(block.systems(block.norm1(x), reset=run.reset))
    # Of its two streams only the sum is read where nothing is dropped out.
    h, r, after = block(x, jnp.zeros_like(x), states, reset=run.reset, added=added)
    run.leave("mixers", after)
    return {"x": r + h}


def _head(w: Weights, stream: Stream, run: Run, *, config: nn.ModelConfig) -> Stream:
    del run
    ends = _module(config, None).bound(w)
    x = ends.norm_f(stream["x"])
    return {"x": x, "logits": ends.head(x)}


class _Module(NamedTuple):
    """A module without its parameters.

    Attributes:
        make: Of parameters by name, nested, to the module.
        shapes: Their shapes, in the same way.
    """

    make: Callable[[Any], Any]
    shapes: Any

    def bound(self, w: Weights) -> Any:
        """The module with the tensors of a layer."""
        shapes = _by_name(self.shapes)
        leaves = [w(name, *x.shape) for name, x in shapes.items()]
        return self.make(jax.tree.unflatten(jax.tree.structure(self.shapes), leaves))


@lru_cache(maxsize=64)
def _module(config: nn.ModelConfig, mixers: Layer | None, number: int = 1) -> _Module:
    """A block with these mixers, of the layer of a number, or what is around the blocks."""

    def make(rngs: Any) -> Any:
        if mixers is None:
            return nn.SequenceModel(config, layers=(), rngs=rngs)
        return nn.Block(config, mixers, number=number, rngs=rngs)

    return _Module(nn.bind(make), nn.shapes_of(make))


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by the names on their paths, joined by dots."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
