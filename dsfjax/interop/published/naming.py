"""Tensors by the names of their files, and the layers of a model that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jax import Array

from dsfjax._util.names import hint
from dsfjax.interop.published.tensor_files import Config

Stream = dict[str, Any]
"""What flows from layer to layer: ``x`` (L, d), and what some models carry along."""


class Weights:
    """The tensors of one layer, asked for by name and shape.

    Args:
        tensors: By the name within the layer.
        full: From such a name to that of the file, for messages.
        used: Where the names that were asked for are noted.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        full: Callable[[str], str] = str,
        *,
        used: set[str] | None = None,
        prefix: str = "",
    ) -> None:
        self._tensors, self._full, self._prefix = tensors, full, prefix
        self._used = set() if used is None else used

    def __call__(self, name: str, *shape: int) -> Array:
        """A tensor.

        Raises:
            ValueError: If it is missing or has another shape.
        """
        name = self._prefix + name
        if name not in self._tensors:
            raise ValueError(
                f"missing tensor {self._full(name)!r} of shape {list(shape)}"
                f"{hint(name, self._tensors)}"
            )
        found = self._tensors[name]
        if found.shape != shape:
            raise ValueError(
                f"tensor {self._full(name)!r}: expected shape {list(shape)}, got "
                f"{list(found.shape)}."
            )
        self._used.add(name)
        return found

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def within(self, prefix: str) -> Weights:
        """Those whose names begin with ``prefix.``, without it."""
        inner = f"{self._prefix}{prefix}."
        return Weights(self._tensors, self._full, used=self._used, prefix=inner)

    def first_of(self, *prefixes: str) -> Weights:
        """`within` the first prefix of several spellings under which there is anything."""
        for prefix in prefixes:
            start = f"{self._prefix}{prefix}."
            if any(name.startswith(start) for name in self._tensors):
                return self.within(prefix)
        return self.within(prefixes[0])


Kind = Callable[..., Stream]
"""``kind(w, stream, run, **settings) -> stream``, one layer of a model."""

Program = tuple[Kind, tuple[tuple[str, Any], ...]]
"""A kind and its settings."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer: a function, its settings, and where its tensors are.

    Layers with the same function, settings and shapes are one compiled program.

    Attributes:
        kind: The function.
        settings: Its further arguments, by name.
        names: From prefixes within the layer to prefixes of the file (ending in "." or empty), or
            from names to names.
    """

    kind: Kind
    settings: tuple[tuple[str, Any], ...]
    names: tuple[tuple[str, str], ...]

    @property
    def program(self) -> Program:
        """What layers have in common that are one compiled program."""
        return self.kind, self.settings

    def tensors(self, every: Iterable[str]) -> dict[str, str]:
        """The names of the file by those within the layer."""
        found = {}
        for name in every:
            for own, theirs in self.names:
                if name == theirs and not theirs.endswith("."):
                    found[own] = name
                elif theirs.endswith(".") and name.startswith(theirs):
                    found[own + name.removeprefix(theirs)] = name
        return found

    def full(self, own: str) -> str:
        """The name of the file for one within the layer."""
        for start, theirs in self.names:
            if own == start and not theirs.endswith("."):
                return theirs
            if theirs.endswith(".") and own.startswith(start):
                return theirs + own.removeprefix(start)
        return own

    def __call__(self, w: Weights, stream: Stream, run: Any) -> Stream:
        """The layer on one sequence."""
        return self.kind(w, stream, run, **dict(self.settings))


def layer(kind: Kind, names: str | Mapping[str, str], **settings: Any) -> Layer:
    """A `Layer`; ``names`` is the prefix of all its tensors, or the several of `Layer.names`."""
    names = {"": names} if isinstance(names, str) else names
    return Layer(kind, tuple(sorted(settings.items())), tuple(names.items()))


@dataclasses.dataclass(frozen=True)
class Definition:
    """A published model.

    Attributes:
        vocab_size: Number of tokens.
        embed: From ``ids`` to the first ``x``.
        layers: The layers.
        head: To ``x`` after the final norm, and ``logits``.
        unused: Endings of tensors that a file may have and no number depends on.
        wide: Endings of tensors that are kept in float32 at least, whatever the others are in.
    """

    vocab_size: int
    embed: Layer
    layers: tuple[Layer, ...]
    head: Layer
    unused: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()


Family = Callable[[Config, Mapping[str, tuple[int, ...]]], Definition]
"""``family(config, shapes) -> Definition``, with the shapes of all tensors by their names."""

REGISTRY: dict[str, Family] = {}
"""By ``model_type``."""


def family(*model_types: str) -> Callable[[Family], Family]:
    """Register what defines the models of some types."""

    def register(define: Family) -> Family:
        REGISTRY.update({name: define for name in model_types})
        return define

    return register
