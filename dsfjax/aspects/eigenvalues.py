"""What a step keeps: the eigenvalues of the normalised transition over tokens and heads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsfjax import analysis
from dsfjax._util.words import percent
from dsfjax.analysis.spectrum import LOG_MODULUS_EDGES
from dsfjax.aspects.aspect import Aspect, Layers, Panel
from dsfjax.aspects.style import DASHED, INK, panel
from dsfjax.core import KernelSystem, System

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# The |λ| axis: everything above MODULUS_TOP is counted in the last bin, marked as such.
MODULUS_TOP = 1.5
MODULUS_BINS = np.linspace(0.0, MODULUS_TOP, 31)
# The bins that are shown, and finer ones where quantiles lie.
EDGES = tuple(sorted({*np.log(MODULUS_BINS[1:]).tolist(), *LOG_MODULUS_EDGES}))


class _Distribution(NamedTuple):
    spectrum: analysis.Spectrum
    quantiles: Float[Array, " q"]


@dataclass(frozen=True)
class Eigenvalues:
    """The eigenvalues of one layer.

    Attributes:
        moduli: Share of |λ| per bin of `MODULUS_BINS`; the last one takes what lies above, too.
        phases: Share of arg λ per bin of equal width over [−π, π).
        quantiles: |λ| at `QUANTILES`.
        growing: Share of |λ| > 1.
    """

    moduli: Float[np.ndarray, " bins"]
    phases: Float[np.ndarray, " turns"]
    quantiles: Float[np.ndarray, " q"]
    growing: float

    @property
    def is_positive(self) -> bool:
        """Whether all eigenvalues are real and positive."""
        return bool(self.phases[len(self.phases) // 2] > 1 - 1e-6)


def measure(system: System | KernelSystem, u: Array, dy: Array) -> analysis.Spectrum:
    """The distribution of the eigenvalues of one sequence, per head."""
    del dy
    return analysis.spectrum(system, length=u.shape[0], edges=EDGES)


def reduce(found: analysis.Spectrum) -> _Distribution:
    """One distribution over sequences and heads."""
    spectrum = analysis.merge(analysis.merge(found))
    quantiles = [analysis.quantile(spectrum, q, edges=EDGES) for q in QUANTILES]
    return _Distribution(spectrum, jnp.exp(jnp.stack(quantiles)))


def summarise(found: _Distribution) -> Eigenvalues:
    """Shares in the bins that are shown."""
    spectrum = found.spectrum
    below = np.searchsorted(np.exp(EDGES), MODULUS_BINS[1:-1] * (1 - 1e-9)) + 1
    return Eigenvalues(
        moduli=np.add.reduceat(spectrum.modulus, [0, *below]).astype(float),
        phases=np.asarray(spectrum.phase, float),
        quantiles=np.asarray(found.quantiles, float),
        growing=float(spectrum.growing),
    )


def draw_moduli(mixer: str, layers: Layers, color: str) -> Any:
    """Shares of |λ|, with a line at 1: left of it the state fades, right of it it grows."""
    # Areas lie upon one another: those of many layers together should not hide the lines.
    alpha = 0.36 / max(2, len(layers))

    def draw(ax: Any, layer: Eigenvalues, style: dict[str, Any]) -> None:
        ax.stairs(layer.moduli, MODULUS_BINS, fill=True, color=color, alpha=alpha)
        ax.stairs(layer.moduli, MODULUS_BINS, **style)

    def frame(ax: Any) -> None:
        ax.axvline(1.0, color=INK, linewidth=1, linestyle=DASHED)
        ax.set_xlim(0, MODULUS_TOP)
        ax.set_ylim(0, 1.08 * max(float(layer.moduli.max()) for layer in layers))
        ax.set_xticks([0, 0.5, 1, MODULUS_TOP], ["0", "0.5", "1", f"≥{MODULUS_TOP:g}"])

    return panel(mixer, layers, color, draw, frame, "|λ|")


def draw_phases(mixer: str, layers: Layers, color: str) -> Any:
    """Shares of arg λ: at 0 the state only fades or grows, elsewhere it turns."""
    edges = np.linspace(-np.pi, np.pi, len(layers[0].phases) + 1)

    def draw(ax: Any, layer: Eigenvalues, style: dict[str, Any]) -> None:
        ax.stairs(layer.phases, edges, **style)

    def frame(ax: Any) -> None:
        ax.set_xlim(-np.pi, np.pi)
        ax.set_xticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
        ax.set_ylim(bottom=0)

    return panel(mixer, layers, color, draw, frame, "arg λ")


def caption(layers: Layers) -> str:
    """Median and share above 1 of each layer."""
    medians = ", ".join(f"{layer.quantiles[2]:.3f}" for layer in layers)
    above = ", ".join(percent(layer.growing) for layer in layers)
    positive = " All are real and positive." if _all_positive(layers) else ""
    return f"Median {medians}; above 1: {above}.{positive}"


def _all_positive(layers: Layers) -> bool:
    return all(layer.is_positive for layer in layers)


def rows_of_moduli(layer: Eigenvalues) -> Iterator[dict[str, float]]:
    """A row per bin of |λ|; the last one also counts what lies above it."""
    return _bins(MODULUS_BINS, layer.moduli)


def rows_of_phases(layer: Eigenvalues) -> Iterator[dict[str, float]]:
    """A row per bin of arg λ."""
    return _bins(np.linspace(-np.pi, np.pi, layer.phases.size + 1), layer.phases)


def _bins(edges: np.ndarray, shares: np.ndarray) -> Iterator[dict[str, float]]:
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        yield {"low": float(low), "high": float(high), "share": float(share)}


def _quantile(layer: Eigenvalues, i: int) -> float:
    return float(layer.quantiles[i])


EIGENVALUES = Aspect(
    name="eigenvalues",
    title="What a step keeps: eigenvalues",
    how=(
        "How to read: shares of the moduli of the eigenvalues of the normalised transition Λ_t "
        "of the trained models, over tokens and heads, a line per layer. Left of the dashed "
        "line (|λ| < 1) a memory fades, the faster the further left; at 1 it is kept; right of "
        "it, it grows for that step. Where a transition has eigenvalues that are not positive, "
        "their angles follow: away from 0 the state turns as it fades."
    ),
    measure=measure,
    reduce=reduce,
    summarise=summarise,
    panels=(
        Panel("moduli", "|λ|", draw_moduli, "moduli", caption),
        Panel(
            "phases",
            "arg λ",
            draw_phases,
            "phases",
            applies=lambda layers: not _all_positive(layers),
        ),
    ),
    files={"moduli": rows_of_moduli, "phases": rows_of_phases},
    numbers={
        **{f"modulus_{q:g}": partial(_quantile, i=i) for i, q in enumerate(QUANTILES)},
        "growing": lambda layer: layer.growing,
    },
    probes={
        "modulus": lambda found: found.quantiles,
        "growing": lambda found: found.spectrum.growing,
    },
)
