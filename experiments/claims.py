"""Claims of the paper as data, and what the numbers say of them.

A claim names two sets of points, one of which should do better. Points are compared in pairs that
agree in all axes that the claim does not name. A pair speaks *for* the claim where the means differ
by more than the pooled standard deviation √((s₁² + s₂²)/2) and by more than half a percentage point
in its favour, *against* it where they do so the other way, else for neither. Of two points that
are not better than the trivial answer (of recall, naming any value of the sequence, 1/pairs) by as
much as their own standard deviation and two percentage points, neither has learnt the task: such a
pair speaks for neither, too. Numbers that are no shares differ by per cent of themselves instead.

A claim is *confirmed* if at least half of the pairs speak for it and none against; otherwise it is
*not confirmed*. The same can be asked of the maxima over all learning rates and seeds, which the
paper plots: they say what a model can learn, the means how reliably it does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dsfjax.tasks.metric import TIE
from experiments import points as measured
from experiments.points import Point

AXES = ("series", "d_model", "d_state")
"""The axes of every point; those of its task are `points.sizes`."""


class Claim(NamedTuple):
    """What the paper says should be seen.

    Attributes:
        text: In a sentence.
        better: Axis to value of the points that should do better. The value may be "any", and of
            an axis of numbers "largest" or "smallest", of those that its series has.
        worse: The same of the points that should do worse.
    """

    text: str
    better: Mapping[str, Any]
    worse: Mapping[str, Any]


class Verdict(NamedTuple):
    """What the numbers say of a claim.

    Attributes:
        word: "confirmed", "not confirmed", or "not run" where there is no pair of points.
        pro: Pairs that speak for it.
        against: Pairs that speak against it.
        pairs: All pairs.
        gain: Mean difference of the scores over the pairs, positive where it is in favour of the
            claim; 0 without any.
    """

    word: str
    pro: int
    against: int
    pairs: int
    gain: float


def judge(
    claim: Claim, points: Sequence[Mapping[str, Any]], *, by: Literal["mean", "max"] = "mean"
) -> Verdict:
    """What the numbers say of a claim.

    Args:
        claim: The claim.
        points: The points of its experiment.
        by: Compare means, which have a standard deviation, or the best of all rates and seeds
            (maxima, or minima where less is better), which have none.

    Returns:
        The verdict.

    Examples:
        >>> axes = {"seq_len": 64, "num_kv_pairs": 4, "d_model": 8, "d_state": 2, "std": 0.01}
        >>> points = [axes | {"series": "a", "mean": 0.9}, axes | {"series": "b", "mean": 0.5}]
        >>> judge(Claim("a recalls more than b", {"series": "a"}, {"series": "b"}), points).word
        'confirmed'
    """
    named = claim.better.keys() | claim.worse.keys()
    free = [axis for axis in AXES if axis not in named]
    better, worse = (_select(points, wanted) for wanted in (claim.better, claim.worse))

    def rest(point: Point) -> dict[str, Any]:
        """All axes that the claim does not name."""
        own = {size: x for size, x in measured.sizes(point).items() if size not in named}
        return {axis: point[axis] for axis in free} | {"task": own}

    pairs = [(a, b) for a in better for b in worse if rest(a) == rest(b)]
    read = measured.best if by == "max" else measured.mean
    gains, margins = [], []
    for a, b in pairs:
        metric = measured.metric(a)
        gains.append(metric.gain(read(a), read(b)))
        tie = TIE * metric.scale(read(a), read(b))
        pooled = 0.0 if by == "max" else math.hypot(_std(a), _std(b)) / math.sqrt(2)
        margins.append(max(tie, pooled))
    learnt = [_has_learnt(a, by) or _has_learnt(b, by) for a, b in pairs]
    margins = [margin if told else math.inf for margin, told in zip(margins, learnt, strict=True)]
    pro = sum(gain > margin for gain, margin in zip(gains, margins, strict=True))
    against = sum(gain < -margin for gain, margin in zip(gains, margins, strict=True))
    if not pairs:
        return Verdict("not run", 0, 0, 0, 0.0)
    word = "confirmed" if 2 * pro >= len(pairs) and not against else "not confirmed"
    return Verdict(word, pro, against, len(pairs), sum(gains) / len(gains))


def _has_learnt(point: Mapping[str, Any], by: Literal["mean", "max"]) -> bool:
    scatter = _std(point) if by == "mean" else 0.0
    score = measured.mean(point) if by == "mean" else measured.best(point)
    return measured.metric(point).beats(score, scatter, measured.trivial(point))


def _std(point: Point) -> float:
    return point["std"] or 0.0  # None where the mean is infinite


def _value(point: Point, axis: str) -> Any:
    return point[axis] if axis in AXES else measured.sizes(point).get(axis)


def _select(
    points: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    words = ("any", "largest", "smallest")
    exact = {axis: value for axis, value in wanted.items() if value not in words}
    found = [point for point in points if all(_value(point, axis) == exact[axis] for axis in exact)]
    for axis in wanted.keys() - exact.keys():
        if found and wanted[axis] != "any":
            extreme = max if wanted[axis] == "largest" else min
            value = extreme(_value(point, axis) for point in found)
            found = [point for point in found if _value(point, axis) == value]
    return found
