"""The figures of the report: pure functions from data to a matplotlib figure."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dsfjax.report.comparison import Entry, band
from dsfjax.report.style import (
    DASHED,
    DIVERGING,
    DOTTED,
    HATCHES,
    INK,
    LINES,
    MARK,
    MUTED,
    PAPER,
    SEQUENTIAL,
    SETTINGS,
    colors,
    turn,
)

# The |λ| axis: everything above MODULUS_TOP is counted in the last bin, marked as such.
MODULUS_TOP = 1.5
MODULUS_BINS = np.linspace(0.0, MODULUS_TOP, 31)
# Entries of Φ below this fraction of the largest are drawn like it.
KERNEL_FLOOR = 1e-3


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
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
        figure, ax = _axes(5.1, 4.2)
        for entry in entries:
            steps, mean, low, high = band(entry.curves)
            hue = color[entry.mixer]
            line = LINES[turn(mixers, entry.mixer)]
            ax.fill_between(steps, low, high, color=hue, alpha=0.16, linewidth=0)
            ax.plot(steps, mean, color=hue, linestyle=line, label=entry.mixer)
            # Where a line ends: programs whose members have all solved the task stop early.
            ax.plot(steps[-1:], mean[-1:], "o", color=hue, markersize=4.5, clip_on=False)
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
        figure, ax = _axes(5.1, 0.9 + 0.425 * len(entries))
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
            ax.plot(
                entry.accuracies,
                [row] * len(entry.accuracies),
                "o",
                color=PAPER,
                markeredgecolor=INK,
                markeredgewidth=0.9,
                markersize=4,
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


def modulus_fractions(moduli: Float[np.ndarray, " values"]) -> Float[np.ndarray, " bins"]:
    """Fraction of eigenvalue moduli in each bin; the last one also takes what lies above it.

    Args:
        moduli: Finite values of |λ|, at least one.

    Returns:
        One fraction per bin of ``MODULUS_BINS``; they sum to 1.
    """
    clipped = np.minimum(moduli, MODULUS_TOP)
    return np.histogram(clipped, MODULUS_BINS)[0] / moduli.size


def modulus_histogram(mixer: str, moduli: Float[np.ndarray, " values"], color: str) -> Figure:
    """Histogram of |λ| with a line at 1: left of it the state fades, right of it it grows.

    Args:
        mixer: Title of the panel.
        moduli: Finite values of |λ|, at least one.
        color: Colour of the bars.

    Returns:
        The figure, one bar per bin of ``MODULUS_BINS``.
    """
    with matplotlib.rc_context(SETTINGS):
        figure, ax = _axes(3.3, 2.3)
        fractions = modulus_fractions(moduli)
        ax.bar(
            MODULUS_BINS[:-1],
            fractions,
            width=np.diff(MODULUS_BINS),
            align="edge",
            color=color,
            edgecolor=PAPER,
            linewidth=0.4,
        )
        ax.axvline(1.0, color=INK, linewidth=1, linestyle=DASHED)
        ax.set_title(mixer)
        ax.set_xlim(0, MODULUS_TOP)
        ax.set_ylim(0, 1.08 * fractions.max())
        ax.set_xticks([0, 0.5, 1, MODULUS_TOP], ["0", "0.5", "1", f"≥{MODULUS_TOP:g}"])
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.grid(axis="y")
        ax.set_xlabel("|λ|")
    return figure


def kernel_map(
    mixer: str,
    kernel: Float[np.ndarray, "L L"],
    pairs: Sequence[tuple[int, int]],
) -> Figure:
    """Heat map of Φ, relative to its largest entry: row = where y is read, column = which token.

    A Φ without negative entries gets a logarithmic scale over three decades; one with both signs a
    diverging scale, logarithmic on both sides of a linear core. Tokens of the future are blank.

    Args:
        mixer: Title of the panel.
        kernel: Lower triangular, finite, not all zero.
        pairs: ``(row, column)`` to be ringed: query position and position of the value asked for.

    Returns:
        The figure, with one image, one ring per pair and a colour bar.
    """
    size = kernel.shape[0]
    relative = kernel / max(float(np.abs(kernel).max()), np.finfo(float).tiny)
    future = np.triu(np.ones_like(kernel, dtype=bool), k=1)
    signed = bool((relative < -1e-9).any())
    norm: Normalize
    if signed:
        norm, cmap = SymLogNorm(1e-2, vmin=-1, vmax=1), DIVERGING
        shown = relative
        ticks, labels = [-1, 0, 1], ["−1", "0", "1"]
    else:
        norm, cmap = LogNorm(KERNEL_FLOOR, 1), SEQUENTIAL
        shown = np.maximum(relative, KERNEL_FLOOR)
        ticks, labels = [1e-3, 1e-1, 1], ["≤0.001", "0.1", "1"]
    with matplotlib.rc_context(SETTINGS):
        figure, ax = _axes(3.3, 3.35)
        image = ax.imshow(
            np.ma.masked_where(future, shown), cmap=cmap, norm=norm, interpolation="none"
        )
        rows = [query for query, _ in pairs]
        columns = [value for _, value in pairs]
        ax.plot(columns, rows, "o", color="none", markeredgecolor=MARK, markersize=7)
        # Queries on the left edge, the values they ask for on the lower edge.
        edge = 0.035 * size
        ax.plot([-0.5 - edge] * len(rows), rows, ">", color=MARK, markersize=4, clip_on=False)
        bottom = [size - 0.5 + edge] * len(columns)
        ax.plot(columns, bottom, "^", color=MARK, markersize=4, clip_on=False)
        ax.set_title(mixer)
        ax.set_xlabel("token s")
        ax.set_ylabel("output t")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
        ax.tick_params(length=0, pad=11)
        ax.set_xlim(-0.5, size - 0.5)
        ax.set_ylim(size - 0.5, -0.5)
        # The blank triangle of the future has room for the scale.
        bar = figure.colorbar(
            image, cax=ax.inset_axes((0.5, 0.93, 0.46, 0.045)), orientation="horizontal"
        )
        bar.ax.set_xticks(ticks, labels, fontsize=8.5)
        bar.ax.minorticks_off()
        bar.ax.tick_params(length=2, pad=2)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure
