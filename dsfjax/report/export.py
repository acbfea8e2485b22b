"""The numbers behind the page, as CSV files that any tool reads."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsfjax.aspects import Findings, numbered, registered
from dsfjax.aspects.aspect import MODEL, Rows
from dsfjax.cost import PHASES
from dsfjax.report.dynamics import rows as rows_of_dynamics
from dsfjax.report.entries import Comparison, Entry, Seen
from dsfjax.training.storage.files import write_text

_SUMMARY = ("steps_to_90 state_size grows num_params tokens_per_second bounds num_diverged").split()


def write_data(comparison: Comparison, folder: Path) -> list[str]:
    """Write the numbers of tables and figures, in full precision (``repr`` of a float).

    * ``summary.csv``: one row per mixer, the first two tables of the page.
    * ``members.csv``: one row per member: its value of each axis, and how it ended.
    * ``curves.csv``: one row per mixer, seed and evaluation, at the best learning rate.
    * ``cost.csv``: one row per mixer and phase.
    * ``layers.csv``: one row per mixer and layer: what aspects say of it in one number each.
    * The files of every registered aspect: one row per mixer, layer and row of the aspect. One for
      each mixer, such as ``phi_<mixer>.csv``, has no column of mixers.
    * ``dynamics.csv``: one row per mixer, probe and layer, if there are probes.

    A file without rows is not written.

    Args:
        comparison: What the page shows.
        folder: Made if it does not exist.

    Returns:
        The names of the files.
    """
    entries = comparison.entries
    found = [(entry, entry.findings) for entry in entries if entry.findings is not None]
    files: dict[str, Iterable[dict[str, Any]]] = {
        "summary": _summary(comparison),
        "members": _members(comparison),
        "curves": _curves(comparison),
        "cost": _costs(entries),
        "layers": _layers(found),
    }
    files["dynamics"] = _dynamics(comparison)
    return write_findings([entry for entry, _ in found], files, folder)


def write_findings(
    models: Sequence[Seen], files: Mapping[str, Iterable[dict[str, Any]]], folder: Path
) -> list[str]:
    """Write given rows, and the files of every registered aspect.

    Args:
        models: The models, with what aspects found.
        files: Name of each further file to its rows.
        folder: Made if it does not exist.

    Returns:
        The names of the files; one without rows is not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [(each.mixer, each.findings or {}) for each in models]
    every = dict(files)
    for aspect in registered():
        for name, rows in aspect.all_files().items():
            if MODEL not in name:
                every[name] = _by_mixer(found, aspect.name, rows)
    for aspect in registered():
        for name, rows in aspect.all_files().items():
            for mixer, findings in found if MODEL in name else ():
                own = _by_layer(findings.get(aspect.name, ()), rows)
                every[name.replace(MODEL, mixer)] = own
    written = (_write(folder / f"{name}.csv", rows) for name, rows in every.items())
    return [name for name in written if name]


Lines = Iterator[dict[str, Any]]
Found = Sequence[tuple[Entry, Findings]]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows with the same keys.

    Returns:
        The name of the file. Without rows no file is written, and the name is "".
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return ""

    def values(row: dict[str, Any]) -> list[Any]:
        # csv.DictWriter asks the same, by a difference of sets that takes most of its time.
        if row.keys() != first.keys():
            raise ValueError(
                f"{path.name}: expected rows with the keys {', '.join(first)}, got one with "
                f"{', '.join(row)}. Every row of an aspect's file has the same keys."
            )
        return [row[key] for key in first]

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(first)
    writer.writerows(map(values, itertools.chain([first], rows)))
    write_text(path, text.getvalue())
    return path.name


def _summary(comparison: Comparison) -> Lines:
    columns = [
        (aspect.name, column)
        for aspect in registered()
        for column in aspect.all_columns().values()
        if column.key
    ]
    for entry in comparison.entries:
        found = entry.findings or {}
        yield {
            **{name: getattr(entry, name) for name in ("mixer", "run", "learning_rate")},
            **_spread({comparison.metric.name: (entry.score_mean, entry.score_std)}),
            **_spread(entry.also),
            **{name: getattr(entry, name) for name in _SUMMARY},
            "num_members": len(entry.outcomes),
            **{
                column.key: column.read(found[name]) if name in found else None
                for name, column in columns
            },
        }


def _spread(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Mean and standard deviation of each metric as columns."""
    columns: dict[str, float] = {}
    for name, (mean, std) in found.items():
        columns |= {f"{name}_mean": mean, f"{name}_std": std}
    return columns


def _members(comparison: Comparison) -> Lines:
    for entry in comparison.entries:
        for outcome in entry.outcomes:
            yield {
                "mixer": entry.mixer,
                **outcome.point._asdict(),
                "status": outcome.status,
                **{metric.name: outcome.of(metric) for metric in comparison.measured},
            }


def _curves(comparison: Comparison) -> Lines:
    for entry in comparison.entries:
        for curve in entry.curves:
            for step, value in zip(curve.steps, curve.score, strict=True):
                yield {
                    "mixer": entry.mixer,
                    "seed": curve.seed,
                    "step": int(step),
                    comparison.metric.name: float(value),
                }


def _costs(entries: Sequence[Entry]) -> Lines:
    for entry in entries:
        for name in PHASES:
            phase = getattr(entry.cost, name)
            if phase is None:  # a classifier decodes nothing
                continue
            yield {
                "mixer": entry.mixer,
                "phase": name,
                "flops": phase.flops,
                "transcendentals": phase.transcendentals,
                "bytes": phase.bytes,
                "cache_equivalent": entry.cost.cache_equivalent,
            }


def _layers(found: Found) -> Lines:
    numbers = [(a.name, key, read) for a in registered() for key, read in a.numbers.items()]
    for entry, findings in found:
        layers = {name: dict(numbered(found)) for name, found in findings.items()}
        for i in sorted({i for own in layers.values() for i in own}):
            yield {
                "mixer": entry.mixer,
                "layer": i,
                **{
                    key: read(layers[name][i]) if i in layers.get(name, ()) else None
                    for name, key, read in numbers
                },
            }


def _by_layer(layers: Sequence[Any], rows: Rows) -> Lines:
    for i, layer in numbered(layers):
        for row in rows(layer):
            yield {"layer": i, **row}


def _by_mixer(found: Sequence[tuple[str, Findings]], aspect: str, rows: Rows) -> Lines:
    for mixer, findings in found:
        for row in _by_layer(findings.get(aspect, ()), rows):
            yield {"mixer": mixer, **row}


def _dynamics(comparison: Comparison) -> Lines:
    for entry in comparison.entries:
        if entry.dynamics is not None:
            for row in rows_of_dynamics(entry.dynamics, comparison.metric):
                yield {"mixer": entry.mixer, **row}
