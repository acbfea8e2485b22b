"""How much of the state is used: Hankel singular values of the middle step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsfjax import analysis
from dsfjax._util.words import count, listing, percent
from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.aspects.aspect import Aspect, Column, Layers, Panel
from dsfjax.aspects.style import decades, panel
from dsfjax.core import KernelSystem, System

# Hankel singular values below this fraction of the largest are drawn like it.
FLOOR = 1e-4
MOST_POINTS = 400


class Measured(NamedTuple):
    """State use of one layer on one sequence.

    Attributes:
        states: N; 0 where there is no finite state, and then the others are None.
        use: Hankel singular values of the middle step, descending.
        dimension: How many of them carry 99 % of the energy.
    """

    states: Int[Array, ""]
    use: Float[Array, " N"] | None
    dimension: analysis.EffectiveDimension | None


@dataclass(frozen=True)
class StateUse:
    """How much of the state of one layer is used; all None where there is no finite state.

    Attributes:
        use: Hankel singular values of the middle step, (N,) descending, the root mean square over
            sequences.
        dimension: Directions of the state that carry 99 % of their energy.
        participation: (Σ σ²)² / Σ σ⁴, another count that needs no threshold.
    """

    use: Float[np.ndarray, " N"] | None
    dimension: float | None
    participation: float | None


def measure(system: System | KernelSystem, u: Array, dy: Array) -> Measured:
    """Hankel singular values of the system of one layer on one sequence."""
    del dy
    if not has_finite_state(system):
        return Measured(jnp.asarray(0), None, None)
    use = analysis.state_use(system, length=u.shape[0])
    return Measured(jnp.asarray(use.size), use, analysis.effective_dimension(use**2))


def summarise(found: Measured) -> StateUse:
    """Means over sequences."""
    if found.use is None or found.dimension is None:
        return StateUse(None, None, None)
    return StateUse(
        np.sqrt(np.mean(np.square(found.use, dtype=float), axis=0)),
        float(np.mean(found.dimension.rank)),
        float(np.mean(found.dimension.participation)),
    )


def draw(mixer: str, layers: Layers, color: str) -> Any:
    """Hankel singular values, relative to the largest, against their place in the state."""

    def draw(ax: Any, layer: StateUse, style: dict[str, Any]) -> None:
        values = np.asarray(layer.use)
        index = np.linspace(0, values.size - 1, min(values.size, MOST_POINTS)).astype(int)
        relative = values[index] / max(float(values[0]), np.finfo(float).tiny)
        ax.plot((index + 1) / values.size, np.maximum(relative, FLOOR), **style)

    def frame(ax: Any) -> None:
        decades(ax)
        ax.set_ylim(FLOOR, 1.3)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])

    return panel(mixer, layers, color, draw, frame, "share of the N directions")


def caption(layers: Layers) -> str:
    """Directions in use of each layer."""
    parts = [f"{count(layer.dimension)} of {count(layer.use.size)}" for layer in layers]
    return f"99 % of the energy in {', '.join(parts)} directions."


def rows(layer: StateUse) -> Iterator[dict[str, Any]]:
    """A row per Hankel singular value."""
    for i, value in enumerate([] if layer.use is None else layer.use.tolist()):
        yield {"index": i, "hankel_singular_value": value}


def is_finite(layers: Layers) -> bool:
    """Whether all layers have a finite state."""
    return all(layer.use is not None for layer in layers)


def dimension(layers: Layers) -> float | None:
    """Directions in use, all layers; None without a finite state."""
    return float(sum(layer.dimension for layer in layers)) if is_finite(layers) else None


def share_used(layers: Layers) -> float | None:
    """Directions in use over N."""
    used = dimension(layers)
    return None if used is None else used / sum(layer.use.size for layer in layers)


def find(models: Mapping[str, Layers]) -> str:
    """Which model uses most of its state, and which least."""
    shares = {name: share_used(layers) for name, layers in models.items()}
    found = {name: share for name, share in shares.items() if share is not None}
    without = [name for name in models if name not in found]
    text = ""
    if found:
        most, least = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
        text = f"99 % of what passes through the state uses {count(dimension(models[most]))} "
        text += f"directions in {most}, {percent(found[most])} of its N"
        if most != least:
            text += f", and {count(dimension(models[least]))} in {least}, {percent(found[least])}"
        text += ". "
    if without:
        text += f"{listing(without)} {'keeps' if len(without) == 1 else 'keep'} the past itself: "
        text += "there is no finite state to measure."
    return text.strip()


STATE_USE = Aspect(
    name="state_use",
    title="How much of the state is used",
    how=(
        "How to read: Hankel singular values of the middle step, largest first, relative to "
        "the largest: how much goes from the past to the future through each direction of the "
        "state. A line that falls early leaves the rest of the state unused, and a smaller "
        "state would do; one that stays up fills it."
    ),
    measure=measure,
    summarise=summarise,
    panels=(Panel("use", "Hankel singular values", draw, "state_use", caption, applies=is_finite),),
    files={"state_use": rows},
    numbers={
        "states": lambda layer: None if layer.use is None else layer.use.size,
        "dimension": lambda layer: layer.dimension,
        "participation": lambda layer: layer.participation,
    },
    columns={
        "directions in use": Column(
            dimension,
            count,
            key="dimension",
            called="the directions in use",
            about=("Directions in use: those that carry 99 % of the energy from past to future."),
        ),
        "of N": Column(share_used, percent, key="share_used", first="ascending"),
    },
    find=find,
    verdict="State",
    probes={
        "dimension": lambda found: None if found.dimension is None else found.dimension.rank.mean()
    },
)
