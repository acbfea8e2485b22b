r"""Effective state size over time: the rank of the block of Φ from the past to the future.

At step t the block has the outputs from t on as rows and the tokens up to t as columns: all that
the past can do to the future goes through it, and its rank is the state that is needed there. Its
singular values are the Hankel singular values σ of that step, of which two counts are made,

.. math::
   \#\{σ_i > τ σ_1\}, \qquad \exp\Bigl(-\sum_i p_i \log p_i\Bigr), \quad p_i = σ_i / \sum_j σ_j .

The second needs no tolerance. Reference: Parnichkun et al. (2025), arXiv:2504.19561.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax import analysis
from dsfjax._util.words import number
from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.aspects.aspect import Aspect, Layers
from dsfjax.aspects.style import panel, steps_axis
from dsfjax.core import KernelSystem, System

TOLERANCE = 1e-3
# Steps that are looked at; each costs the eigenvalues of every block of the state.
MOST_STEPS = 16
# Models whose counts differ by less than this factor are not put in an order.
CLEAR = 1.2


class Sizes(NamedTuple):
    """Both counts at some steps of one layer.

    Attributes:
        steps: The steps t.
        rank: Singular values above `TOLERANCE` times the largest of the step.
        entropy: Exponential of the entropy of the singular values.
    """

    steps: Any
    rank: Any
    entropy: Any


def measure(system: System | KernelSystem, u: Array, dy: Array) -> Sizes | None:
    """Both counts of the system of one layer on one sequence.

    Args:
        system: The system.
        u: Its tokens (L, d).
        dy: Not read.

    Returns:
        `Sizes` at no more than `MOST_STEPS` steps; None where there is no finite state.
    """
    del dy
    if not has_finite_state(system):
        return None
    length = u.shape[0]
    at = np.unique(np.linspace(0, length - 1, min(length, MOST_STEPS)).astype(int))
    found = analysis.gramians(system, at=at.tolist(), length=length)
    values = analysis.hankel_singular_values(found).reshape(len(at), -1)
    # A block that several value channels share counts for each of them.
    copies = system.num_states // values.shape[1]
    largest, total = values.max(axis=1, keepdims=True), values.sum(axis=1, keepdims=True)
    rank = copies * jnp.sum((values > TOLERANCE * largest) & (values > 0), axis=1)
    p = values / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=1)
    size = jnp.where(total[:, 0] > 0, copies * jnp.exp(entropy), 0)
    return Sizes(jnp.asarray(at), rank.astype(size.dtype), size)


def summarise(found: Sizes) -> Sizes:
    """Means over sequences."""
    return Sizes(found.steps[0], *(np.mean(x, axis=0, dtype=float) for x in found[1:]))


def draw(mixer: str, layers: Layers, color: str) -> Any:
    """Both counts over the steps: by entropy as lines, by tolerance as pale lines."""

    def draw(ax: Any, layer: Sizes, style: dict[str, Any]) -> None:
        pale = style | {"alpha": 0.4, "linewidth": 1.2, "label": None}
        ax.plot(layer.steps, layer.rank, **pale)
        ax.plot(layer.steps, layer.entropy, **style)

    def frame(ax: Any) -> None:
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        steps_axis(ax, int(layers[0].steps[-1]) + 1)

    return panel(mixer, layers, color, draw, frame, "step t")


def rows(layer: Sizes) -> Iterator[dict[str, Any]]:
    """A row per step."""
    for step, rank, entropy in zip(*(x.tolist() for x in layer), strict=True):
        yield {"step": step, "rank": rank, "entropy": entropy}


def largest(layers: Layers) -> float:
    """The most that is in use at a step, all layers together, by entropy."""
    return float(np.max(np.sum([layer.entropy for layer in layers], axis=0)))


def caption(layers: Layers) -> str:
    """The largest count of each layer."""
    most = ", ".join(number(float(layer.entropy.max())) for layer in layers)
    rank = ", ".join(number(float(layer.rank.max())) for layer in layers)
    return f"At most {most} by entropy, {rank} by tolerance."


def find(models: Mapping[str, Layers]) -> str:
    """Which model needs most state at a step, and which least, if they clearly differ."""
    ranked = sorted((largest(layers), name) for name, layers in models.items())
    if len(ranked) < 2 or ranked[-1][0] <= CLEAR * ranked[0][0]:
        return ""
    (least, small), (most, large) = ranked[0], ranked[-1]
    return (
        f"{large} sends most from the past to the future, through {number(most)} directions of its "
        f"state at once (by entropy), {small} least, through {number(least)}."
    )


STATE_OVER_TIME = Aspect(
    name="state_over_time",
    title="How much state is needed when",
    how=(
        "How to read: how many directions of the state carry something from the tokens up to "
        "step t to the outputs from t on; lines by the entropy of the Hankel singular values, "
        f"pale lines by how many exceed {TOLERANCE:g} of the largest. A line that climbs with "
        "the sequence stores token after token; one that is flat early has no more room, or no "
        "more use for it; one that falls has answered what was asked."
    ),
    measure=measure,
    summarise=summarise,
    draw=draw,
    rows=rows,
    caption=caption,
    columns={"state at once": largest},
    find=find,
)
