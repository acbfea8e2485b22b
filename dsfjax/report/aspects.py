"""What an `Aspect` of a trained model is, and the list of those that reports look at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

Layers = Sequence[Any]
"""What `Aspect.summarise` made of each layer of a model, the first layer first."""


def _nothing(layers: Layers) -> str:
    del layers
    return ""


def _no_finding(models: Mapping[str, Layers]) -> str:
    del models
    return ""


@dataclass(frozen=True)
class Aspect:
    """One way to look at the systems of a trained model.

    **You write** how it is measured, summed up, drawn and read, in one object. **You get**, after
    `register`, a section of the report with a figure per model, a CSV file, columns in the table
    that has the models side by side, and a sentence in the verdict. A module that registers one is
    made known to the commands with ``--import MODULE``.

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
        draw: ``draw(mixer, layers, color)``, a figure.
        rows: The rows of a layer in the CSV file; all with the same keys.
        caption: What is said under a figure.
        columns: Head of a column to its value for a model, a number or None.
        find: Model to its layers, to what the verdict says of them; "" for nothing. It compares
            models only where their numbers differ clearly.
    """

    name: str
    title: str
    how: str
    measure: Callable[[Any, Any, Any], Any]
    summarise: Callable[[Any], Any]
    draw: Callable[[str, Layers, str], Figure]
    rows: Callable[[Any], Iterable[Mapping[str, Any]]]
    caption: Callable[[Layers], str] = _nothing
    columns: Mapping[str, Callable[[Layers], float | None]] = field(
        default_factory=dict, hash=False
    )
    find: Callable[[Mapping[str, Layers]], str] = _no_finding

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(
                f"Aspect: expected a name of letters, digits and underscores, got {self.name!r}; "
                "it names a file."
            )


_ASPECTS: dict[str, Aspect] = {}


def register(aspect: Aspect) -> Aspect:
    """Add an aspect to all reports of this process.

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
