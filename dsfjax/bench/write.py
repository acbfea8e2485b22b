"""The benchmark as files: JSON, CSV, Markdown, a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dsfjax.bench.measure import Measurement
from dsfjax.bench.run import Results
from dsfjax.bench.tables import Table, tables

COLORS = {"ours": "#0072b2", "baseline": "#8c8c8c", "peer": "#d55e00"}
SIDES = {"ours": "dsfjax", "baseline": "plain JAX", "peer": "other packages"}


def write(results: Results, folder: Path) -> list[Path]:
    """Write everything into a folder, which is made if need be.

    Args:
        results: What was measured.
        folder: Where to.

    Returns:
        The files: ``bench.json``, ``bench.md``, ``grid.csv`` and ``bench.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("bench.json", "bench.md", "grid.csv", "bench.png")]
    files[0].write_text(json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")
    files[1].write_text(markdown(results))
    with files[2].open("w", newline="") as file:
        rows = csv.DictWriter(file, Measurement._fields)
        rows.writeheader()
        rows.writerows(row._asdict() for row in results.rows)
    plot(results.rows).savefig(files[3], dpi=120)
    return files


def as_json(results: Results) -> dict[str, Any]:
    """The same as data of JSON.

    Args:
        results: What was measured.

    Returns:
        A dict of dicts and lists, NamedTuples by their fields.
    """
    return _plain(results)


def _plain(x: Any) -> Any:
    if hasattr(x, "_asdict"):
        return {k: _plain(v) for k, v in x._asdict().items()}
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    return [_plain(v) for v in x] if isinstance(x, list | tuple) else x


def markdown(results: Results) -> str:
    """All tables in Markdown, below what they were measured on.

    Args:
        results: What was measured.

    Returns:
        The text.
    """
    return (
        "\n\n".join([f"```\n{environment(results)}\n```", *map(_as_markdown, tables(results))])
        + "\n"
    )


def environment(results: Results) -> str:
    """What it was measured on, in a few lines."""
    found, rates = results.machine, results.roofline
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
    allocator = ", ".join(f"{k}={v}" for k, v in found["allocator"].items())
    threads = ", ".join(f"{k}={v}" for k, v in found["threads"].items())
    torch = f", PyTorch {found['torch_threads']} threads" if "torch_threads" in found else ""
    return "\n".join(
        (
            f"device     {found['devices']} x {found['device']} ({found['backend']}), "
            f"{found['processor']}; in JAX batches are cut over them",
            f"cores      {found['usable_cores']} of {found['cores']} usable{torch}",
            f"rates      {rates.bytes_per_s / 1e9:.1f} GB/s copied, "
            f"{rates.flops_per_s / 1e9:,.0f} Gflop/s {results.precision} products",
            f"allocator  {allocator}",
            f"set        {threads or 'no thread or XLA variables'}",
            f"versions   Python {found['python']}, {versions}",
        )
    )


def _as_markdown(table: Table) -> str:
    rule = ["---"] * table.left + ["---:"] * (len(table.head) - table.left)
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.head, rule, *table.rows)]
    return "\n".join((f"### {table.title}", "", *lines))


def plot(rows: Sequence[Measurement]) -> Figure:
    """Times of forward and backward: a bar per contestant, grouped by case, on a log axis.

    Args:
        rows: The grid.

    Returns:
        The figure; contestants that were not run are left out.
    """
    run = [row for row in rows if row.gradient_ms is not None]
    figure = Figure(figsize=(8.5, 1.2 + 0.19 * len(run)), layout="constrained")
    ax = figure.add_subplot()
    places, labels, place, case = [], [], 0.0, None
    for row in run:
        if row.case != case:
            place, case = place + 0.8, row.case
            ax.text(1.01, place, f"{row.case}: {row.sizes}", transform=ax.get_yaxis_transform(),
                    va="center", fontsize=7)  # fmt: skip
        ax.barh(place, row.gradient_ms or 0.0, height=0.8, color=COLORS[row.side])
        places.append(place)
        labels.append(f"{row.contestant} *" if row.chosen else row.contestant)
        place += 1.0
    if run:
        ax.set_xscale("log")
    ax.set_yticks(places, labels, fontsize=7)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.grid(axis="x", linewidth=0.5, alpha=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("forward and backward, ms (* what auto picks)")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    for side, color in COLORS.items():
        ax.barh(0, 0, color=color, label=SIDES[side])
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return figure
