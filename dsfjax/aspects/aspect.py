"""What an `Aspect` of a model is, the list of those that are looked at, and how they are measured.

Whatever looks at a trained model goes through this list: the program that measures it, the page,
the CSV files and the verdict of the report, and the probes of training. Nothing here draws or needs
Matplotlib; the functions that draw import it when they are called.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.words import number
from dsfjax.core import KernelSystem, System, pytree, static

Layers = Sequence[Any]
"""What `Aspect.summarise` made of each layer of a model, the first layer first; `numbered` says
which layers those are, as an aspect need not apply to all layers of a hybrid."""

Findings = Mapping[str, Layers]
"""Name of an aspect to the layers of one model; an aspect that does not apply is left out."""

Rows = Callable[[Any], Iterable[Mapping[str, Any]]]
"""A layer to its rows in a CSV file, all with the same keys."""

MODEL = "{model}"
"""In the name of a file: there is a file for each model, and this is replaced by its name."""


class SomeLayers(tuple[Any, ...]):
    """The layers of a model that an aspect applies to.

    Attributes:
        numbers: Which they are, counted from 1.
    """

    numbers: tuple[int, ...]

    def __new__(cls, layers: Iterable[tuple[int, Any]]) -> "SomeLayers":
        """From pairs of the number of a layer and what was made of it."""
        ordered = sorted(layers, key=lambda pair: pair[0])
        made = super().__new__(cls, (layer for _, layer in ordered))
        made.numbers = tuple(i for i, _ in ordered)
        return made


def numbered(layers: Layers) -> Iterator[tuple[int, Any]]:
    """The layers with their numbers in the model, counted from 1.

    Example:
        >>> list(numbered(SomeLayers([(4, "softmax"), (2, "ssd")]))), list(numbered(["a"]))
        ([(2, 'ssd'), (4, 'softmax')], [(1, 'a')])
    """
    numbers = getattr(layers, "numbers", range(1, 1 + len(layers)))
    return zip(numbers, layers, strict=True)


@pytree
class Stack:
    """Layers of a model on one sequence whose systems have one structure, as one.

    Attributes:
        system: Their systems, with the layers as leading axis.
        u: Their tokens, in the same way.
        dy: The gradients of the loss to their outputs, in the same way.
        numbers: Which layers these are, counted from 1, static.
    """

    system: System | KernelSystem
    u: Array
    dy: Array
    numbers: tuple[int, ...] = static()


def stacks(
    layers: Sequence[tuple[System | KernelSystem, Array]], dy: Sequence[Array]
) -> tuple[Stack, ...]:
    """The layers of a model as few stacks as their structures allow.

    Args:
        layers: ``((System, u), …)`` of every layer on one sequence.
        dy: The gradient of the loss to the outputs of each.

    Returns:
        A stack for every structure and size of systems; of all but hybrids there is one.
    """
    groups: dict[Any, list[tuple[int, Any]]] = {}
    for i, layer in enumerate(zip(*zip(*layers, strict=True), dy, strict=True)):
        leaves, structure = jax.tree.flatten(layer)
        kind = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        groups.setdefault(kind, []).append((i + 1, layer))
    found = []
    for group in groups.values():
        numbers, members = zip(*group, strict=True)
        found.append(Stack(*jax.tree.map(lambda *x: jnp.stack(x), *members), numbers=numbers))
    return tuple(found)


@pytree
class Measured:
    """What was measured of the layers of a stack.

    Attributes:
        values: Name of an aspect to what was measured and reduced, with the layers as leading axis;
            None where the aspect does not apply.
        numbers: Which layers these are, counted from 1, static.
    """

    values: dict[str, Any]
    numbers: tuple[int, ...] = static()


class Asked(NamedTuple):
    """What the task asks on one sequence, for an aspect with ``asks``.

    Attributes:
        queries: Steps at which something is asked for, (q,).
        sources: Steps of the tokens that hold the answers, (q,); None where no token does.
    """

    queries: Array
    sources: Array | None


def _nothing(layers: Layers) -> str:
    del layers
    return ""


def _always(layers: Layers) -> bool:
    del layers
    return True


def _no_finding(models: Mapping[str, Layers]) -> str:
    del models
    return ""


def _as_it_is(found: Any) -> Any:
    return found


@dataclass(frozen=True)
class Panel:
    """A figure of a model.

    Attributes:
        name: Letters, digits and hyphens; different from the names of all other panels.
        what: What it shows; a screen reader says "``what`` of ``mixer``".
        draw: ``draw(title, layers, color)``, a Matplotlib figure.
        data: Name of the file with its numbers, one of `Aspect.files`.
        caption: What is said under it.
        how: How to read it, where that differs from the panels before it.
        applies: Whether there is something to draw.
        by_layer: Draw a figure for each layer, from this layer alone.
    """

    name: str
    what: str
    draw: Callable[[str, Layers, str], Any]
    data: str
    caption: Callable[[Layers], str] = _nothing
    how: str = ""
    applies: Callable[[Layers], bool] = _always
    by_layer: bool = False


@dataclass(frozen=True)
class Column:
    """A number of a model, for the table that has the models side by side.

    Attributes:
        read: A model to the number, or None.
        show: The number in words.
        about: A sentence under the table that says what it is.
        key: Its column in ``summary.csv``; "" for none.
        called: What the verdict calls it where it ranks models as their scores do; "" if that is
            not looked for.
        first: Direction in which the first click sorts, "ascending" or "descending".
    """

    read: Callable[[Layers], float | None]
    show: Callable[[float], str] = number
    about: str = ""
    key: str = ""
    called: str = ""
    first: str = "descending"


@dataclass(frozen=True)
class Aspect:
    """One way to look at the systems of a trained model.

    **You write** how it is measured, summed up, drawn and read, in one object. **You get**, after
    `register`, a section of the report with a figure per model, a CSV file, columns in the table
    that has the models side by side, a sentence in the verdict, and numbers in the probes of
    training. A module that registers one is made known to the commands with ``--import MODULE``.

    The first five fields, with ``draw`` and ``rows``, are a whole aspect. The others are for
    aspects that have more to show.

    Attributes:
        name: Letters, digits and underscores; the name of its CSV file.
        title: Heading of its section.
        how: How to read its figures, plain text.
        measure: ``measure(system, u, dy)`` of the system of one layer on one sequence: u are its
            tokens (L, d), dy is the gradient of the loss to its outputs (L, d_out). It is traced
            into the one program that looks at a model, and gives a pytree of arrays, or None for a
            system that it does not apply to.
        summarise: The same pytree as NumPy arrays with the sequences as first axis, of one layer,
            to what the functions below read.
        draw: ``draw(mixer, layers, color)``, a Matplotlib figure.
        rows: The rows of a layer in the CSV file; all with the same keys.
        caption: What is said under a figure.
        columns: Head of a column to a `Column`, or to the function that reads its number.
        find: Model to its layers, to what the verdict says of them; "" for nothing. It compares
            models only where their numbers differ clearly. Models it does not apply to are left
            out.
        verdict: Heading of what ``find`` says; the title by default.
        asks: Whether ``measure`` takes what the task asks, an `Asked`, as a fourth argument.
        first_only: Measure the first sequence only; ``summarise`` then gets arrays without the
            axis of the sequences.
        reduce: Traced, too: what was measured of one layer with the sequences as first axis, to
            what ``summarise`` gets. For sums that are better left to the compiled program.
        panels: Figures, for an aspect with more than one; in place of ``draw`` and ``caption``.
        files: Name of a CSV file to its rows, for more than one; in place of ``rows``.
        numbers: Column of ``layers.csv`` to the function that reads it from a layer.
        warn: What looks wrong with a model, in words.
        probes: Name to a function that is traced, of what ``reduce`` gives, to a number or a
            vector: what training notes of a layer at every probe.
    """

    name: str
    title: str
    how: str
    measure: Callable[..., Any]
    summarise: Callable[[Any], Any]
    draw: Callable[[str, Layers, str], Any] | None = None
    rows: Rows | None = None
    caption: Callable[[Layers], str] = _nothing
    columns: Mapping[str, Column | Callable[[Layers], float | None]] = field(
        default_factory=dict, hash=False
    )
    find: Callable[[Mapping[str, Layers]], str] = _no_finding
    verdict: str = ""
    asks: bool = False
    first_only: bool = False
    reduce: Callable[[Any], Any] = _as_it_is
    panels: tuple[Panel, ...] = ()
    files: Mapping[str, Rows] = field(default_factory=dict, hash=False)
    numbers: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict, hash=False)
    warn: Callable[[Layers], Sequence[str]] | None = None
    probes: Mapping[str, Callable[[Any], Array | None]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(
                f"Aspect: expected a name of letters, digits and underscores, got {self.name!r}; "
                "it names a file."
            )

    def all_panels(self) -> tuple[Panel, ...]:
        """The figures, that of ``draw`` first."""
        if self.draw is None:
            return self.panels
        name = self.name.replace("_", "-")
        return (Panel(name, self.title, self.draw, self.name, self.caption), *self.panels)

    def all_files(self) -> dict[str, Rows]:
        """The CSV files, that of ``rows`` first."""
        own = {} if self.rows is None else {self.name: self.rows}
        return {**own, **self.files}

    def all_columns(self) -> dict[str, Column]:
        """The columns of the table."""
        return {
            head: column if isinstance(column, Column) else Column(column)
            for head, column in self.columns.items()
        }


_ASPECTS: dict[str, Aspect] = {}


def register(aspect: Aspect) -> Aspect:
    """Add an aspect to all reports and probes of this process.

    Args:
        aspect: The aspect. One of the same name is replaced, so that a cell of a notebook can run
            twice.

    Returns:
        The aspect.
    """
    _ASPECTS[aspect.name] = aspect
    return aspect


def registered() -> tuple[Aspect, ...]:
    """The registered aspects, in the order of the report."""
    return tuple(_ASPECTS.values())


def measure(
    aspects: Sequence[Aspect], layers: tuple[Stack, ...], asked: Asked
) -> tuple[Measured, ...]:
    """Measure aspects of every layer of a model on several sequences; to be traced.

    Args:
        aspects: The aspects.
        layers: The `stacks` of its layers, with the sequences as leading axis.
        asked: What the task asks, with the sequences as leading axis.

    Returns:
        What was measured of each stack.

    Numerics:
        Sequences and layers go by one after the other, so that no more than one of them is in
        memory in full.
    """
    return tuple(_measure(aspects, stack, asked) for stack in layers)


def _measure(aspects: Sequence[Aspect], stack: Stack, asked: Asked) -> Measured:
    def of_layer(aspects: Sequence[Aspect], asked: Asked, layer: tuple[Any, Array, Array]) -> Any:
        return {a.name: a.measure(*layer, *([asked] if a.asks else [])) for a in aspects}

    def of_sequence(aspects: Sequence[Aspect], sequence: tuple[Any, Asked]) -> Any:
        layers, asked = sequence
        return jax.lax.map(partial(of_layer, aspects, asked), layers)

    every = [a for a in aspects if not a.first_only]
    layers = stack.system, stack.u, stack.dy
    found = jax.lax.map(partial(of_sequence, every), (layers, asked))
    # A pytree without arrays has no axis of layers to map over.
    found = {
        a.name: jax.vmap(a.reduce, in_axes=1)(found[a.name])
        if jax.tree.leaves(found[a.name])
        else None
        for a in every
    }
    if len(every) < len(aspects):
        first = jax.tree.map(lambda leaf: leaf[0], (layers, asked))
        found |= of_sequence([a for a in aspects if a.first_only], first)
    return Measured(found, stack.numbers)


def summarise(aspects: Sequence[Aspect], found: Sequence[Measured]) -> dict[str, SomeLayers]:
    """Sum up what was measured.

    Args:
        aspects: The aspects.
        found: What `measure` gave, as NumPy arrays.

    Returns:
        The `Findings` of the model.
    """

    def layers(aspect: Aspect) -> Iterator[tuple[int, Any]]:
        for stack in found:
            measured = stack.values[aspect.name]
            for i, where in enumerate(stack.numbers if jax.tree.leaves(measured) else ()):
                yield where, aspect.summarise(jax.tree.map(lambda leaf, i=i: leaf[i], measured))

    summed = {a.name: SomeLayers(layers(a)) for a in aspects}
    return {name: layers for name, layers in summed.items() if layers}
