"""The report of models that were trained elsewhere: what their layers do with a text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax import aspects
from dsfjax._util.ahead import quick_options
from dsfjax._util.words import count, number
from dsfjax.aspects import Findings, SomeLayers, numbered
from dsfjax.aspects.phi_maps import PHI_MAPS, PhiMap, label_tokens
from dsfjax.aspects.style import SEQUENTIAL, SETTINGS, colormap, small
from dsfjax.core import KernelSystem, System
from dsfjax.cost import count_operations
from dsfjax.interop.published.opened import Opened, mean_loss
from dsfjax.report import along, sections
from dsfjax.report.along import Along
from dsfjax.report.export import write_findings
from dsfjax.report.html import Cell, Column, figure, grid, note, section, table
from dsfjax.report.page import data_files, document
from dsfjax.training.storage.files import write_text

# Numbers in the Systems of a stack from which on its program is compiled to be fast.
_LARGE = 10_000_000


@dataclasses.dataclass(frozen=True)
class Mixer:
    """One System of a model.

    Attributes:
        layer: Number of its layer, from 1.
        structure: Of the transition, in a word.
        state_size: Numbers that it keeps after the text.
        grows: Whether they grow with the text.
        slot: Numbers that a cache of keys and values of its width takes per token.
    """

    layer: int
    structure: str
    state_size: int
    grows: bool
    slot: int


@dataclasses.dataclass(frozen=True)
class Looked:
    """A model and what was seen of it on a text.

    Attributes:
        mixer: Its name.
        findings: What aspects found; the mixers are counted through all layers.
        mixers: Every System.
        num_params: Number of parameters.
        bits: Bits per token of the text.
        flops: Operations per token.
        ids: The text.
        tokens: The text in words.
        along: What was seen along a longer text, of which this is the beginning.
    """

    mixer: str
    findings: Findings
    mixers: tuple[Mixer, ...]
    num_params: int
    bits: float
    flops: float
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    along: Along | None = None


def look(
    model: Opened,
    ids: Sequence[int] | Array,
    tokens: Sequence[str] = (),
    *,
    name: str = "",
    looks: Sequence[aspects.Aspect] | None = None,
) -> Looked:
    """Look into every System of a model on a text.

    Args:
        model: The model.
        ids: The text, (L,), at least two tokens.
        tokens: The same in words; the numbers by default.
        name: What the model is called; its folder by default.
        looks: The aspects; all that are registered by default.

    Returns:
        What was seen.

    Raises:
        ValueError: If no layer has a System.
    """
    looks = aspects.registered() if looks is None else tuple(looks)
    ids = jnp.asarray(ids)
    logits, layers, gradients = model.passes(ids)
    used = [(i, *each) for i, layer in enumerate(layers) for each in layer]
    if not used:
        raise ValueError(f"{model.path}: expected layers that mix tokens, found none.")
    dy = [g for layer in gradients for g in layer]
    stacks = aspects.stacks([(s, u) for _, s, u in used], dy)
    asked = aspects.Asked(jnp.array([[len(ids) - 1]]), None)
    measure = jax.jit(lambda one, asked: aspects.measure(looks, (one,), asked))
    found = []
    for stack in stacks:  # one after the other: each may take the memory of a map
        one = jax.tree.map(lambda x: x[None], stack), asked
        # What takes the compiler half a minute to make fast pays from some seconds of running on.
        large = sum(x.size for x in jax.tree.leaves(stack)) > _LARGE
        run = measure.lower(*one).compile(compiler_options={} if large else quick_options())
        found += jax.tree.map(np.asarray, run(*one))
    findings = dict(aspects.summarise(looks, found))
    words = tuple(tokens) or tuple(str(i) for i in ids.tolist())
    if maps := findings.get(PHI_MAPS.name):
        findings[PHI_MAPS.name] = SomeLayers(
            (i, dataclasses.replace(layer, tokens=words)) for i, layer in numbered(maps)
        )
    loss = float(mean_loss(logits, ids))
    flops = count_operations(model.apply, model.params, ids).flops / len(ids)
    return Looked(
        name or model.path.resolve().name,
        findings,
        tuple(_mixer(i + 1, s, len(ids)) for i, s, _ in used),
        sum(x.size for x in model.params.values()),
        loss / float(np.log(2)),
        flops,
        tuple(ids.tolist()),
        words,
    )


def _mixer(layer: int, system: System | KernelSystem, length: int) -> Mixer:
    name = words_of(system)[0]
    if isinstance(system, KernelSystem):
        grows = system.window is None
        return Mixer(layer, name, system.state_size(length), grows, system.slot_size)
    heads, n, p = system.state_shape
    return Mixer(layer, name, heads * n * p, False, 2 * heads * p)


def words_of(system: System | KernelSystem) -> tuple[str, str, str]:
    """What a System is, its heads and the size of its state, in words.

    Example:
        >>> import dsfjax
        >>> words_of(dsfjax.KernelSystem(*jnp.zeros((2, 5, 4, 8)), num_channels=8, window=3))
        ('attention, window of 3', '4', '64 a token, of 3 tokens at most')
    """
    if isinstance(system, KernelSystem):
        window = "" if system.window is None else f", window of {system.window}"
        most = f", of {system.most_slots} tokens at most" if window else ""
        name = f"attention{window}"
        return name, str(system.num_heads), f"{system.slot_size:,} a token{most}"
    heads, n, p = system.state_shape
    name = type(system.A).__name__
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    return words, str(heads), f"{heads * n * p:,} = {heads} · {n} · {p}"


def write(models: Sequence[Looked], out: Path | str, title: str) -> Path:
    """Write the page, and ``data/*.csv`` next to it.

    Args:
        models: What was seen of each, with different names.
        out: Folder of the report; made if it does not exist.
        title: Heading of the page.

    Returns:
        The page.
    """
    out = Path(out)
    streamed = [each.along for each in models if each.along is not None]
    own = {"mixers": _rows(models), "along": along.rows(streamed)}
    files = write_findings(models, own, out / "data")
    first = models[0]
    shared = all(each.ids == first.ids for each in models)
    facts = {
        "models": ", ".join(each.mixer for each in models),
        "text": f"{len(first.ids)} tokens" + ("" if shared else " of each model's tokenizer"),
        "numbers": "exact: the Systems that the layers are on this text, not an approximation",
    }
    shown = [
        _side_by_side(models),
        _layers(models),
        _left(models),
        *([along.shown(streamed)] if streamed else []),
        *[sections.of_aspect(models, aspect) for aspect in aspects.registered()],
    ]
    page = out / "index.html"
    write_text(page, document(title, facts, shown, data_files(files)))
    return page


def _side_by_side(models: Sequence[Looked]) -> str:
    own = (
        Column("bits per token", "ascending"),
        Column("parameters", "ascending"),
        Column("state size N", "ascending"),
        Column("as KV cache, tokens", "ascending"),
        Column("operations per token", "ascending"),
    )
    cells: dict[str, list[Cell]] = {}
    for each in models:
        size = sum(m.state_size for m in each.mixers)
        slots = size / sum(m.slot for m in each.mixers)
        cells[each.mixer] = [
            Cell(number(each.bits), each.bits),
            Cell(count(each.num_params), each.num_params),
            Cell(count(size), size, "grows" if any(m.grows for m in each.mixers) else ""),
            Cell(number(slots), slots),
            Cell(count(each.flops), each.flops),
        ]
    parts = sections.side_by_side(
        models,
        own,
        cells,
        "On this text. Bits per token: mean of −log₂ p of the next token. N: numbers that all "
        "layers keep after the text; “grows”: with its length. As KV cache: tokens whose keys and "
        "values would take as much room in layers of this width. A click on a heading sorts.",
        "– where there is no finite state.",
    )
    return section("Side by side", "", *parts)


def _layers(models: Sequence[Looked]) -> str:
    """A row per System: what it is, and what aspects say of it in one number each."""
    keys = _numbers()
    columns = (
        Column("model", "ascending", "text"),
        Column("mixer", "ascending", sorted="ascending"),
        Column("layer", "ascending"),
        Column("transition", "ascending", "text"),
        Column("state size N", "ascending"),
        *[Column(key.replace("_", " ")) for key in keys],
    )
    rows = []
    for row in _rows(models):
        values = [row[key] for key in keys]
        rows.append(
            (
                Cell(row["model"], row["model"]),
                Cell(str(row["mixer"]), row["mixer"]),
                Cell(str(row["layer"]), row["layer"]),
                Cell(row["transition"], row["transition"]),
                Cell(count(row["state_size"]), row["state_size"], "grows" * row["grows"]),
                *[Cell("–" if v is None else number(v), v) for v in values],
            )
        )
    said = (
        "Mixers are counted through all layers, as in the figures; a layer can have several. "
        "Modulus: quantiles of |λ|, how much of a direction of the state is left after a step. "
        "Horizon: steps back within which what a token has left in the output fades; dimension and "
        "participation: directions of the state that are in use. – where there is no such number."
    )
    return section("Layer by layer", "", table("Layers, scrollable", columns, rows), note(said))


def _numbers() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Numbers that aspects have for a layer, by column."""
    return {
        key: (aspect.name, read)
        for aspect in aspects.registered()
        for key, read in aspect.numbers.items()
        if key != "warnings"
    }


def _rows(models: Sequence[Looked]) -> list[dict[str, Any]]:
    found, numbers = [], _numbers()
    for each in models:
        layers = {name: dict(numbered(own)) for name, own in each.findings.items()}
        for i, mixer in enumerate(each.mixers, 1):
            own = {
                key: read(layers[name][i]) if i in layers.get(name, {}) else None
                for key, (name, read) in numbers.items()
            }
            found.append(
                {
                    "model": each.mixer,
                    "mixer": i,
                    "layer": mixer.layer,
                    "transition": mixer.structure,
                    "state_size": mixer.state_size,
                    "grows": mixer.grows,
                    **own,
                }
            )
    return found


def _left(models: Sequence[Looked]) -> str:
    """What the output at the last token takes from each token, a row per mixer."""
    drawn = [
        figure(
            draw_left(each.mixer, maps, each.tokens),
            f"left-{i}",
            f"what is left of each token in {each.mixer}",
            "Row: mixer; column: token of the text.",
            f"phi_{each.mixer}.csv",
        )
        for i, each in enumerate(models)
        if (maps := each.findings.get(PHI_MAPS.name))
    ]
    how = (
        "How to read: |Φ_{T,s}|, the weight of token s in the output at the last token T, for head "
        "0 of every mixer, relative to the largest of its row. A bright column is a token that the "
        "mixers still hold at the end; a row that is bright only at its right end has forgotten."
    )
    heading = "What is left of each token at the end"
    return section(heading, how, grid("pair", drawn)) if drawn else ""


def draw_left(title: str, layers: Sequence[PhiMap], tokens: Sequence[str]) -> Any:
    """Heat map of the last row of Φ, a row per mixer.

    Args:
        title: Title of the figure.
        layers: Φ of every mixer.
        tokens: Labels of the columns.

    Returns:
        The figure.
    """
    import matplotlib
    from matplotlib.colors import LogNorm

    last = np.abs(np.stack([layer.kernel[-1] for layer in layers]))
    last = np.where(np.isfinite(last), last, 0)
    tiny = np.finfo(float).tiny
    shown = np.maximum(last / np.maximum(last.max(axis=1, keepdims=True), tiny), 1e-3)
    height = 1.2 + 0.22 * min(len(layers), 24)
    with matplotlib.rc_context(SETTINGS):
        drawn, ax = small(6.6, height, (0.5, 0.75, 0.15, 0.36))
        ax.imshow(
            shown,
            cmap=colormap(SEQUENTIAL),
            norm=LogNorm(1e-3, 1),
            interpolation="none",
            aspect="auto",
        )
        label_tokens(ax, tokens, layers[0].cell, rows=False)
        rows = range(0, len(layers), max(1, len(layers) // 12))
        numbers = [i for i, _ in numbered(layers)]
        ax.set_yticks(rows, [str(numbers[row]) for row in rows])
        ax.set_ylabel("mixer")
        ax.tick_params(length=0)
        ax.set_title(title)
    return drawn


def text_of(model: Opened, ids: Sequence[int]) -> tuple[str, ...]:
    """Every token in words, with blanks and ends of lines made visible."""
    words = (model.tokenizer.decode([i], skip_special_tokens=False) for i in ids)
    return tuple(_visible(word, i) for word, i in zip(words, ids, strict=True))


def _visible(word: str, number: int) -> str:
    shown = word.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c for c in shown if c.isprintable()) or f"#{number}"


def report(
    models: Mapping[str, tuple[Opened, Sequence[int], Sequence[str]]],
    out: Path | str,
    title: str,
    *,
    longer: Mapping[str, Sequence[int]] | None = None,
    said: Callable[[str], Any] = str,
) -> Path:
    """`look` into several models and `write` the page.

    Args:
        models: By name, a model, the text as its tokens, and those in words.
        out: Folder of the report.
        title: Heading of the page.
        longer: By name, a longer text that begins so, to be read piece by piece.
        said: Told of every stage, with its time.

    Returns:
        The page.
    """

    def seen() -> Iterator[Looked]:
        for name, (model, ids, tokens) in models.items():
            began = time.perf_counter()
            found = look(model, ids, tokens, name=name)
            took = time.perf_counter() - began
            said(f"{name}: {model.num_layers} layers looked into in {took:.1f} s")
            if (text := (longer or {}).get(name)) is not None:
                found = dataclasses.replace(
                    found, along=along.read(model, text, piece=len(ids), name=name, said=said)
                )
            yield found

    return write(list(seen()), out, title)
