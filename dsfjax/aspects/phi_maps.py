"""Who reads what: the kernel Φ of one sequence, the attention map of any mixer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.analysis.phi import (
    each_row,
    has_channels,
    map_rows,
    of_head,
    on_values,
    token_rows,
)
from dsfjax.aspects.aspect import MODEL, Asked, Aspect, Layers, Panel
from dsfjax.aspects.style import (
    DIVERGING,
    MARK,
    SEQUENTIAL,
    SETTINGS,
    colormap,
    small,
)
from dsfjax.core import KernelSystem, System

# Rows of a shown Φ at most; those of longer sequences are averaged.
MOST_ROWS = 256
# Channels of a head at most, evenly spaced, where Φ differs between them.
MOST_CHANNELS = 64
# Tokens on an axis at most; of longer texts every few are named.
MOST_LABELS = 32
# Entries of Φ below this fraction of the largest are drawn like it.
FLOOR = 1e-3


class Measured(NamedTuple):
    """Φ of one layer on one sequence.

    Attributes:
        kernel: Φ of head 0; where it differs between channels, the root mean square over them, or
            over `MOST_CHANNELS` of them.
        shown: Number of channels behind it: 1 where they share one Φ.
        num_channels: Number of channels that there are.
        pairs: ``(query, source)`` of everything that is asked for.
    """

    kernel: Float[Array, "L L"]
    shown: Int[Array, ""]
    num_channels: Int[Array, ""]
    pairs: Int[Array, "q 2"]


@dataclass(frozen=True)
class PhiMap:
    """Φ of one layer on one sequence, to be shown.

    Attributes:
        kernel: As `Measured` has it; longer sequences are averaged over cells of steps.
        shown: As above.
        num_channels: As above.
        pairs: ``(query, source)`` positions: at ``query`` the model must name the token at
            ``source``.
        cell: Steps of the sequence per row and column.
        tokens: The tokens in words, for the axes; empty where there are none.
    """

    kernel: Float[np.ndarray, "R R"]
    shown: int
    num_channels: int
    pairs: tuple[tuple[int, int], ...]
    cell: int = 1
    tokens: tuple[str, ...] = ()


def measure(system: System | KernelSystem, u: Array, dy: Array, asked: Asked) -> Measured:
    """Φ of head 0, row after row, so that there are no more than L × L numbers at once.

    Where B or C is dense, the mean is over all pairs of output and token channels.
    """
    del dy
    kernel, shown, every = _kernel(system, u.shape[0])
    queries, sources = asked
    pairs = jnp.zeros((0, 2), queries.dtype)
    if sources is not None:
        pairs = jnp.stack([queries, sources.astype(queries.dtype)], axis=1)
    return Measured(kernel, jnp.asarray(shown), jnp.asarray(every), pairs)


def _kernel(system: System | KernelSystem, length: int) -> tuple[Array, int, int]:
    """Φ (L, L), the number of channels that it is the mean of, and how many there are."""

    def mean(row: Array) -> Array:
        """Of a row (…, channels), the root mean square."""
        return row[..., 0] if row.shape[-1] == 1 else jnp.sqrt(jnp.mean(row**2, axis=-1))

    if has_finite_state(system) and not has_channels(system):
        full = token_rows(system, length)
        every = system.output_width * system.token_width

        def of_entries(t: Array) -> Array:
            return mean(jnp.moveaxis(full(t), 1, 0).reshape(length, -1))

        return map_rows(of_entries, length, 1), every, every
    shown = every = 1
    if has_finite_state(system):
        every = on_values("report", system).state_shape[2]
        shown = min(every, MOST_CHANNELS)
        channels = np.linspace(0, every - 1, shown).round().astype(int)
        system = of_head("report", system, 0, jnp.asarray(channels))
    kernel = each_row("report", system, length, lambda _, row: mean(row[:, 0]))
    return kernel, shown, every


def summarise(found: Measured) -> PhiMap:
    """Means over cells of steps, so that the figure has at most `MOST_ROWS` rows."""
    kernel = np.asarray(found.kernel, float)
    cell = -(-len(kernel) // MOST_ROWS)
    starts = range(0, len(kernel), cell)
    sums = np.add.reduceat(np.add.reduceat(kernel, starts, axis=0), starts, axis=1)
    sizes = np.diff([*starts, len(kernel)])
    pairs = tuple((int(t), int(s)) for t, s in found.pairs)
    shown, every = int(found.shown), int(found.num_channels)
    return PhiMap(sums / np.outer(sizes, sizes), shown, every, pairs, cell)


def draw(title: str, layers: Layers, color: str) -> Any:
    """The heat map of one layer."""
    del color
    (layer,) = layers
    return kernel_map(title, layer.kernel, layer.pairs, layer.cell, layer.tokens)


def kernel_map(
    title: str,
    kernel: Float[np.ndarray, "L L"],
    pairs: Sequence[tuple[int, int]],
    cell: int = 1,
    tokens: Sequence[str] = (),
) -> Any:
    """Heat map of Φ, relative to its largest entry: row = where y is read, column = which token.

    A Φ without negative entries gets a logarithmic scale over three decades; one with both signs a
    diverging scale, logarithmic on both sides of a linear core. Tokens of the future are blank.

    Args:
        title: Title of the panel.
        kernel: Lower triangular; what is not finite stays blank.
        pairs: ``(query, value)`` to be ringed: position of a query and of the value asked for.
        cell: Steps per row and column.
        tokens: Labels of the axes, one per step; positions where there are none.

    Returns:
        The figure, with one image, one ring per pair and a colour bar.
    """
    import matplotlib
    from matplotlib.colors import LogNorm, SymLogNorm
    from matplotlib.ticker import MaxNLocator

    size = kernel.shape[0]
    blank = np.triu(np.ones_like(kernel, dtype=bool), k=1) | ~np.isfinite(kernel)
    largest = float(np.abs(np.where(blank, 0, kernel)).max())
    relative = np.where(blank, 0, kernel) / max(largest, np.finfo(float).tiny)
    signed = bool((relative < -1e-9).any())
    if signed:
        norm, cmap = SymLogNorm(1e-2, vmin=-1, vmax=1), colormap(DIVERGING)
        shown = relative
        ticks, labels = [-1, 0, 1], ["−1", "0", "1"]
    else:
        norm, cmap = LogNorm(FLOOR, 1), colormap(SEQUENTIAL)
        shown = np.maximum(relative, FLOOR)
        ticks, labels = [1e-3, 1e-1, 1], ["≤0.001", "0.1", "1"]
    with matplotlib.rc_context(SETTINGS):
        figure, ax = small(3.3, 3.35, (0.7, 0.6, 0.15, 0.36))
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
        if tokens:
            label_tokens(ax, tokens, cell)
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
        bar.outline.set_visible(False)
    return figure


def label_tokens(ax: Any, tokens: Sequence[str], cell: int, *, rows: bool = True) -> None:
    """Tokens on both axes, or on that of the columns alone, so many that they can be read."""
    size = -(-len(tokens) // cell)
    every = -(-size // MOST_LABELS)
    places = range(0, size, every)
    words = [tokens[place * cell] for place in places]
    fontsize = 7 if len(words) > 16 else 8.5
    ax.set_xticks(places, words, rotation=90, fontsize=fontsize)
    if rows:
        ax.set_yticks(places, words, fontsize=fontsize)
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        label.set_parse_math(False)  # a token may hold dollars
    ax.set_xlabel("")
    ax.set_ylabel("")


def caption(layers: Layers) -> str:
    """What Φ is where the channels of a head differ."""
    (layer,) = layers
    if layer.shown < layer.num_channels:
        return (
            f"Root mean square over {layer.shown} of the {layer.num_channels:,} channels of the "
            "head."
        )
    if layer.shown > 1:
        return f"Root mean square over the {layer.shown} channels of the head."
    return "One Φ for all channels of the head."


def rows(layer: PhiMap) -> Iterator[dict[str, Any]]:
    """A row per entry t ≥ s, as it is (not relative to the largest)."""
    pairs = {(t // layer.cell, s // layer.cell) for t, s in layer.pairs}
    for t, row in enumerate(layer.kernel.tolist()):  # faster to read than an array
        for s, phi in enumerate(row[: t + 1]):
            yield {
                "t": t * layer.cell,
                "s": s * layer.cell,
                "phi": phi,
                "query_meets_value": int((t, s) in pairs),
            }


FILE = f"phi_{MODEL}"

PHI_MAPS = Aspect(
    name="phi",
    title="Who reads what: Φ of one example",
    how=(
        "How to read: Φ_{t,s} is the weight with which token s enters output t, the attention "
        "map of any mixer. Shown for head 0 of every layer on the same held-out example, "
        "relative to the largest entry. Triangles mark the query positions (left) and the "
        "positions of the values they ask for (below); a ring marks where a query meets its "
        "value. A mixer that recalls by looking up shows a strong entry inside each ring; one "
        "that carries everything along shows columns or smooth decay. Scales with both signs "
        "are blue for negative, orange for positive weights."
    ),
    measure=measure,
    asks=True,
    first_only=True,
    summarise=summarise,
    panels=(Panel("phi", "Φ", draw, FILE, caption, by_layer=True),),
    files={FILE: rows},
)
