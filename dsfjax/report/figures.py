"""Figures with all mixers in one: pure functions from data to a matplotlib figure."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dsfjax.aspects.style import (
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
from dsfjax.report.entries import Entry, band


def axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of a size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def learning_curves(entries: Sequence[Entry], chance: float, unbound: float) -> Figure:
    """Accuracy over training steps: mean over seeds as a line, minimum to maximum as a band.

    Args:
        entries: The mixers, in the order of the legend.
        chance: Accuracy of a guess, drawn as a dashed line.
        unbound: Accuracy of naming some value of the sequence, drawn as a dotted line.

    Returns:
        The figure: one line and one band per mixer, and the two baselines.
    """
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 4.2)
        for entry in entries:
            steps, mean, low, high = band(entry.curves)
            hue = color[entry.mixer]
            line = LINES[turn(mixers, entry.mixer)]
            ax.fill_between(steps, low, high, color=hue, alpha=0.16, linewidth=0)
            ax.plot(steps, mean, color=hue, linestyle=line, label=entry.mixer)
            # Where a line ends: programs whose members have all solved the task stop early.
            ax.plot(steps[-1:], mean[-1:], "o", color=hue, markersize=4.5, clip_on=False)
            for curve in entry.curves:
                if curve.status == "diverged":
                    ax.plot(curve.steps[-1:], [0.0], "X", color=hue, markersize=7, clip_on=False)
        ax.axhline(chance, color=MUTED, linewidth=1, linestyle=DASHED)
        ax.axhline(unbound, color=MUTED, linewidth=1, linestyle=DOTTED)
        ax.grid(axis="y")
        ax.set_ylim(0, 1.02)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xlabel("training step")
        ax.set_ylabel("accuracy at queries")
        figure.legend(loc="outside lower center", ncols=2 if len(entries) > 3 else 1)
    return figure


def accuracy_bars(entries: Sequence[Entry], chance: float, unbound: float) -> Figure:
    """Final accuracy: bar and whisker for mean and standard deviation, a dot per seed.

    Args:
        entries: The mixers, from the top bar to the lowest.
        chance: Accuracy of a guess, drawn as a dashed line.
        unbound: Accuracy of naming some value of the sequence, drawn as a dotted line.

    Returns:
        The figure: one bar per mixer, one dot per mixer and seed, and the two baselines.
    """
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 0.9 + 0.425 * len(entries))
        for row, entry in enumerate(entries):
            ax.barh(
                row,
                entry.accuracy_mean,
                height=0.62,
                color=color[entry.mixer],
                hatch=HATCHES[turn(mixers, entry.mixer)],
                xerr=entry.accuracy_std,
                error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 3},
            )
            for curve in entry.curves:
                ax.plot(
                    curve.accuracy[-1:],
                    [row],
                    "X" if curve.status == "diverged" else "o",
                    color=PAPER,
                    markeredgecolor=INK,
                    markeredgewidth=0.9,
                    markersize=7 if curve.status == "diverged" else 4,
                    clip_on=False,
                )
            ax.text(1.04, row, f"{100 * entry.accuracy_mean:.1f}", va="center", clip_on=False)
        ax.axvline(chance, color=INK, linewidth=1, linestyle=DASHED)
        ax.axvline(unbound, color=INK, linewidth=1, linestyle=DOTTED)
        ax.set_yticks(range(len(entries)), mixers)
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xticks(np.linspace(0, 1, 5))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("accuracy at queries")
    return figure


def rates(entries: Sequence[Entry]) -> Figure:
    """Final accuracy against the learning rate: a mark per member, a line through the means.

    Args:
        entries: The mixers, in the order of the legend.

    Returns:
        The figure; a member that diverged is a cross at 0.
    """
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    tried = sorted({outcome.point.learning_rate for entry in entries for outcome in entry.outcomes})
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 4.2)
        for entry in entries:
            hue = color[entry.mixer]
            own = {
                x: [o.accuracy for o in entry.outcomes if o.point.learning_rate == rate]
                for x, rate in enumerate(tried)
            }
            means = {x: float(np.mean(values)) for x, values in own.items() if values}
            line = LINES[turn(mixers, entry.mixer)]
            ax.plot(*zip(*means.items(), strict=True), color=hue, linestyle=line, label=entry.mixer)
            for outcome in entry.outcomes:
                diverged = outcome.status == "diverged"
                ax.plot(
                    [tried.index(outcome.point.learning_rate)],
                    [outcome.accuracy],
                    "X" if diverged else "o",
                    color=hue,
                    markersize=7 if diverged else 4,
                    clip_on=False,
                )
        ax.grid(axis="y")
        ax.set_ylim(0, 1.02)
        # Side by side rather than to scale, as no scale fits every grid.
        shown = range(0, len(tried), -(-len(tried) // 6))
        ax.set_xticks(shown, [f"{tried[x]:.2g}" for x in shown])
        ax.set_xlim(-0.4, len(tried) - 0.6)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xlabel("learning rate")
        ax.set_ylabel("final accuracy at queries")
        figure.legend(loc="outside lower center", ncols=2 if len(entries) > 3 else 1)
    return figure


def trade_off(entries: Sequence[Entry]) -> Figure:
    """Final accuracy against the size of the state, a mark per mixer with its name.

    Args:
        entries: The mixers.

    Returns:
        The figure, with whiskers of one standard deviation.
    """
    mixers = [entry.mixer for entry in entries]
    color = colors(mixers)
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(5.1, 4.2)
        for i, entry in enumerate(entries):
            ax.errorbar(
                [entry.state_size],
                [entry.accuracy_mean],
                # No accuracy lies outside of 0 to 100 %.
                yerr=[
                    [min(entry.accuracy_std, entry.accuracy_mean)],
                    [min(entry.accuracy_std, 1 - entry.accuracy_mean)],
                ],
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
        ax.set_ylim(0, 1.02)
        ax.margins(x=0.12)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xlabel("state size N")
        ax.set_ylabel("final accuracy at queries")
        figure.legend(loc="outside lower center", ncols=2 if len(entries) > 3 else 1)
    return figure
