"""How every figure of the report looks: colours, type and matplotlib settings, in one place.

Figures are drawn in *placeholder* colours and saved as SVG; the placeholders are then replaced by
CSS variables, so that the page decides what ink and grid look like in light and in dark mode.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.colors import Colormap, LinearSegmentedColormap

# Colours no palette below contains: each stands for the CSS variable beside it.
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
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))

# Rings and triangles on heat maps: a hue that neither map contains.
MARK = "#e6007e"
# The ninth mixer takes the first hue again, with another line and hatch.
LINES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
HATCHES = ("", "////", "....")
# Lines of the layers of one mixer.
LAYERS = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))

SEQUENTIAL: Colormap = LinearSegmentedColormap.from_list(
    "dsfjax-sequential", ["#11183a", "#1f4e79", "#2a8a8f", "#7cc47a", "#f9f2a0"]
)
DIVERGING: Colormap = LinearSegmentedColormap.from_list(
    "dsfjax-diverging", ["#0b4f8a", "#5fa3d0", "#ececec", "#ef9a5d", "#a63c06"]
)

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
