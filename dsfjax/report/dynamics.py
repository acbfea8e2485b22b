"""What probes saw of one member while it trained, next to its loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dsfjax.aspects.eigenvalues import QUANTILES
from dsfjax.aspects.style import INK, LAYERS, SETTINGS
from dsfjax.tasks import ACCURACY, Metric

# What the probes of the built-in aspects are called; those of others follow.
_KNOWN = ("modulus", "growing", "gradient", "dimension")


@dataclass(frozen=True)
class Dynamics:
    """The probes of one member, T of them; NaN where a number was not finite or does not exist.

    Attributes:
        seed: Seed of the member.
        steps: Training steps of the probes.
        loss: Loss on the held-out examples there.
        score: The score there, such as the accuracy.
        sharpness: Largest eigenvalue of the Hessian of the loss.
        modulus: |λ| of each layer at the quantiles of `dsfjax.aspects.eigenvalues`.
        gradient: Norm of ∂L/∂h of each layer in each quarter of the sequence.
        dimension: Directions of the state in use, of each layer.
        others: Name of another probe that is a number to its values.
    """

    seed: int
    steps: Int[np.ndarray, " T"]
    loss: Float[np.ndarray, " T"]
    score: Float[np.ndarray, " T"]
    sharpness: Float[np.ndarray, " T"]
    modulus: Float[np.ndarray, "T layers q"]
    gradient: Float[np.ndarray, "T layers 4"]
    dimension: Float[np.ndarray, "T layers"]
    others: Mapping[str, Float[np.ndarray, "T layers"]] = field(default_factory=dict)


def read_dynamics(
    metrics: Sequence[Mapping[str, Any]], member: int, metric: Metric = ACCURACY
) -> Dynamics | None:
    """The probes of a member among the lines of ``metrics.jsonl``.

    Args:
        metrics: The lines of a run.
        member: Index of the member.
        metric: The metric of the score.

    Returns:
        The dynamics, or None if the member was not probed.
    """
    lines = [line for line in metrics if line["member"] == member and "probe" in line]
    if not lines:
        return None
    layers, absent = [line["probe"]["layers"] for line in lines], [None] * len(QUANTILES)
    others = [
        name
        for name, value in layers[0][0].items()
        if name not in _KNOWN and not isinstance(value, list)
    ]
    return Dynamics(
        seed=lines[0]["seed"],
        steps=np.array([line["step"] for line in lines]),
        loss=_numbers([line["eval_loss"] for line in lines]),
        score=_numbers([line[f"eval_{metric.name}"] for line in lines]),
        sharpness=_numbers([line["probe"]["sharpness"] for line in lines]),
        modulus=_numbers([[x["modulus"] or absent for x in row] for row in layers]),
        gradient=_numbers([[x["gradient"] or [None] * 4 for x in row] for row in layers]),
        dimension=_numbers([[x["dimension"] for x in row] for row in layers]),
        others={name: _numbers([[x.get(name) for x in row] for row in layers]) for name in others},
    )


def rows(found: Dynamics, metric: Metric = ACCURACY) -> Iterator[dict[str, Any]]:
    """A row of ``dynamics.csv`` per probe and layer."""
    for t, step in enumerate(found.steps.tolist()):
        for i in range(found.dimension.shape[1]):
            modulus = zip(QUANTILES, found.modulus[t, i].tolist(), strict=True)
            yield {
                "seed": found.seed,
                "step": step,
                "layer": i + 1,
                "loss": float(found.loss[t]),
                metric.name: float(found.score[t]),
                "sharpness": float(found.sharpness[t]),
                **{f"modulus_{q:g}": x for q, x in modulus},
                **{f"gradient_{k + 1}": float(found.gradient[t, i, k]) for k in range(4)},
                "dimension": float(found.dimension[t, i]),
                **{name: float(values[t, i]) for name, values in found.others.items()},
            }


def draw(mixer: str, found: Dynamics, color: str) -> Any:
    """Loss, sharpness, |λ|, gradients and directions in use over training, one below the other.

    Args:
        mixer: Title of the figure.
        found: The dynamics.
        color: Colour of the lines.

    Returns:
        The figure; of |λ| the median and the range from 5 to 95 %, of the gradients the ratio of
        the first quarter of the sequence to the last.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [
        ("loss", found.loss[:, None], False),
        ("sharpness", found.sharpness[:, None], True),
        ("|λ|", found.modulus[..., found.modulus.shape[-1] // 2], False),
    ]
    if np.isfinite(found.dimension).any():
        ratio = found.gradient[..., 0] / np.where(
            found.gradient[..., 3] > 0, found.gradient[..., 3], np.nan
        )
        rows += [("gradient ratio", ratio, True), ("directions", found.dimension, False)]
    rows += [(name, values, False) for name, values in found.others.items()]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.3, 0.55 + 1.05 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (name, values, log) in zip(axes, rows, strict=True):
            _lines(ax, found.steps, values, color, log and bool((values > 0).any()))
            ax.set_title(name, fontsize=9, fontweight="normal", pad=3)
        low, high = found.modulus[..., 0], found.modulus[..., -1]
        for i in range(low.shape[1]):
            axes[2].fill_between(found.steps, low[:, i], high[:, i], color=color, alpha=0.13, lw=0)
        # Ratios of η may reach anything; the axis follows the medians.
        axes[2].set_ylim(0, max(1.05, 1.2 * float(np.nanmax(rows[2][1], initial=0.0))))
        axes[2].axhline(1.0, color=INK, linewidth=0.8, linestyle=LAYERS[2])
        axes[-1].set_xlabel("training step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.suptitle(mixer, x=0.02, ha="left", fontsize=11, fontweight="bold")
        if values.shape[1] > 1:
            axes[2].legend(fontsize=8, handlelength=1.9, borderaxespad=0.2)
    return figure


def _lines(
    ax: Any, steps: Int[np.ndarray, " T"], values: Float[np.ndarray, "T k"], color: str, log: bool
) -> None:
    from matplotlib.ticker import MaxNLocator

    for i in range(values.shape[1]):
        shown = np.where(values[:, i] > 0, values[:, i], np.nan) if log else values[:, i]
        style = {"linestyle": LAYERS[i % len(LAYERS)], "linewidth": 1.6, "markersize": 3}
        ax.plot(steps, shown, marker=".", color=color, label=f"layer {i + 1}", **style)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.minorticks_off()
    else:
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.grid(axis="y")


def _numbers(values: Any) -> Float[np.ndarray, "*shape"]:
    """Nested lists as an array; None becomes NaN."""
    return np.array(values, dtype=object).astype(float)
