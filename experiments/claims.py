"""Claims of the paper as data, and what the numbers say of them.

A claim names two sets of points, one of which should recall more. Points are compared in pairs that
agree in all axes that the claim does not name. A pair speaks *for* the claim where the means differ
by more than the pooled standard deviation √((s₁² + s₂²)/2) and by more than half a percentage point
in its favour, *against* it where they do so the other way, else for neither. Of two points that
are not above naming any value of the sequence, 1/pairs, by as much as their own standard deviation
and two percentage points, neither has learnt the task: such a pair speaks for neither, too.

A claim is *confirmed* if at least half of the pairs speak for it and none against; otherwise it is
*not confirmed*. The same can be asked of the maxima over all learning rates and seeds, which the
paper plots: they say what a model can learn, the means how reliably it does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

AXES = ("series", "seq_len", "num_kv_pairs", "d_model", "d_state")
TIE, LEARNT = 0.005, 0.02


class Claim(NamedTuple):
    """What the paper says should be seen.

    Attributes:
        text: In a sentence.
        better: Axis to value of the points that should recall more. The value may be "any", and of
            an axis of numbers "largest" or "smallest", of those that its series has.
        worse: The same of the points that should recall less.
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
        gain: Mean difference of the accuracies over the pairs; 0 without any.
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
        by: Compare means, which have a standard deviation, or maxima, which have none.

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
    pairs = [(a, b) for a in better for b in worse if all(a[axis] == b[axis] for axis in free)]
    gains = [a[by] - b[by] for a, b in pairs]
    pooled = [math.hypot(a["std"], b["std"]) / math.sqrt(2) for a, b in pairs]
    margins = [TIE if by == "max" else max(TIE, std) for std in pooled]
    learnt = [_has_learnt(a, by) or _has_learnt(b, by) for a, b in pairs]
    margins = [margin if told else math.inf for margin, told in zip(margins, learnt, strict=True)]
    pro = sum(gain > margin for gain, margin in zip(gains, margins, strict=True))
    against = sum(gain < -margin for gain, margin in zip(gains, margins, strict=True))
    if not pairs:
        return Verdict("not run", 0, 0, 0, 0.0)
    word = "confirmed" if 2 * pro >= len(pairs) and not against else "not confirmed"
    return Verdict(word, pro, against, len(pairs), sum(gains) / len(gains))


def _has_learnt(point: Mapping[str, Any], by: Literal["mean", "max"]) -> bool:
    scatter = point["std"] if by == "mean" else 0.0
    return point[by] - 1 / point["num_kv_pairs"] > max(LEARNT, scatter)


def _select(
    points: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    words = ("any", "largest", "smallest")
    exact = {axis: value for axis, value in wanted.items() if value not in words}
    found = [point for point in points if all(point[axis] == exact[axis] for axis in exact)]
    for axis in wanted.keys() - exact.keys():
        if found and wanted[axis] != "any":
            extreme = max if wanted[axis] == "largest" else min
            value = extreme(point[axis] for point in found)
            found = [point for point in found if point[axis] == value]
    return found
