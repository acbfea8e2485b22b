"""Figures with all mixers in one: pure functions from data to a matplotlib figure."""

import math
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dsfjax.aspects.style import (
    DASH_DOTTED,
    DASHED,
    DOTTED,
    HATCHES,
    INK,
    LINES,
    MUTED,
    PAPER,
    SETTINGS,
    colors,
    turn,
)
from dsfjax.report.entries import Comparison, band
from dsfjax.tasks import ACCURACY, Metric


def axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of a size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def learning_curves(comparison: Comparison) -> Figure:
    """The score over training steps: mean over seeds as a line, minimum to maximum as a band.

    Args:
        comparison: The mixers, in the order of the legend, and their baselines.

    Returns:
        The figure: one line and one band per mixer, and the two baselines, a guess dashed and the
        trivial answer dotted.
    """
    entries, metric = comparison.entries, comparison.metric
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 4.2)
        for entry in entries:
            steps, *values = band(entry.curves)
            mean, low, high = (np.where(np.isfinite(x), x, np.nan) for x in values)
            hue = color[entry.mixer]
            line = LINES[turn(mixers, entry.mixer)]
            ax.fill_between(steps, low, high, color=hue, alpha=0.16, linewidth=0)
            ax.plot(steps, mean, color=hue, linestyle=line, label=entry.mixer)
            # Where a line ends: programs whose members have all solved the task stop early.
            ax.plot(steps[-1:], mean[-1:], "o", color=hue, markersize=4.5, clip_on=False)
            for curve in entry.curves:
                if curve.status == "diverged":
                    _lost(ax, "y", metric, float(curve.steps[-1]), color=hue)
        for level, style in _baselines(comparison):
            ax.axhline(level, color=MUTED, linewidth=1, linestyle=style)
        ax.grid(axis="y")
        _scale(ax, "y", metric)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel("training step")
        ax.set_ylabel(_named(metric))
        figure.legend(loc="outside lower center", ncols=2 if len(entries) > 3 else 1)
    return figure


def _named(metric: Metric) -> str:
    return f"{metric.called} at queries" if metric == ACCURACY else metric.heading


def _baselines(comparison: Comparison) -> list[tuple[float, Any]]:
    """The values at which lines are drawn, with their styles."""
    known: list[tuple[float | None, Any]]
    known = [(comparison.chance, DASHED), (comparison.unbound, DOTTED)]
    if comparison.linear is not None and not comparison.metric.percent:
        known.append((comparison.linear.score, DASH_DOTTED))
    return [(x, style) for x, style in known if x is not None and math.isfinite(x)]


def _scale(ax: Axes, which: Literal["x", "y"], metric: Metric, most: float = 1.02) -> None:
    """The axis of the score: all of it for a share, else what the data need."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    if metric.percent:
        axis.set_major_formatter(PercentFormatter(1.0))
        (ax.set_xlim if which == "x" else ax.set_ylim)(0, most)
    else:
        (ax.set_xmargin if which == "x" else ax.set_ymargin)(0.08)


def _lost(ax: Axes, which: Literal["x", "y"], metric: Metric, at: int | float, **look: Any) -> None:
    """A cross for a member that diverged, at the worse end of the axis of the score."""
    end = 0.0 if metric.higher_is_better else 1.0
    mark = {"markersize": 7, "clip_on": False, "linestyle": "", "marker": "X"} | look
    if which == "x":
        ax.plot([end], [at], transform=ax.get_yaxis_transform(), **mark)
    else:
        ax.plot([at], [end], transform=ax.get_xaxis_transform(), **mark)


def score_bars(comparison: Comparison) -> Figure:
    """Final score: bar and whisker for mean and standard deviation, a dot per seed.

    Args:
        comparison: The mixers, from the top bar to the lowest, and their baselines.

    Returns:
        The figure: one bar per mixer, one dot per mixer and seed, and the two baselines, a guess
        dashed and the trivial answer dotted.
    """
    entries, metric = comparison.entries, comparison.metric
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 0.9 + 0.425 * len(entries))
        for row, entry in enumerate(entries):
            ax.barh(
                row,
                entry.score_mean if math.isfinite(entry.score_mean) else 0.0,
                height=0.62,
                color=color[entry.mixer],
                hatch=HATCHES[turn(mixers, entry.mixer)],
                xerr=entry.score_std,
                error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 3},
            )
            ring = {"color": PAPER, "markeredgecolor": INK, "markeredgewidth": 0.9}
            for curve in entry.curves:
                if curve.status == "diverged":
                    _lost(ax, "x", metric, row, **ring)
                else:
                    ax.plot(curve.score[-1:], [row], "o", markersize=4, clip_on=False, **ring)
            end = {"transform": ax.get_yaxis_transform(), "va": "center", "clip_on": False}
            ax.text(1.04, row, metric.plain(entry.score_mean), **end)
        for level, style in _baselines(comparison):
            ax.axvline(level, color=INK, linewidth=1, linestyle=style)
        ax.set_yticks(range(len(entries)), mixers)
        ax.invert_yaxis()
        _scale(ax, "x", metric, most=1.0)
        if metric.percent:
            ax.set_xticks(np.linspace(0, 1, 5))
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(_named(metric))
    return figure


def rates(comparison: Comparison) -> Figure:
    """Final score against the learning rate: a mark per member, a line through the means.

    Args:
        comparison: The mixers, in the order of the legend.

    Returns:
        The figure; a member that diverged is a cross at the worse end of the axis.
    """
    entries, metric = comparison.entries, comparison.metric
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    tried = sorted({outcome.point.learning_rate for entry in entries for outcome in entry.outcomes})
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 4.2)
        for entry in entries:
            hue = color[entry.mixer]
            own = {
                x: [o.score for o in entry.outcomes if o.point.learning_rate == rate]
                for x, rate in enumerate(tried)
            }
            # A mean with an infinite value is not a point of the line.
            means = {x: float(np.mean(values)) for x, values in own.items() if values}
            means = {x: mean if math.isfinite(mean) else math.nan for x, mean in means.items()}
            line = LINES[turn(mixers, entry.mixer)]
            ax.plot(*zip(*means.items(), strict=True), color=hue, linestyle=line, label=entry.mixer)
            for outcome in entry.outcomes:
                x = tried.index(outcome.point.learning_rate)
                if outcome.status == "diverged":
                    _lost(ax, "y", metric, x, color=hue)
                else:
                    ax.plot([x], [outcome.score], "o", color=hue, markersize=4, clip_on=False)
        ax.grid(axis="y")
        _scale(ax, "y", metric)
        # Side by side rather than to scale, as no scale fits every grid.
        shown = range(0, len(tried), -(-len(tried) // 6))
        ax.set_xticks(shown, [f"{tried[x]:.2g}" for x in shown])
        ax.set_xlim(-0.4, len(tried) - 0.6)
        ax.set_xlabel("learning rate")
        ax.set_ylabel(f"final {_named(metric)}")
        figure.legend(loc="outside lower center", ncols=2 if len(entries) > 3 else 1)
    return figure


def trade_off(comparison: Comparison) -> Figure:
    """Final score against the size of the state, a mark per mixer with its name.

    Args:
        comparison: The mixers.

    Returns:
        The figure, with whiskers of one standard deviation; a mixer without a finite mean has no
        mark.
    """
    entries, metric = comparison.entries, comparison.metric
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 4.2)
        for i, entry in enumerate(entries):
            mean, std = entry.score_mean, entry.score_std
            if not math.isfinite(mean):
                continue
            ax.errorbar(
                [entry.state_size],
                [mean],
                # No share lies outside of 0 to 100 %.
                yerr=[[min(std, mean)], [min(std, 1 - mean)]] if metric.percent else std,
                fmt="s" if entry.grows else "o",
                color=color[entry.mixer],
                markersize=max(5, 13 - 2 * i),  # so that those behind can be seen
                elinewidth=1.2,
                capsize=3,
                label=entry.mixer,
                clip_on=False,
            )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))
        ax.minorticks_off()
        ax.grid(axis="y")
        _scale(ax, "y", metric)
        ax.margins(x=0.12)
        ax.set_xlabel("state size N")
        ax.set_ylabel(f"final {_named(metric)}")
        figure.legend(loc="outside lower center", ncols=2 if len(entries) > 3 else 1)
    return figure
