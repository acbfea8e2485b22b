"""How long a model keeps: horizons from eigenvalues, ages of what is read, and retention.

Retention is measured by taking marked tokens away, those that the task asks for. It is compared
with what the eigenvalues alone predict.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsfjax import analysis
from dsfjax._util.words import factor, number, steps
from dsfjax.aspects.aspect import Asked, Aspect, Column, Layers, Panel
from dsfjax.aspects.style import INK, decades, panel, steps_axis
from dsfjax.core import KernelSystem, System

# A product of eigenvalues below this counts as forgotten.
FADED = 0.1
# Tokens of a sequence that are followed.
NUM_MARKS = 8
# Traces below this are rounding errors, and count as this.
FLOOR = 1e-8
# Half-lives within this factor are called alike.
ALIKE = 1.05


class Measured(NamedTuple):
    """Memory of one layer on one sequence.

    Attributes:
        horizons: Distribution of the horizons, per head.
        half_life: Median over the eigenvalues of each head.
        mean_age: Age in steps of what is read at every step.
        retention: What is left of the marked tokens.
        marks: Their steps.
        asked: The steps at which the task asks for them.
    """

    horizons: analysis.HorizonCounts
    half_life: Float[Array, " H"]
    mean_age: Float[Array, " L"]
    retention: analysis.Retention
    marks: Int[Array, " M"]
    asked: Int[Array, " M"]


class Reduced(NamedTuple):
    """Memory of one layer on all sequences.

    Attributes:
        survival: Share of products of |λ| that are still large after τ steps.
        agreement: Of measured with predicted retention.
        measured: What was measured, with the sequences as leading axis.
    """

    survival: Float[Array, " L"]
    agreement: analysis.Agreement
    measured: Measured


@dataclass(frozen=True)
class Memory:
    """How long one layer keeps what it reads.

    What is left of a marked token after 0, 1, … L − 1 steps is relative to its entry: geometric
    means over tokens, sequences and heads; NaN at ages that no marked token reaches.

    Attributes:
        survival: Share of products of |λ| that are at least `FADED` after τ = 0, 1, … steps.
        half_life: Steps in which the median eigenvalue halves what it keeps.
        mean_age: Mean age in steps of what is read at every step.
        state: What is left of the norm of a trace in the state; None where there is no finite
            state.
        output: What is left of the norm of a trace in the outputs.
        predicted: What the eigenvalues alone say.
        correlation: Of the logarithms of measured (state, else output) and predicted values.
        ratio: Geometric mean of measured over predicted values.
        until_asked: What is left (state, else output) when the task asks for the token.
    """

    survival: Float[np.ndarray, " L"]
    half_life: float
    mean_age: Float[np.ndarray, " L"]
    state: Float[np.ndarray, " L"] | None
    output: Float[np.ndarray, " L"]
    predicted: Float[np.ndarray, " L"]
    correlation: float
    ratio: float
    until_asked: float

    @property
    def traced(self) -> Float[np.ndarray, " L"]:
        """The trace in the state, or in the outputs where there is no finite state."""
        return self.output if self.state is None else self.state

    @property
    def horizon(self) -> float:
        """Steps after which half of the products of |λ| are below `FADED`; ∞ if none in L."""
        faded = np.flatnonzero(self.survival <= 0.5)
        return float(faded[0]) if faded.size else math.inf


def measure(system: System | KernelSystem, u: Array, dy: Array, asked: Asked) -> Measured:
    """Memory of the system of one layer on one sequence.

    The tokens that are followed are those that hold an answer; some of all, if none does, until
    the last question.
    """
    del dy
    length = u.shape[0]
    if asked.sources is None:
        found = np.unique(np.linspace(0, length - 2, NUM_MARKS).astype(int))
        marks = jnp.asarray(found)
        until = jnp.broadcast_to(asked.queries[-1], marks.shape)
    else:
        chosen = np.unique(np.linspace(0, asked.queries.shape[0] - 1, NUM_MARKS).astype(int))
        marks, until = asked.sources[chosen], asked.queries[chosen]
    return Measured(
        analysis.count_horizons(analysis.horizons(system, FADED, length=length)),
        jnp.median(analysis.half_life(system, length=length), axis=1),
        jnp.nanmean(analysis.mean_age(system, length=length), axis=(1, 2)),
        analysis.retention(system, u, marks),
        marks,
        until,
    )


def reduce(found: Measured) -> Reduced:
    """Survival and agreement over sequences and heads."""
    counts = analysis.HorizonCounts(*(x.mean(axis=(0, 1)) for x in found.horizons))
    state, output, predicted = found.retention
    measured = output if state is None else state
    agreement = analysis.agreement(measured, jnp.broadcast_to(predicted, measured.shape))
    return Reduced(analysis.survival(counts), agreement, found)


def summarise(found: Reduced) -> Memory:
    """Means over sequences, and what is left of tokens by age."""
    measured, retention = found.measured, found.measured.retention
    trace = retention.output if retention.state is None else retention.state
    left = np.take_along_axis(
        np.asarray(trace), np.asarray(measured.asked)[:, :, None, None], axis=2
    )
    return Memory(
        survival=np.asarray(found.survival, float),
        half_life=float(np.median(measured.half_life)),
        mean_age=np.asarray(measured.mean_age, float).mean(axis=0),
        state=None if retention.state is None else _by_age(retention.state, measured.marks),
        output=_by_age(retention.output, measured.marks),
        predicted=_by_age(retention.predicted, measured.marks),
        correlation=float(found.agreement.correlation),
        ratio=float(found.agreement.ratio),
        until_asked=float(_geometric_mean(left.reshape(1, -1))[0]),
    )


def _by_age(values: Any, marks: Any) -> Float[np.ndarray, " L"]:
    """Of (batch, M, L, H), the steps being counted from the marked ones."""
    values = np.asarray(values, float)
    length, shifted = values.shape[2], np.full_like(values, np.nan)
    for (i, m), mark in np.ndenumerate(marks):
        shifted[i, m, : length - mark] = values[i, m, mark:]
    return _geometric_mean(np.moveaxis(shifted, 2, 0).reshape(length, -1))


def _geometric_mean(rows: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, " rows"]:
    """Of each row, over what is not NaN; NaN where nothing is."""
    logs = np.log(np.maximum(rows, FLOOR))  # NaN stays NaN
    count = np.sum(~np.isnan(logs), axis=1)
    mean = np.nansum(logs, axis=1) / np.maximum(count, 1)
    return np.where(count > 0, np.exp(mean), np.nan)


def draw_survival(mixer: str, layers: Layers, color: str) -> Any:
    """Share of products of |λ| that are still large after τ steps."""

    def draw(ax: Any, layer: Memory, style: dict[str, Any]) -> None:
        ax.plot(layer.survival, **style)

    def frame(ax: Any) -> None:
        ax.set_ylim(0, 1.04)
        ax.set_yticks([0, 0.5, 1])
        steps_axis(ax, len(layers[0].survival))

    return panel(mixer, layers, color, draw, frame, "steps τ")


def draw_retention(mixer: str, layers: Layers, color: str) -> Any:
    """What is left of a marked token: measured as lines, predicted from eigenvalues as dots."""
    every = max(1, len(layers[0].predicted) // 24)

    def draw(ax: Any, layer: Memory, style: dict[str, Any]) -> None:
        ax.plot(layer.traced, **style)
        ax.plot(layer.predicted, ".", markersize=3.5, color=INK, markevery=every)

    def frame(ax: Any) -> None:
        decades(ax)
        steps_axis(ax, len(layers[0].predicted))

    return panel(mixer, layers, color, draw, frame, "steps since the token")


def caption_of_survival(layers: Layers) -> str:
    """Horizon and half-life of each layer."""
    each = ", ".join(number(layer.horizon) for layer in layers)
    half = ", ".join(number(layer.half_life) for layer in layers)
    return f"Horizon {each} steps; half-life {half}."


def caption_of_retention(layers: Layers) -> str:
    """What is left when asked, and how far the prediction is from it."""
    left = ", ".join(factor(layer.until_asked) for layer in layers)
    ratio = ", ".join(factor(layer.ratio) for layer in layers)
    where = "state" if all(layer.state is not None for layer in layers) else "output"
    return f"In the {where}: {left} left when asked; measured is {ratio} the prediction."


def rows(layer: Memory) -> Iterator[dict[str, Any]]:
    """A row per number of steps."""
    for i in range(layer.survival.size):
        yield {
            "steps": i,
            "survival": float(layer.survival[i]),
            "state": None if layer.state is None else float(layer.state[i]),
            "output": float(layer.output[i]),
            "predicted": float(layer.predicted[i]),
            "mean_age": float(layer.mean_age[i]),
        }


def horizon(layers: Layers) -> float:
    """The longest horizon of a layer."""
    return max(layer.horizon for layer in layers)


def half_life(layers: Layers) -> float:
    """The longest half-life of a layer."""
    return max(layer.half_life for layer in layers)


def until_asked(layers: Layers) -> float:
    """What is left of a value when it is asked for, in the layer that keeps most."""
    return max(layer.until_asked for layer in layers)


def mean_age(layers: Layers) -> float:
    """Mean age of what is read over the second half of the sequence, in the oldest layer."""
    return max(float(np.nanmean(x.mean_age[len(x.mean_age) // 2 :])) for x in layers)


def find(models: Mapping[str, Layers]) -> str:
    """Which model keeps longest, and which has most left of a value when it is asked for."""
    ranked = sorted(models.items(), key=lambda pair: (half_life(pair[1]), horizon(pair[1])))
    (first, shortest), (last, longest) = ranked[0], ranked[-1]
    long = _halves(half_life(longest))
    if len(ranked) == 1:
        text = f"The median eigenvalue of {last} {long}. "
    elif not half_life(longest) > ALIKE * half_life(shortest):
        text = f"The median eigenvalue of all mixers {long}. "
    else:
        text = f"{last} keeps longest: its median eigenvalue {long}; {first} "
        text += f"shortest: it {_halves(half_life(shortest))}. "
    left = [(until_asked(layers), name) for name, layers in models.items()]
    left = [(value, name) for value, name in left if math.isfinite(value)]
    if left:
        most, least = max(left, key=lambda x: x[0]), min(left, key=lambda x: x[0])
        text += f"When a value is asked for, {most[1]} has {factor(most[0])} of its trace left"
        text += "." if most is least else f", {least[1]} {factor(least[0])}."
    return text.strip()


def _halves(half_life: float) -> str:
    if math.isinf(half_life):
        return "does not fade"
    return f"halves what is kept in {steps(half_life)}"


MEMORY = Aspect(
    name="memory",
    title="How long it keeps: memory",
    how=(
        f"How to read: the share of products of |λ| that are still at least {FADED:g} "
        "after τ steps; a line that stays up keeps tokens, one that drops at once forgets them."
    ),
    measure=measure,
    asks=True,
    reduce=reduce,
    summarise=summarise,
    panels=(
        Panel("survival", "memory horizon", draw_survival, "memory", caption_of_survival),
        Panel(
            "trace",
            "retention",
            draw_retention,
            "memory",
            caption_of_retention,
            how=(
                "How to read what follows: what is left of a marked value after so many steps, "
                "relative to its entry, measured by taking the value away (lines), and "
                "predicted from the eigenvalues alone (dots). Where lines and dots part, "
                "memory is not in the eigenvalues but in how the state is written and read."
            ),
        ),
    ),
    files={"memory": rows},
    numbers={
        "horizon": lambda layer: layer.horizon,
        "half_life": lambda layer: layer.half_life,
        "until_asked": lambda layer: layer.until_asked,
        "correlation": lambda layer: layer.correlation,
        "ratio": lambda layer: layer.ratio,
    },
    columns={
        "horizon": Column(
            horizon,
            key="horizon",
            about=(
                f"Horizon: steps until half of the products of |λ| are below {FADED:g} (∞: not "
                "within a sequence), in the layer that keeps longest."
            ),
        ),
        "half-life": Column(
            half_life,
            key="half_life",
            called="the half-life",
            about=(
                "Half-life: steps in which the median eigenvalue halves what it keeps, in the "
                "layer that keeps longest."
            ),
        ),
        "left when asked": Column(
            until_asked,
            factor,
            key="until_asked",
            called="what is left of a value when it is asked for",
            about=(
                "Left when asked: what is left of a value in the state (in the outputs where "
                "there is no finite state) when the task asks for it, relative to its entry, "
                "geometric mean."
            ),
        ),
        "age read": Column(
            mean_age,
            key="mean_age",
            called="the age of what is read",
            about=("Age read: mean age in steps of what is read in the second half of a sequence."),
        ),
        "prediction": Column(
            lambda layers: min(layer.correlation for layer in layers),
            lambda value: number(value, 2),
            about=(
                "Prediction: correlation of measured retention with the product of "
                "eigenvalues, in logarithms, the lowest of a layer."
            ),
        ),
    },
    find=find,
    verdict="Memory",
)
