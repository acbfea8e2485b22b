"""Stability: gradients through time, Lyapunov exponents, and what looks wrong."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsfjax import analysis
from dsfjax._util.words import factor, listing, number, percent
from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.analysis.stability import EXPONENT
from dsfjax.aspects.aspect import Aspect, Column, Layers, Panel, numbered
from dsfjax.aspects.eigenvalues import QUANTILES
from dsfjax.aspects.style import decades, panel, steps_axis
from dsfjax.core import KernelSystem, System

# A smaller share of |λ| > 1 is not worth a word.
SOME = 0.005
# Gradients that shrink below this from the end of a sequence to its start have vanished.
VANISHED = 1e-3
# Quantiles of the Lyapunov exponents, and the largest.
_EXPONENTS = (*QUANTILES, 1.0)


class Measured(NamedTuple):
    """Stability of one layer on one sequence.

    Attributes:
        stability: Signs of trouble, per head.
        exponents: Lyapunov exponents.
        growing: Number of |λ| > 1.
        counted: Number of eigenvalues that are defined.
        gradient: Norm of ∂L/∂h_t at every step; None where there is no finite state.
    """

    stability: analysis.Stability
    exponents: Float[Array, "H k"]
    growing: Float[Array, ""]
    counted: Float[Array, ""]
    gradient: Float[Array, " L"] | None


@dataclass(frozen=True)
class Flow:
    """Stability of one layer.

    Attributes:
        growing: Share of |λ| > 1.
        exponents: Lyapunov exponents at `QUANTILES`, and the largest.
        gradient: Norm of ∂L/∂h_t at every step, root mean square over sequences; None where there
            is no finite state.
        warnings: What looks wrong, in words.
    """

    growing: float
    exponents: Float[np.ndarray, " q1"]
    gradient: Float[np.ndarray, " L"] | None
    warnings: tuple[str, ...]


def measure(system: System | KernelSystem, u: Array, dy: Array) -> Measured:
    """Stability of the system of one layer on one sequence."""
    length = u.shape[0]
    log_modulus = analysis.log_eigenvalues(system, length=length).log_modulus
    gradient = None
    if has_finite_state(system):
        gradient = jnp.linalg.norm(analysis.gradient_norms(system, dy), axis=1)
    return Measured(
        analysis.stability(system, u),
        analysis.lyapunov_exponents(system, length=length),
        jnp.sum(log_modulus > 0).astype(log_modulus.dtype),
        jnp.sum(~jnp.isnan(log_modulus)).astype(log_modulus.dtype),
        gradient,
    )


def summarise(found: Measured) -> Flow:
    """Over all sequences and heads."""
    exponents, gradient = np.asarray(found.exponents).ravel(), found.gradient
    if gradient is not None:
        gradient = np.sqrt(np.mean(np.square(gradient, dtype=float), axis=0))
    return Flow(
        growing=float(np.sum(found.growing) / np.sum(found.counted)),
        exponents=np.quantile(exponents, _EXPONENTS, method="nearest").astype(float),
        gradient=gradient,
        warnings=tuple(analysis.warnings_of(found.stability)),
    )


def quarters(found: Measured) -> Array | None:
    """Mean norm of ∂L/∂h_t in each quarter of the sequence."""
    if found.gradient is None:
        return None
    return jnp.stack([x.mean() for x in jnp.array_split(found.gradient, 4, axis=1)])


def draw(mixer: str, layers: Layers, color: str) -> Any:
    """Norm of the gradient of the loss to the state of every step."""

    def draw(ax: Any, layer: Flow, style: dict[str, Any]) -> None:
        values = np.asarray(layer.gradient)
        ax.plot(np.where(values > 0, values, np.nan), **style)

    def frame(ax: Any) -> None:
        decades(ax)
        steps_axis(ax, np.asarray(layers[0].gradient).size)

    return panel(mixer, layers, color, draw, frame, "step t")


def caption(layers: Layers) -> str:
    """The largest Lyapunov exponent of each layer."""
    exponents = ", ".join(number(float(layer.exponents[-1]), 2) for layer in layers)
    return f"Largest Lyapunov exponents {exponents}."


def rows(layer: Flow) -> Iterator[dict[str, Any]]:
    """A row per step."""
    for i, value in enumerate([] if layer.gradient is None else layer.gradient.tolist()):
        yield {"step": i, "gradient_norm": value}


def growing(layers: Layers) -> float:
    """Largest share of |λ| > 1 of a layer."""
    return max(layer.growing for layer in layers)


def exponent(layers: Layers) -> float:
    """The largest Lyapunov exponent."""
    return max(float(layer.exponents[-1]) for layer in layers)


def gradient_ratio(layers: Layers) -> float | None:
    """‖∂L/∂h_t‖ in the first quarter over the last quarter, in the layer where it is least."""
    ratios = []
    for layer in layers:
        if layer.gradient is None:
            return None
        quarter = max(1, len(layer.gradient) // 4)
        first, last = layer.gradient[:quarter].mean(), layer.gradient[-quarter:].mean()
        ratios.append(float(first / last) if last > 0 else math.inf)
    return min(ratios)


def warnings(layers: Layers) -> Sequence[str]:
    """What looks wrong, layer by layer."""
    return [f"layer {i}, {text}" for i, layer in numbered(layers) for text in layer.warnings]


def find(models: Mapping[str, Layers]) -> str:
    """Where the state grows, and where gradients vanish."""
    shares = {name: growing(layers) for name, layers in models.items()}
    grow = [f"{name} ({percent(share)})" for name, share in shares.items() if share > SOME]
    explode = [name for name, layers in models.items() if exponent(layers) > EXPONENT]
    text = f"At some tokens |λ| exceeds 1 in {listing(grow)}" if grow else "No |λ| exceeds 1"
    text += f"; over a whole sequence the state grows in {listing(explode)}." if explode else "."
    ratios = {name: gradient_ratio(layers) for name, layers in models.items()}
    ratios = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    vanish = [f"{name} ({factor(ratio)})" for name, ratio in ratios.items() if ratio < VANISHED]
    if vanish:
        text += f" Gradients vanish towards the first tokens in {listing(vanish)}."
    elif ratios:
        text += " Gradients reach the first tokens."
    return text


def _exponent(layer: Flow, i: int) -> float:
    return float(layer.exponents[i])


GRADIENT_FLOW = Aspect(
    name="stability",
    title="Stability",
    how=(
        "How to read: the norm of ∂L/∂h, the gradient of the loss to the state, at every step "
        "of a sequence. A line that falls by orders of magnitude towards the left vanishes and "
        "teaches nothing about early tokens; one that rises explodes. Below: what looks wrong, "
        "in words. The Lyapunov exponent is the mean growth of log |h| per step: negative "
        "forgets, positive explodes."
    ),
    measure=measure,
    summarise=summarise,
    panels=(
        Panel(
            "gradients",
            "gradients through time",
            draw,
            "gradients",
            caption,
            applies=lambda layers: all(layer.gradient is not None for layer in layers),
        ),
    ),
    files={"gradients": rows},
    numbers={
        **{f"exponent_{q:g}": partial(_exponent, i=i) for i, q in enumerate(_EXPONENTS)},
        "warnings": lambda layer: " ".join(layer.warnings),
    },
    columns={
        "|λ| > 1": Column(
            growing,
            percent,
            key="growing",
            first="ascending",
            about="|λ| > 1: largest share of a layer.",
        ),
        "Lyapunov": Column(
            exponent,
            lambda value: number(value, 2),
            key="exponent",
            first="ascending",
            about="Lyapunov: largest mean growth of log |h| per step.",
        ),
        "gradient": Column(
            gradient_ratio,
            factor,
            key="gradient_ratio",
            about=(
                "Gradient: norm of ∂L/∂h in the first quarter of the sequence over that in the "
                "last, in the layer where it is least; far below 1 it vanishes."
            ),
        ),
    },
    find=find,
    verdict="Stability",
    warn=warnings,
    probes={"gradient": quarters},
)
