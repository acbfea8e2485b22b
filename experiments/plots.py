"""The look of all figures, and scores as lines and as bars.

A mean has a whisker of one standard deviation; the best score of any learning rate and seed
is a thin marker of the same colour. Series differ in colour, marker and line, so that none is told
by colour alone.
"""

import contextlib
import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from dsfjax.aspects.style import DOTTED, HATCHES, LINES, PALETTE, SETTINGS, colors
from dsfjax.report.longer import SAYING
from dsfjax.tasks import ACCURACY
from experiments.points import RECALL, best, extreme, mean, metric, trivial, where

Points = Sequence[Mapping[str, Any]]
MARKERS = "osD^vPX*"
TASK = RECALL
"""What tells the panels apart, by default."""
_SIZES = {"where": "{}", "seq_len": "L = {}", "num_kv_pairs": "{} pairs", "d_model": "d = {}"}

# The report leaves its ink to the page; a figure of its own has it on white paper.
_ON_PAPER: dict[Any, Any] = SETTINGS | {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": "black",
    "axes.labelcolor": "black",
    "axes.titlecolor": "black",
    "axes.edgecolor": "#555555",
    "grid.color": "#dddddd",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "hatch.color": "white",
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw on white paper within."""
    with matplotlib.rc_context(_ON_PAPER):
        yield


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file, the same for the same figure.

    Args:
        figure: The figure.
        kind: "png" or "pdf".

    Returns:
        The content.
    """
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def caption(figure: Figure, text: str) -> None:
    """Say under a figure how its numbers were made.

    Args:
        figure: The figure.
        text: What to say.
    """
    width = int(13 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(text, width), fontsize=8, color="#555555", x=0.01, ha="left")


def series_of(points: Points) -> list[str]:
    """The names of the series, in the order of the points."""
    return list(dict.fromkeys(point["series"] for point in points))


def over(points: Points, axis: str, label: str, by: tuple[str, ...] = TASK) -> Figure:
    """The score over a size, a panel per task and a line per series.

    Args:
        points: The points.
        axis: The size, such as "d_model"; drawn in octaves.
        label: What to call it.
        by: The sizes that tell panels apart.

    Returns:
        The figure.
    """

    def draw(ax: Axes, own: Points) -> None:
        sizes = sorted({point[axis] for point in own})
        names = series_of(points)
        for i, (name, hue) in enumerate(colors(names).items()):
            mine = sorted((p for p in own if p["series"] == name), key=lambda p: p[axis])
            if not mine:
                continue
            # Side by side, so that whiskers at the same size do not hide each other.
            x = [p[axis] * 2 ** (0.06 * (i - (len(names) - 1) / 2)) for p in mine]
            look: dict[str, Any] = {"color": hue, "marker": MARKERS[i % len(MARKERS)]}
            ax.errorbar(
                x,
                [_drawn(mean(p)) for p in mine],
                [p["std"] or 0.0 for p in mine],
                label=name,
                linestyle=LINES[i % len(LINES)],
                markersize=6,
                capsize=3,
                **look,
            )
            extremes = [_drawn(best(p)) for p in mine]
            ax.plot(x, extremes, linestyle="", markersize=6, fillstyle="none", mew=0.8, **look)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels([str(size) for size in sizes])
        ax.set_xlabel(label)

    return _panels(points, draw, by)


def bars(points: Points, by: tuple[str, ...] = (*TASK, "d_model")) -> Figure:
    """The score of each series, a panel per task and width.

    Args:
        points: The points.
        by: The sizes that tell panels apart.

    Returns:
        The figure.
    """

    def draw(ax: Axes, own: Points) -> None:
        names = series_of(points)
        for i, (name, hue) in enumerate(colors(names).items()):
            for point in (p for p in own if p["series"] == name):
                hatch = HATCHES[i // len(PALETTE)]
                height, std = _drawn(mean(point)), point["std"] or 0.0
                ax.bar(i, height, 0.7, yerr=std, color=hue, hatch=hatch, capsize=3)
                marker = MARKERS[i % len(MARKERS)]
                ax.plot(i, _drawn(best(point)), marker, color="black", fillstyle="none", mew=0.8)
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")

    return _panels(points, draw, by)


def lengths(points: Points) -> Figure:
    """Score over the length of test sequences: a row per start, a panel per task.

    Args:
        points: The points, with ``lengths``.

    Returns:
        The figure: means over seeds with whiskers; grey is the trivial answer, and the dotted line
        is at the training length.
    """
    starts = list(dict.fromkeys(one["start"] for point in points for one in point["lengths"]))
    tasks = list(dict.fromkeys(where(point) for point in points))
    size = (2.9 * len(tasks) + 1.2, 2.4 * len(starts) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(starts), len(tasks), squeeze=False, sharex=True, sharey=True)
    names = series_of(points)
    hues = colors(names)
    for row, start in zip(axes, starts, strict=True):
        row[0].set_ylabel(f"{SAYING[start]}\n{metric(points[0]).called}")
        for ax, task in zip(row, tasks, strict=True):
            for point in (p for p in points if where(p) == task):
                own = [one for one in point["lengths"] if one["start"] == start]
                if not own:
                    continue
                i = names.index(point["series"])
                x = [one["factor"] * 2 ** (0.06 * (i - (len(names) - 1) / 2)) for one in own]
                ax.errorbar(
                    x,
                    [np.mean(one["scores"]) for one in own],
                    [np.std(one["scores"], ddof=1) if one["scores"][1:] else 0.0 for one in own],
                    label=point["series"],
                    color=hues[point["series"]],
                    marker=MARKERS[i % len(MARKERS)],
                    linestyle=LINES[i % len(LINES)],
                    markersize=5,
                    capsize=2,
                )
                ax.plot(
                    [one["factor"] for one in own],
                    [one["trivial"] for one in own],
                    color="#999999",
                    linewidth=1,
                )
            ax.axvline(1, color="#555555", linewidth=1, linestyle=DOTTED)
            ax.set_xscale("log", base=2)
            ax.grid(axis="y")
            if metric(points[0]).percent:
                ax.set_ylim(0, 1.05)
                ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    for ax, task in zip(axes[0], tasks, strict=True):
        ax.set_title(task, fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("length / training length")
    legend(figure)
    return figure


def _drawn(value: float) -> float:
    """Nothing is drawn of what is infinite."""
    return value if math.isfinite(value) else math.nan


def _panels(points: Points, draw: Callable[[Axes, Points], None], by: tuple[str, ...]) -> Figure:
    tasks, judged = tasks_of(points, by), metric(points[0])
    figure = Figure(figsize=(max(6.0, 2.9 * len(tasks) + 1.2), 4.6), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for ax, task in zip(axes, tasks, strict=True):
        own = [point for point in points if task_of(point, by) == task]
        draw(ax, own)
        ax.set_title(title(by, task), fontsize=10)
        ax.grid(axis="y")
        if judged.percent:
            ax.set_ylim(0, 1.05)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            for level in {trivial(point) for point in own}:
                ax.axhline(_drawn(level), color="#555555", linewidth=1, linestyle=DOTTED)
    called = "accuracy at queries" if judged == ACCURACY else judged.heading
    axes[0].set_ylabel(f"{called}\n(± std over seeds; hollow: {extreme(judged)})")
    legend(figure)
    return figure


def legend(figure: Figure) -> None:
    """One legend above the panels, of all that is in one of them."""
    shown = (zip(*ax.get_legend_handles_labels(), strict=True) for ax in figure.axes)
    entries = {label: handle for panel in shown for handle, label in panel}
    if entries:
        columns = min(len(entries), int(figure.get_figwidth() / 2))
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside upper center",
            ncols=columns,
            fontsize=9,
        )


def tasks_of(points: Points, by: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """The different values of some axes, sorted; names in their order."""
    if by == ("where",):
        return list(dict.fromkeys(task_of(point, by) for point in points))
    return sorted({task_of(point, by) for point in points})


def task_of(point: Mapping[str, Any], by: tuple[str, ...]) -> tuple[Any, ...]:
    """The values of some axes of a point, of its own or of its task."""
    own = point if "task" not in point else {**point["task"], **point}
    return tuple({"where": where(point), **own}[axis] for axis in by)


def title(by: tuple[str, ...], task: tuple[Any, ...]) -> str:
    """What to write over a panel: the sizes that tell it from others."""
    forms = [_SIZES.get(axis, f"{axis.replace('_', ' ')} {{}}") for axis in by]
    return ", ".join(form.format(x) for form, x in zip(forms, task, strict=True))
