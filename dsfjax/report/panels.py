"""Figures of one mixer each, a line per layer: pure functions from data to a matplotlib figure."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from dsfjax.report.figures import axes
from dsfjax.report.findings import MODULUS_BINS, MODULUS_TOP, Layer
from dsfjax.report.style import DASHED, DIVERGING, INK, LAYERS, MARK, SEQUENTIAL, SETTINGS

# Entries of Φ below this fraction of the largest are drawn like it.
KERNEL_FLOOR = 1e-3
# Hankel singular values below this fraction of the largest are drawn like it.
USE_FLOOR = 1e-4
MOST_POINTS = 400


def moduli(mixer: str, layers: Sequence[Layer], color: str) -> Figure:
    """Shares of |λ|, with a line at 1: left of it the state fades, right of it it grows.

    Args:
        mixer: Title of the panel.
        layers: The layers.
        color: Colour of the outlines.

    Returns:
        The figure, with one outline per layer.
    """

    def draw(ax: Axes, layer: Layer, style: dict[str, Any]) -> None:
        ax.stairs(layer.moduli, MODULUS_BINS, fill=True, color=color, alpha=0.18)
        ax.stairs(layer.moduli, MODULUS_BINS, **style)

    def frame(ax: Axes) -> None:
        ax.axvline(1.0, color=INK, linewidth=1, linestyle=DASHED)
        ax.set_xlim(0, MODULUS_TOP)
        ax.set_ylim(0, 1.08 * max(float(layer.moduli.max()) for layer in layers))
        ax.set_xticks([0, 0.5, 1, MODULUS_TOP], ["0", "0.5", "1", f"≥{MODULUS_TOP:g}"])

    return _panel(mixer, layers, color, draw, frame, "|λ|")


def phases(mixer: str, layers: Sequence[Layer], color: str) -> Figure:
    """Shares of arg λ: at 0 the state only fades or grows, elsewhere it turns.

    Args:
        mixer: Title of the panel.
        layers: The layers.
        color: Colour of the outlines.

    Returns:
        The figure, with one outline per layer.
    """
    edges = np.linspace(-np.pi, np.pi, len(layers[0].phases) + 1)

    def draw(ax: Axes, layer: Layer, style: dict[str, Any]) -> None:
        ax.stairs(layer.phases, edges, **style)

    def frame(ax: Axes) -> None:
        ax.set_xlim(-np.pi, np.pi)
        ax.set_xticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
        ax.set_ylim(bottom=0)

    return _panel(mixer, layers, color, draw, frame, "arg λ")


def survival(mixer: str, layers: Sequence[Layer], color: str) -> Figure:
    """Share of products of |λ| that are still large after τ steps.

    Args:
        mixer: Title of the panel.
        layers: The layers.
        color: Colour of the lines.

    Returns:
        The figure, with one line per layer.
    """

    def draw(ax: Axes, layer: Layer, style: dict[str, Any]) -> None:
        ax.plot(layer.survival, **style)

    def frame(ax: Axes) -> None:
        ax.set_ylim(0, 1.04)
        ax.set_yticks([0, 0.5, 1])
        _steps(ax, len(layers[0].survival))

    return _panel(mixer, layers, color, draw, frame, "steps τ")


def retention(mixer: str, layers: Sequence[Layer], color: str) -> Figure:
    """What is left of a marked token: measured as lines, predicted from eigenvalues as dots.

    Args:
        mixer: Title of the panel.
        layers: The layers.
        color: Colour of the lines.

    Returns:
        The figure, logarithmic, with a line and a row of dots per layer.
    """
    every = max(1, len(layers[0].trace.predicted) // 24)

    def draw(ax: Axes, layer: Layer, style: dict[str, Any]) -> None:
        ax.plot(layer.trace.measured, **style)
        ax.plot(layer.trace.predicted, ".", markersize=3.5, color=INK, markevery=every)

    def frame(ax: Axes) -> None:
        _decades(ax)
        _steps(ax, len(layers[0].trace.predicted))

    return _panel(mixer, layers, color, draw, frame, "steps since the token")


def use(mixer: str, layers: Sequence[Layer], color: str) -> Figure:
    """Hankel singular values, relative to the largest, against their place in the state.

    Args:
        mixer: Title of the panel.
        layers: The layers, of a finite state.
        color: Colour of the lines.

    Returns:
        The figure, logarithmic, with one line per layer.
    """

    def draw(ax: Axes, layer: Layer, style: dict[str, Any]) -> None:
        values = np.asarray(layer.use)
        index = np.linspace(0, values.size - 1, min(values.size, MOST_POINTS)).astype(int)
        relative = values[index] / max(float(values[0]), np.finfo(float).tiny)
        ax.plot((index + 1) / values.size, np.maximum(relative, USE_FLOOR), **style)

    def frame(ax: Axes) -> None:
        _decades(ax)
        ax.set_ylim(USE_FLOOR, 1.3)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])

    return _panel(mixer, layers, color, draw, frame, "share of the N directions")


def gradients(mixer: str, layers: Sequence[Layer], color: str) -> Figure:
    """Norm of the gradient of the loss to the state of every step.

    Args:
        mixer: Title of the panel.
        layers: The layers, of a finite state.
        color: Colour of the lines.

    Returns:
        The figure, logarithmic, with one line per layer.
    """

    def draw(ax: Axes, layer: Layer, style: dict[str, Any]) -> None:
        values = np.asarray(layer.gradient)
        ax.plot(np.where(values > 0, values, np.nan), **style)

    def frame(ax: Axes) -> None:
        _decades(ax)
        _steps(ax, np.asarray(layers[0].gradient).size)

    return _panel(mixer, layers, color, draw, frame, "step t")


def _panel(
    title: str,
    layers: Sequence[Layer],
    color: str,
    draw: Callable[[Axes, Layer, dict[str, Any]], None],
    frame: Callable[[Axes], None],
    xlabel: str,
) -> Figure:
    """A small figure: ``draw`` puts a layer into it, ``frame`` sets limits and ticks."""
    with matplotlib.rc_context(SETTINGS):
        figure, ax = axes(3.3, 2.3)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        for i, layer in enumerate(layers):
            style = {"color": color, "linewidth": 1.6, "linestyle": LAYERS[i % len(LAYERS)]}
            draw(ax, layer, style | {"label": f"layer {i + 1}"})
        frame(ax)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.grid(axis="y")
        if len(layers) > 1:
            ax.legend(fontsize=8.5, handlelength=1.9, borderaxespad=0.2)
    return figure


def _steps(ax: Axes, count: int) -> None:
    ax.set_xlim(0, max(1, count - 1))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _decades(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Within a decade or two the powers of ten alone would leave an axis without numbers.
    subs = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=4))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def kernel_map(
    title: str,
    kernel: Float[np.ndarray, "L L"],
    pairs: Sequence[tuple[int, int]],
    cell: int = 1,
) -> Figure:
    """Heat map of Φ, relative to its largest entry: row = where y is read, column = which token.

    A Φ without negative entries gets a logarithmic scale over three decades; one with both signs a
    diverging scale, logarithmic on both sides of a linear core. Tokens of the future are blank.

    Args:
        title: Title of the panel.
        kernel: Lower triangular; what is not finite stays blank.
        pairs: ``(query, value)`` to be ringed: position of a query and of the value asked for.
        cell: Steps per row and column.

    Returns:
        The figure, with one image, one ring per pair and a colour bar.
    """
    size = kernel.shape[0]
    blank = np.triu(np.ones_like(kernel, dtype=bool), k=1) | ~np.isfinite(kernel)
    largest = float(np.abs(np.where(blank, 0, kernel)).max())
    relative = np.where(blank, 0, kernel) / max(largest, np.finfo(float).tiny)
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
        figure, ax = axes(3.3, 3.35)
        image = ax.imshow(
            np.ma.masked_where(blank, shown), cmap=cmap, norm=norm, interpolation="none"
        )
        rows = [query / cell for query, _ in pairs]
        columns = [value / cell for _, value in pairs]
        ax.plot(columns, rows, "o", color="none", markeredgecolor=MARK, markersize=7)
        # Queries on the left edge, the values they ask for on the lower edge.
        edge = 0.035 * size
        ax.plot([-0.5 - edge] * len(rows), rows, ">", color=MARK, markersize=4, clip_on=False)
        bottom = [size - 0.5 + edge] * len(columns)
        ax.plot(columns, bottom, "^", color=MARK, markersize=4, clip_on=False)
        ax.set_title(title)
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
