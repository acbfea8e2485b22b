"""Figures with a row or a column of panels for each model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from dsfjax.aspects.style import LINES, SEQUENTIAL, colormap, colors
from experiments.plots import MARKERS, TASK, Points, legend, series_of, task_of, tasks_of, title

PANEL = (*TASK, "d_model")


def heat(points: Points) -> Figure:
    """Accuracy over width and state expansion: a row per task, a column per series.

    Args:
        points: The points; what was not run is grey.

    Returns:
        The figure.
    """
    names, tasks = series_of(points), tasks_of(points, TASK)
    by = ("series", *PANEL, "d_state")
    found: dict[tuple[Any, ...], float] = {task_of(p, by): p["mean"] for p in points}
    widths, states = (sorted({p[axis] for p in points}) for axis in ("d_model", "d_state"))
    size = (1.2 + 1.5 * len(names), 1.6 + 1.35 * len(tasks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(tasks), len(names), squeeze=False, sharex=True, sharey=True)
    for row, task in zip(axes, tasks, strict=True):
        row[0].set_ylabel(f"L={task[0]}, {task[1]} pairs\nwidth d", fontsize=9)
        for ax, name in zip(row, names, strict=True):
            cells = [[found.get((name, *task, d, n), np.nan) for n in states] for d in widths]
            _map(ax, np.array(cells))
            ax.set_xticks(range(len(states)), [str(n) for n in states])
            ax.set_yticks(range(len(widths)), [str(d) for d in widths])
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name.replace("_", "\n", 1), fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("n", fontsize=9)
    image = axes[0][0].images[0]
    figure.colorbar(image, ax=axes, format=PercentFormatter(1.0), label="accuracy")
    return figure


def _map(ax: Axes, cells: np.ndarray) -> None:
    shades = colormap(SEQUENTIAL).with_extremes(bad="#cccccc")
    ax.imshow(cells, cmap=shades, vmin=0, vmax=1, origin="lower", aspect="auto")
    for (i, j), value in np.ndenumerate(cells):
        if not np.isnan(value):
            ink = "black" if value > 0.6 else "white"
            ax.text(j, i, f"{100 * value:.0f}", color=ink, ha="center", va="center", fontsize=9)


def steps(points: Points) -> Figure:
    """Steps to each level of accuracy over the learning rate: a row per series, a panel per task.

    Args:
        points: The points.

    Returns:
        The figure: the mean over those seeds that got there, a hollow marker where not all did,
        nothing where none did.
    """
    names, columns = series_of(points), tasks_of(points, PANEL)
    size = (2.6 * len(columns) + 0.6, 1.5 * len(names) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), len(columns), squeeze=False, sharex=True, sharey=True)
    levels = list(points[0]["members"][0]["steps_to"])
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(f"{name.replace('_', chr(10), 1)}\nsteps", fontsize=8)
        for ax, column in zip(row, columns, strict=True):
            own = [p for p in points if (p["series"], *task_of(p, PANEL)) == (name, *column)]
            members = [member for point in own for member in point["members"]]
            for i, (level, hue) in enumerate(colors(levels).items()):
                look = {"color": hue, "marker": MARKERS[i], "markersize": 5}
                _steps(ax, members, level, look | {"linestyle": LINES[i]})
            _rates(ax, sorted({member["learning_rate"] for member in members}))
            ax.grid(axis="y")
    axes[0][0].set_ylim(bottom=0)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(title(PANEL, column), fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("learning rate", fontsize=9)
    legend(figure)
    return figure


def _rates(ax: Axes, rates: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(rates, [f"{rate:.2g}" for rate in rates])


def _steps(
    ax: Axes, members: Sequence[Mapping[str, Any]], level: str, look: dict[str, Any]
) -> None:
    by_rate: dict[float, list[int | None]] = {}
    for member in members:
        by_rate.setdefault(member["learning_rate"], []).append(member["steps_to"][level])
    known = {
        rate: [step for step in found if step is not None]
        for rate, found in sorted(by_rate.items())
    }
    mean = {rate: float(np.mean(found)) for rate, found in known.items() if found}
    some = {rate: y for rate, y in mean.items() if len(known[rate]) < len(by_rate[rate])}
    ax.plot(list(mean), list(mean.values()), label=f"to {level}", **look)
    hollow = {"linestyle": "", "markerfacecolor": "white", "zorder": 3}
    ax.plot(list(some), list(some.values()), **(look | hollow))
