"""How every figure of the report looks: colours, type and Matplotlib settings, in one place.

Figures are drawn in *placeholder* colours and saved as SVG; the placeholders are then replaced by
CSS variables, so that the page decides what ink and grid look like in light and in dark mode.

Matplotlib is imported where something is drawn, because training reads the list of aspects too.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dsfjax.aspects.aspect import Layers, numbered

# Colours no palette below contains: each stands for the CSS variable next to it.
INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}

# Eight hues told apart with every common colour blindness (after Okabe and Ito), their black and
# yellow replaced by a grey and a gold that show on white and on dark paper alike.
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c8c8c",
    "#a89a00",
)
# Reference lines, told apart in the captions.
DASHED, DOTTED, DASH_DOTTED = (0, (4, 3)), (0, (1, 2)), (0, (5, 2, 1, 2))

# Rings and triangles on heat maps: a hue that neither map contains.
MARK = "#e6007e"
# The ninth mixer takes the first hue again, with another line and hatch.
LINES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
HATCHES = ("", "////", "....")
# Lines of the layers of one mixer.
LAYERS = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))

# Stops of colour maps, from low to high.
SEQUENTIAL = ("#11183a", "#1f4e79", "#2a8a8f", "#7cc47a", "#f9f2a0")
DIVERGING = ("#0b4f8a", "#5fa3d0", "#ececec", "#ef9a5d", "#a63c06")

SETTINGS: dict[Any, Any] = {
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "dsfjax",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10.5,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "hatch.linewidth": 0.7,
    "hatch.color": PAPER,
}


def colors(mixers: Sequence[str]) -> dict[str, str]:
    """One colour per mixer, in the order given.

    Args:
        mixers: Distinct names, in the order in which they appear in the report.

    Returns:
        Name to hex colour; the palette starts again after eight names.

    Example:
        >>> colors(["ssd", "s6"])
        {'ssd': '#0072b2', 's6': '#d55e00'}
    """
    return {mixer: PALETTE[i % len(PALETTE)] for i, mixer in enumerate(mixers)}


def turn(mixers: Sequence[str], mixer: str) -> int:
    """How often the palette had been used up before this mixer: 0, 1, 2 (selects line, hatch)."""
    return min(mixers.index(mixer) // len(PALETTE), len(LINES) - 1)


def colormap(stops: Sequence[str]) -> Any:
    """A Matplotlib colour map through these colours."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("dsfjax", list(stops))


def small(width: float, height: float, box: tuple[float, float, float, float]) -> tuple[Any, Any]:
    """An empty figure with one pair of axes at a fixed place.

    All small figures have the same labels in the same places. To find the place of the axes for
    each of them by a layout engine takes as long again as to draw it.

    Args:
        width: In inches.
        height: In inches.
        box: Left, bottom, right and top margin in inches.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    left, bottom, right, top = box
    figure = Figure(figsize=(width, height))
    size = (width - left - right) / width, (height - bottom - top) / height
    return figure, figure.add_axes((left / width, bottom / height, *size))


def panel(
    title: str,
    layers: Layers,
    color: str,
    draw: Callable[[Any, Any, dict[str, Any]], None],
    frame: Callable[[Any], None],
    xlabel: str,
) -> Any:
    """A small figure with a line per layer.

    More layers than there are patterns of lines become darker from the first to the last, and these
    two are named.

    Args:
        title: Its title.
        layers: The layers.
        color: Colour of the lines.
        draw: ``draw(axes, layer, style)`` puts a layer into it.
        frame: ``frame(axes)`` sets limits and ticks.
        xlabel: Label of the x axis.

    Returns:
        The figure.
    """
    import matplotlib
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with matplotlib.rc_context(SETTINGS):
        figure, ax = small(3.3, 2.3, (0.6, 0.5, 0.25, 0.36))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        many, last = len(layers) > len(LAYERS), len(layers) - 1
        for place, (i, layer) in enumerate(numbered(layers)):
            style = {"color": color, "linewidth": 1.6, "label": f"layer {i}"}
            if many:
                style |= {"alpha": 0.25 + 0.75 * place / last}
                style |= {} if place in (0, last) else {"label": None}
            else:
                style |= {"linestyle": LAYERS[(i - 1) % len(LAYERS)]}
            draw(ax, layer, style)
        frame(ax)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.grid(axis="y")
        if len(layers) > 1:
            ax.legend(fontsize=8.5, handlelength=1.9, borderaxespad=0.2)
    return figure


def steps_axis(ax: Any, count: int) -> None:
    """An x axis of ``count`` steps."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(0, max(1, count - 1))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def decades(ax: Any) -> None:
    """A logarithmic y axis with few numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Within a decade or two the powers of ten alone would leave an axis without numbers.
    subs = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=4))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_locator(NullLocator())
