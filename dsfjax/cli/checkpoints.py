"""``dsfjax inspect``, ``convert`` and ``reduce``, and ``dsfjax analyze`` of opened models."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array
from rich import box
from rich.table import Table

from dsfjax.cli import opened_options
from dsfjax.cli.output import console, say_of_report
from dsfjax.cli.usage import UsageError, usage_errors, writable
from dsfjax.interop import published
from dsfjax.report import of_text

_REFUSED = (ValueError, FileNotFoundError, FileExistsError, ImportError)


def inspect(command: opened_options.Inspect) -> int:
    """Print what a checkpoint is: its layers, their Systems, parameters and files.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If it does not open.
    """
    with usage_errors(*_REFUSED):
        found = published.inspect(command.path)
    folder, layers = found.folder, found.definition.layers
    params = sum(_size(folder.shapes[name]) for name in found.names)
    files = {folder.files[name] for name in found.names}
    stored = sum(file.stat().st_size for file in files)
    print_ = console().print
    print_(
        f"{command.path}: {found.config.get('model_type')}, {len(layers)} layers, {params:,} "
        f"parameters, vocabulary of {found.definition.vocab_size:,}",
        highlight=False,
        soft_wrap=True,
    )
    dtypes = ", ".join(f"{n} {d}" for d, n in Counter(folder.dtypes.values()).most_common())
    print_(
        f"{len(found.names)} tensors ({dtypes}) in {len(files)} files, {stored / 2**20:,.1f} MiB; "
        "all are read, none is missing",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("layers", "mixer", "heads", "state size N"):
        table.add_column(head, justify="right" if head in ("heads", "state size N") else "left")
    for row in _grouped(found.systems):
        table.add_row(*row)
    print_(table)
    return 0


def convert(command: opened_options.Convert) -> int:
    """Make a published checkpoint of another one, and say what it is.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If there is no folder to write, or no checkpoint that can be converted.
    """
    if command.out is None:
        raise UsageError("expected --out FOLDER, the folder to write, got none")
    with usage_errors(*_REFUSED):
        out = published.convert(command.path, command.out)
    return inspect(opened_options.Inspect(path=out))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _grouped(systems: Sequence[Sequence[Any]]) -> list[tuple[str, str, str, str]]:
    """A row per stretch of equal layers and per System of theirs."""
    rows: list[tuple[tuple[tuple[str, str, str], ...], int, int]] = []
    for i, layer in enumerate(systems):
        kind = tuple(of_text.words_of(system) for system, _ in layer) or (("no mixer", "–", "0"),)
        if rows and rows[-1][0] == kind:
            rows[-1] = (kind, rows[-1][1], i)
        else:
            rows.append((kind, i, i))
    return [
        ((str(first) if first == last else f"{first}–{last}") if j == 0 else "", *words)
        for kind, first, last in rows
        for j, words in enumerate(kind)
    ]


def analyze(command: opened_options.Analyze) -> int:
    """Look into opened models on a text, and write the report.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If one does not open, or there is no text of at least two tokens.
    """
    out = command.report or Path("report")
    models, longer = {}, {}
    with usage_errors(*_REFUSED):
        writable(out)
        text = _text(command)
        for path in command.run_dir:
            model = published.open(path)
            every = _ids(command, model, text)
            ids = every[: command.tokens]
            words = () if text is None else of_text.text_of(model, ids)
            name = path.resolve().name
            name = name if name not in models else f"{name}-{len(models) + 1}"
            models[name] = (model, ids, words)
            if command.stream:
                longer[name] = every

    title = f"Inside {', '.join(models)}"
    page = of_text.report(models, out, title, longer=longer, said=say_of_report)
    console().print(f"report: {page}", soft_wrap=True)
    return 0


def reduce(command: opened_options.Reduce) -> int:
    """Give a checkpoint smaller states, and say what that costs on a text.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If it does not open, its states cannot be made smaller, or there is no text.
    """
    with usage_errors(*_REFUSED):
        text = _text(command)
        if command.out is not None:
            writable(command.out)
        model = published.open(command.path)
        ids = jnp.asarray(_ids(command, model, text))
        measured = published.measure_states(model, ids, layers=command.layers or None)
        small = published.reduce(model, command.states, measured)
        alone = {i: published.reduce(model, command.states, {i: measured[i]}) for i in measured}
        if command.out is not None:
            small.model.save(command.out)
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("reduced", "of σ² kept", "nats per token", "bits"):
        table.add_column(head, justify="left" if head == "reduced" else "right")
    table.add_row("nothing", "100.00 %", *_loss(model, ids))
    for i, one in alone.items():
        table.add_row(f"layer {i}", f"{one.kept[i]:.2%}".replace("%", " %"), *_loss(one.model, ids))
    table.add_row(f"{len(measured)} layers together", "", *_loss(small.model, ids))
    console().print(
        f"{command.path}: {command.states} states per group of heads, on {len(ids)} tokens",
        highlight=False,
        soft_wrap=True,
    )
    console().print(table)
    if command.out is not None:
        console().print(f"checkpoint: {command.out}", soft_wrap=True)
    return 0


def _loss(model: published.Opened, ids: Array) -> tuple[str, str]:
    """The mean of −log p of the next token, in nats and in bits."""
    nats = float(published.mean_loss(model.logits(ids), ids))
    return f"{nats:.4f}", f"{nats / math.log(2):.4f}"


def _ids(command: opened_options.OnText, model: published.Opened, text: str | None) -> list[int]:
    """The first tokens of the text, or all that stream, which are tokens of the model."""
    ids = list(command.ids) if text is None else model.tokenizer.encode(text).ids
    ids = ids if _streams(command) else ids[: command.tokens]
    if len(ids) < 2:
        raise UsageError(f"expected a text of at least 2 tokens, got {len(ids)}")
    model.check_ids(ids)
    return ids


def _streams(command: opened_options.OnText) -> bool:
    return isinstance(command, opened_options.Analyze) and command.stream


def _text(command: opened_options.OnText) -> str | None:
    """The text; None where token ids are given."""
    given = [x for x in (command.text, command.text_file, command.ids or None) if x is not None]
    if len(given) != 1:
        raise UsageError(
            "expected what published checkpoints read, one of --text, --text-file and --ids, got "
            f"{len(given)} of them"
        )
    if command.tokens < 2:
        raise UsageError(f"expected --tokens of at least 2, got {command.tokens}")
    if command.text_file is None:
        return command.text
    try:
        with command.text_file.open(encoding="utf-8") as file:
            # What does not stream is cut to the tokens anyway.
            return file.read() if _streams(command) else file.read(64 * command.tokens)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected a text in UTF-8, got {command.text_file}: {error}") from error
