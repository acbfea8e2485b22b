"""What a task is judged by: a number with a direction, a unit and a way to be shown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax._util import words

Number = int | float
"""JSON may have either."""
TIE = 0.005
"""Means closer than this are called equal even if the seeds scatter less."""
LEARNT = 0.02
"""The least that counts as more than the trivial answer: some hundred held-out examples blur it."""


class Metric(NamedTuple):
    """A number that a task is judged by: a mean over queries, or a function of such a mean.

    What `Task.measure` gives under its name is averaged over all queries, with their weights, over
    batches and devices. `transform` is applied to that mean and to nothing else: a perplexity is
    the exponential of a mean, which is not the mean of exponentials.

    In files and tables a number has the name of its metric, such as ``eval_accuracy`` or
    ``mse_mean``, so no column holds numbers of two metrics.

    Attributes:
        name: What `Task.measure` calls it; lower case, as it becomes part of a column's name.
        higher_is_better: Its direction.
        label: What to call it in a sentence; by default the name, with blanks.
        percent: Whether it is a share, in [0, 1], and shown in per cent. Differences of shares
            count as such (points); those of other numbers count relative to the number.
        digits: Significant digits to be shown, of what is not in per cent.
        transform: "exp" for the exponential of the mean, "" for the mean itself.

    Example:
        >>> ACCURACY.spread(0.98765, 0.0123), MSE.spread(0.38421, 0.0123)
        ('98.8 ± 1.2 %', '0.384 ± 0.012')
        >>> PERPLEXITY.heading, PERPLEXITY.show(29.3742)
        ('perplexity ↓', '29.37')
    """

    name: str
    higher_is_better: bool
    label: str = ""
    percent: bool = False
    digits: int = 4
    transform: Literal["", "exp"] = ""

    @property
    def called(self) -> str:
        """What it is called in a sentence."""
        return self.label or self.name.replace("_", " ")

    @property
    def heading(self) -> str:
        """What it is called over a column; an arrow says that less is better."""
        return self.called if self.higher_is_better else f"{self.called} ↓"

    @property
    def better(self) -> str:
        """Where a better value lies: "above" or "below"."""
        return "above" if self.higher_is_better else "below"

    @property
    def unit(self) -> str:
        """What follows a number of it: " %", or nothing."""
        return " %" if self.percent else ""

    @property
    def worst(self) -> float:
        """What counts for a member that diverged: 0 for a share, ±∞ for other numbers."""
        if self.higher_is_better:
            return 0.0 if self.percent else -math.inf
        return 1.0 if self.percent else math.inf

    def of_mean(self, mean: Float[Array, "*members"]) -> Float[Array, "*members"]:
        """The metric, given the mean over queries of what `Task.measure` gave.

        Args:
            mean: The mean over all queries.
        """
        return jnp.exp(mean) if self.transform == "exp" else mean

    def known(self, value: Number | None) -> float:
        """A number that may be missing, as it is compared: the worst where it is.

        Args:
            value: The number; None if it was not finite.
        """
        return self.worst if value is None else float(value)

    def gain(self, value: Number, other: Number) -> float:
        """How much better a value is than another; negative where it is worse, 0 for two equals.

        Args:
            value: A value.
            other: Another one.

        Example:
            >>> MSE.gain(0.25, 0.75), ACCURACY.gain(0.25, 0.75), MSE.gain(math.inf, math.inf)
            (0.5, -0.5, 0.0)
        """
        if value == other:  # also of two infinities
            return 0.0
        return float(value - other) if self.higher_is_better else float(other - value)

    def order(self, value: Number | None) -> float:
        """A number by which values sort from the best to the worst.

        Args:
            value: A value; None counts as the worst.
        """
        known = self.known(value)
        return -known if self.higher_is_better else known

    def scale(self, *values: Number) -> float:
        """What a difference of 1 is in the unit in which differences count.

        Args:
            *values: What is compared.

        Returns:
            1 for shares. For other numbers the smallest magnitude of the finite ones, so that 0.01
            times it is one per cent.
        """
        finite = [float(abs(value)) for value in values if math.isfinite(value)]
        return 1.0 if self.percent or not finite else min(finite)

    def apart(self, a: tuple[Number, Number], b: tuple[Number, Number]) -> bool:
        """Whether two means differ by more than the seeds of either scatter.

        Args:
            a: A mean and its standard deviation over seeds.
            b: Another one.

        Returns:
            False where they differ by no more than a standard deviation or half a percentage point
            (of what is not a share: 0.5 %).

        Example:
            >>> ACCURACY.apart((0.9, 0.0), (0.85, 0.04)), ACCURACY.apart((0.9, 0.0), (0.85, 0.06))
            (True, False)
        """
        return abs(self.gain(a[0], b[0])) > max(a[1], b[1], TIE * self.scale(a[0], b[0]))

    def beats(self, mean: Number, std: Number, baseline: Number) -> bool:
        """Whether a mean score is clearly better than a baseline.

        Args:
            mean: Mean over seeds.
            std: Standard deviation over seeds.
            baseline: Score of the baseline.

        Returns:
            True where it is better by more than the standard deviation and two percentage points
            (of what is not a share: 2 % of the baseline).

        Example:
            >>> [ACCURACY.beats(*each, 0.25) for each in ((0.30, 0.01), (0.30, 0.06), (0.26, 0.0))]
            [True, False, False]
            >>> cases = (2.0, 0.1), (2.0, 0.6), (2.46, 0.0), (3.0, 0.1)
            >>> [MSE.beats(*each, 2.5) for each in cases]
            [True, False, False, False]
        """
        return self.gain(mean, baseline) > max(std, LEARNT * self.scale(baseline))

    def plain(self, value: Number) -> str:
        """A value without its unit; a dash for NaN, ∞ as such.

        Args:
            value: The value.
        """
        if not math.isfinite(value):
            return words.number(value)
        text = f"{100 * value:.1f}" if self.percent else self._text(value, value)
        return text.replace("-", "−")

    def show(self, value: Number) -> str:
        """A value with its unit, which no line break separates from it.

        Args:
            value: The value.
        """
        return self.plain(value) + self.unit.replace(" ", "\N{NO-BREAK SPACE}")

    def deviation(self, mean: Number, std: Number) -> str:
        """A standard deviation to as many places as the mean has; "" if the mean is infinite.

        Args:
            mean: The mean.
            std: The standard deviation.
        """
        if not math.isfinite(mean):
            return ""
        return f"± {100 * std:.1f}" if self.percent else f"± {self._text(std, mean)}"

    def spread(self, mean: Number, std: Number) -> str:
        """Mean and standard deviation with the unit.

        Args:
            mean: The mean.
            std: The standard deviation.
        """
        return f"{self.plain(mean)} {self.deviation(mean, std)}".rstrip() + self.unit

    def _text(self, value: Number, like: Number) -> str:
        """A value with the decimals that another needs for its significant digits."""
        if like and not 1e-4 <= abs(like) < 1e6:
            return f"{value:.{self.digits}g}"
        leading = math.floor(math.log10(abs(like))) if like else 0
        return f"{value:.{max(0, self.digits - 1 - leading)}f}"


ACCURACY = Metric("accuracy", higher_is_better=True, percent=True)
"""The share of queries that are answered right."""
MSE = Metric("mse", higher_is_better=False, label="MSE", digits=3)
"""Mean squared error."""
MAE = Metric("mae", higher_is_better=False, label="MAE", digits=3)
"""Mean absolute error."""
BITS_PER_BYTE = Metric("bits_per_byte", higher_is_better=False)
"""Of text: the mean of −log₂ p per byte of the text, whatever the tokens are."""
PERPLEXITY = Metric("perplexity", higher_is_better=False, transform="exp")
"""Of text: e to the mean of −log p; `Task.measure` gives −log p, per word if that is meant."""


class Baseline(NamedTuple):
    """What can be had without a sequence model.

    Attributes:
        score: Its number on held-out examples, of the task's metric.
        about: What it does, as the end of "This is what you get by …".
    """

    score: float
    about: str


def to_json(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Metrics as JSON data.

    Args:
        metrics: The metrics of a task.
    """
    return [metric._asdict() for metric in metrics]


def from_json(data: Sequence[Mapping[str, Any]] | None) -> tuple[Metric, ...]:
    """Metrics from JSON data; what was written before tasks had metrics is of the accuracy.

    Args:
        data: As `to_json` makes it, or None.
    """
    return tuple(Metric(**each) for each in data) if data else (ACCURACY,)
