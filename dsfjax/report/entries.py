"""What a comparison of mixers is, once it has been read: plain data and no files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from dsfjax.analysis import Cost
from dsfjax.aspects import Findings
from dsfjax.guidance import Advice
from dsfjax.report.dynamics import Dynamics
from dsfjax.tasks import ACCURACY, Baseline, Metric
from dsfjax.training import MemberResult


@runtime_checkable
class Seen(Protocol):
    """A model that was looked into: its name on the page, and what aspects found."""

    @property
    def mixer(self) -> str:
        """The name."""
        ...

    @property
    def findings(self) -> Findings | None:
        """Of every aspect; None for nothing."""
        ...


@dataclass(frozen=True)
class Curve:
    """The score over training of one seed.

    Attributes:
        seed: The seed.
        steps: Training steps after which the score was measured, increasing.
        score: The score on the held-out examples at these steps, such as the accuracy; the worst
            value of its metric where the member had diverged.
        status: How the member ended, as :mod:`dsfjax.training.runs` names it.
    """

    seed: int
    steps: Int[np.ndarray, " points"]
    score: Float[np.ndarray, " points"]
    status: str = "finished"


@dataclass(frozen=True)
class Entry:
    """One mixer of the comparison, at its best learning rate.

    Attributes:
        mixer: What the run is called here: the architecture, and in what the runs differ.
        learning_rate: The best learning rate: the best mean score over seeds.
        score_mean: Mean over seeds of the final score, such as the accuracy in [0, 1].
        score_std: Standard deviation over seeds.
        steps_to_90: Steps until 90 % accuracy, mean over seeds; None unless all got there.
        state_size: Numbers of state in all layers after the last token of a sequence.
        grows: Whether the state grows with the length of the sequence.
        num_params: Number of trained parameters.
        tokens_per_second: Training tokens of all members of the program per second; a member that
            has stopped has none.
        bounds: What is known about |λ| by construction, in words.
        outcomes: How every member ended: learning rates × seeds and what else varied.
        curves: One per seed at the best learning rate. The last point is the final score.
        also: Name of each further metric to its mean and standard deviation over these seeds.
        cost: Operations and bytes per token, one sequence at a time.
        findings: What the aspects found in the best seed; None where all seeds diverged.
        dynamics: What probes saw while a seed trained at the best learning rate; None without any.
        run: Folder of the run in that of the comparison.
    """

    mixer: str
    learning_rate: float
    score_mean: float
    score_std: float
    steps_to_90: float | None
    state_size: int
    grows: bool
    num_params: int
    tokens_per_second: float
    bounds: str
    outcomes: tuple[MemberResult, ...]
    curves: tuple[Curve, ...]
    cost: Cost
    findings: Findings | None = None
    dynamics: Dynamics | None = None
    run: str = ""
    also: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[float, ...]:
        """Final score of every seed."""
        return tuple(float(curve.score[-1]) for curve in self.curves)

    @property
    def flops(self) -> float:
        """Operations of one decoded token; of one of a sequence where nothing is decoded."""
        phase = self.cost.decode or self.cost.prefill
        assert phase is not None
        return phase.flops

    @property
    def num_diverged(self) -> int:
        """How many members, of all learning rates, ended non-finite."""
        return sum(outcome.status == "diverged" for outcome in self.outcomes)


@dataclass(frozen=True)
class Comparison:
    """Mixers trained on one task, the best first.

    Attributes:
        facts: What is shown under the heading: task, model, training, device, versions, in words.
        chance: Score of a guess among all answers; None where there is nothing to guess.
        unbound: Score of the best answer that takes no model; on recall, naming some value of
            the sequence without knowing which key it belongs to.
        entries: One per mixer, by mean score, best first; equal ones by steps to 90 %.
        title: Name of the task.
        trivial: What the answer behind ``unbound`` is, such as "naming any value of the sequence";
            "" where the task has no baseline, and ``unbound`` is the worst value.
        linear: A linear model of the whole input; None where there is no such baseline.
        measured: The metrics of the task; the score is of the first.
        advice: What all results say of tasks like this one; None where the task does not say what
            it demands.
    """

    facts: dict[str, str]
    chance: float | None
    unbound: float
    entries: tuple[Entry, ...]
    title: str = ""
    trivial: str = "naming any value of the sequence"
    linear: Baseline | None = None
    measured: tuple[Metric, ...] = (ACCURACY,)
    advice: Advice | None = None

    @property
    def metric(self) -> Metric:
        """The metric of the scores."""
        return self.measured[0]


def band(
    curves: tuple[Curve, ...],
) -> tuple[
    Int[np.ndarray, " points"],
    Float[np.ndarray, " points"],
    Float[np.ndarray, " points"],
    Float[np.ndarray, " points"],
]:
    """Mean, minimum and maximum over seeds, at every step at which some seed was measured.

    A seed that was not measured at a step (it had solved the task and stopped) keeps its last
    value. The band begins where every seed has been measured.

    Args:
        curves: One curve per seed, at least one.

    Returns:
        ``(steps, mean, low, high)``, each of one length.

    Example:
        >>> a = Curve(0, np.array([10, 20, 30]), np.array([0.2, 0.4, 0.6]))
        >>> b = Curve(1, np.array([10, 20]), np.array([0.4, 1.0]))
        >>> [x.tolist() for x in band((a, b))[::2]]
        [[10, 20, 30], [0.2, 0.4, 0.6]]
    """
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[steps >= max(curve.steps[0] for curve in curves)]
    values = np.stack([c.score[np.searchsorted(c.steps, steps, side="right") - 1] for c in curves])
    return steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0)
