"""Which architecture for this task, and why: sentences that follow from the numbers of the runs.

The rule: take the mixer with the best score, and those that seeds do not tell apart from it. Of
these, keep the ones whose own seeds agree, and choose the one with the smallest state; of equal
states one that does not grow with the sequence, then the one with the fewest operations per token.

A mixer that is not clearly better than the trivial answer has not learnt the task. It is never
chosen, and mixers that have not learnt the task are not put in an order. A difference smaller than
the scatter of the seeds is not an order either. What makes the evidence thin is said next to the
answer.

The score is that of the task's metric. Differences of accuracies count in points, those of other
numbers relative to the number: what 0.01 is called below is a point of the one, 1 % of the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dsfjax._util.words import capitalized, count, listing
from dsfjax.aspects import Layers, registered
from dsfjax.report.entries import Comparison, Entry
from dsfjax.tasks import ACCURACY, Metric
from dsfjax.tasks.metric import TIE

# Seeds that scatter further do not agree, and from UNSURE on it is worth a word.
RELIABLE, UNSURE = 0.02, 0.1
# Fewer seeds than this give no standard deviation to speak of.
ENOUGH_SEEDS = 3
# More names than this are counted instead of listed.
FEW = 4
# Models that differ by more than this factor in parameters are not of one size.
SIZES = 2.0
# Fewer models than this have no rank correlation to speak of, and one below it says nothing.
ENOUGH_MODELS, CLEAR = 5, 0.6
# Below this many that learnt the task a correlation says who learnt it and no more.
ENOUGH_LEARNT = 3


@dataclass(frozen=True)
class Verdict:
    """An answer and its evidence, in words.

    Attributes:
        choice: Name of the mixer to take; None where the runs name none.
        answer: The answer in a sentence or two.
        reasons: Aspect to what the runs say about it.
        doubts: Why the evidence is thin; empty if nothing speaks against it.
    """

    choice: str | None
    answer: str
    reasons: dict[str, str]
    doubts: tuple[str, ...]


def decide(comparison: Comparison) -> Verdict:
    """Choose a mixer from the numbers of the runs.

    Args:
        comparison: At least one entry, the best score first.

    Returns:
        The verdict.
    """
    choice, answer = _choice(comparison)
    entries, called = comparison.entries, comparison.metric.called
    reasons = {capitalized(called): _scores(comparison)}
    for aspect in registered():
        own = {
            e.mixer: e.findings[aspect.name]
            for e in entries
            if e.findings is not None and aspect.name in e.findings
        }
        if own and (text := aspect.find(own)):
            reasons[aspect.verdict or aspect.title] = text
    reasons["Training"] = _diverged(entries)
    reasons["Cost"] = _cost(entries)
    if text := _company(comparison):
        reasons[f"What goes with {called}"] = text
    return Verdict(choice, answer + _linear(comparison), reasons, tuple(_doubts(comparison)))


def apart(metric: Metric, a: Entry, b: Entry) -> bool:
    """Whether the means of two mixers differ by more than the seeds of either scatter.

    Args:
        metric: The metric of their scores.
        a: A mixer.
        b: Another one.

    Returns:
        False where they differ by no more than a standard deviation or half a percentage point (of
        what is not a share: 0.5 %).
    """
    return metric.apart((a.score_mean, a.score_std), (b.score_mean, b.score_std))


def learnt(comparison: Comparison) -> list[Entry]:
    """The mixers that are clearly better than the trivial answer.

    Args:
        comparison: The comparison.

    Returns:
        Those better than it by more than their standard deviation and two percentage points (of
        what is not a share: 2 %), in order.
    """
    metric, least = comparison.metric, comparison.unbound
    return [e for e in comparison.entries if metric.beats(e.score_mean, e.score_std, least)]


def leaders(metric: Metric, entries: Sequence[Entry]) -> list[Entry]:
    """The best mixer and those that seeds do not tell apart from it.

    Args:
        metric: The metric of their scores.
        entries: The best score first; at least one.

    Returns:
        At least one entry, in the same order.
    """
    return [entry for entry in entries if not apart(metric, entries[0], entry)]


def _choice(comparison: Comparison) -> tuple[str | None, str]:
    entries, able, metric = comparison.entries, learnt(comparison), comparison.metric
    trivial, unbound = comparison.trivial, metric.show(comparison.unbound)
    best = entries[0]
    if not able:
        if not trivial:
            return None, "None can be recommended: of every mixer a seed diverged."
        return None, (
            f"None can be recommended: the best, {best.mixer}, "
            f"{_reaches(metric, metric.spread(best.score_mean, best.score_std))}, which is not "
            f"clearly {metric.better} {trivial} ({unbound})."
        )
    if len(entries) == 1:
        return None, (
            f"{best.mixer} {_reaches(metric, metric.show(best.score_mean))}; with one mixer "
            "there is nothing to choose between."
        )
    top = leaders(metric, able)
    best = top[0]
    # One whose seeds do not agree may be as good, but nobody knows before training it.
    most = max(RELIABLE * metric.scale(best.score_mean), best.score_std)
    steady = [e for e in top if e.score_std <= most]
    doubtful = [
        f"{e.mixer} ({metric.spread(e.score_mean, e.score_std)})" for e in top if e not in steady
    ]
    more = f" Seeds of {listing(doubtful)} scatter too far to say." if doubtful else ""
    if len(steady) == 1:
        rest = [e for e in able if e not in top]
        score = metric.spread(best.score_mean, best.score_std)
        score = score if metric.percent else f"{metric.called} {score}"
        if not rest:
            only = "the only one" if not doubtful else "the only one whose seeds agree and"
            where = f", where {trivial} gives {unbound}" if trivial else ""
            return best.mixer, (
                f"For this task, {best.mixer}: {only} that has learnt it, with {score}{where}."
                f"{more}"
            )
        return best.mixer, (
            f"For this task, {best.mixer}: alone at the top with {score}, "
            f"{_ahead(metric, best.score_mean, rest[0].score_mean)} {rest[0].mixer} "
            f"({metric.spread(rest[0].score_mean, rest[0].score_std)}).{more}"
        )
    ranked = sorted(steady, key=lambda e: (e.state_size, e.grows, e.flops))
    take, others = ranked[0], ranked[1:]
    smallest = [e for e in steady if e.state_size == take.state_size]
    if len(smallest) == 1:
        why = f"the smallest state, {count(take.state_size)} numbers"
    elif any(e.grows for e in smallest) and not take.grows:
        why = (
            f"as small a state as any at this length, {count(take.state_size)} numbers, and one "
            "that does not grow with the sequence"
        )
    else:
        why = (
            f"as small a state as any, {count(take.state_size)} numbers, and the fewest operations "
            f"per {_token(take)}"
        )
    scores = _range(metric, [e.score_mean for e in steady])
    return take.mixer, (
        f"For this task, {take.mixer}: {listing([e.mixer for e in steady])} "
        f"{_reaches(metric, scores, several=True)}, which seeds do not tell "
        f"apart, and of these {take.mixer} has {why} ({listing([_sized(e) for e in others])})."
        f"{more}"
    )


def _reaches(metric: Metric, score: str, *, several: bool = False) -> str:
    """What a mixer does, or several: the predicate of a sentence."""
    if metric == ACCURACY:
        return f"{'answer' if several else 'answers'} {score} of the queries"
    return f"{'reach' if several else 'reaches'} {metric.called} {score}"


def _ahead(metric: Metric, score: float, other: float) -> str:
    """By how much a score is better than the other, in points or relative to it."""
    gap = 100 * metric.gain(score, other) / metric.scale(other)
    return f"{gap:.1f} points ahead of" if metric.percent else f"{gap:.1f} % {metric.better}"


def _linear(comparison: Comparison) -> str:
    """How the models compare with a linear one, or nothing where that baseline is not known."""
    linear, best, metric = comparison.linear, comparison.entries[0], comparison.metric
    if linear is None:
        return ""
    verb = "answers" if metric == ACCURACY else "reaches"
    given = (
        f"a linear model of the whole input ({linear.about}) {verb}: {metric.show(linear.score)}."
    )
    tie = TIE * metric.scale(linear.score)
    above = [
        e.mixer
        for e in comparison.entries
        if metric.gain(e.score_mean, linear.score) > max(e.score_std, tie)
    ]
    if above and metric == ACCURACY:
        verb = "answers" if len(above) == 1 else "answer"
        return f" {listing(above)} {verb} more than {given}"
    if above:
        verb = "is" if len(above) == 1 else "are"
        return f" {listing(above)} {verb} {metric.better} what {given}"
    if metric.gain(linear.score, best.score_mean) > max(best.score_std, tie):
        return f" No model reaches what {given}"
    return f" {best.mixer} is not told apart from what {given}"


def _sized(entry: Entry) -> str:
    grows = ", growing" if entry.grows else ""
    return f"{entry.mixer}: {count(entry.state_size)}{grows}"


def _range(metric: Metric, values: Sequence[float]) -> str:
    low, high = metric.show(min(values)), metric.show(max(values))
    return high if low == high else f"{low} to {high}"


def _scores(comparison: Comparison) -> str:
    entries, able, metric = comparison.entries, learnt(comparison), comparison.metric
    text = ""
    if able:
        top = leaders(metric, able)
        best, rest = top[0], [entry for entry in able if entry not in top]
        seeds = f"{len(best.curves)} seed{'s' if len(best.curves) != 1 else ''}"
        each = f"mean over {seeds} at the best learning rate"
        text = f"{listing([e.mixer for e in top])}: {_range(metric, [e.score_mean for e in top])}"
        text += f" ({each})"
        if rest:
            text += f"; next comes {rest[0].mixer} with {metric.show(rest[0].score_mean)}"
        if len(rest) > 1 and apart(metric, rest[0], rest[-1]):
            text += f", last {rest[-1].mixer} with {metric.show(rest[-1].score_mean)}"
        text += ". "
    text += _baselines(comparison)
    failed = [entry for entry in entries if entry not in able]
    if failed and not comparison.trivial:
        text += f"Of {listing([e.mixer for e in failed])} a seed diverged."
    elif failed:
        verb = "is" if len(failed) == 1 else "are"
        text += f" {listing([e.mixer for e in failed])} {verb} not clearly {metric.better} that"
        # A seed may have learnt it: that is said below.
        if any(_unsure(metric, e) for e in failed):
            text += " in the mean over seeds"
        else:
            text += f": {'it' if len(failed) == 1 else 'they'} did not learn the task"
        text += "." if len(failed) == 1 else ", and between them there is no order."
    unsure = [f"{e.mixer} ({_range(metric, e.scores)})" for e in entries if _unsure(metric, e)]
    if unsure:
        text += f" Whether it learns the task depends on the seed for {listing(unsure)}."
    return text.strip() + _first_to_90(entries)


def _unsure(metric: Metric, entry: Entry) -> bool:
    return entry.score_std > UNSURE * metric.scale(entry.score_mean)


def _baselines(comparison: Comparison) -> str:
    """What can be had without a model, in a sentence."""
    metric, chance, unbound = comparison.metric, comparison.chance, comparison.unbound
    if not comparison.trivial:
        return ""
    if chance is None:
        return f"{capitalized(comparison.trivial)} gives {metric.show(unbound)}."
    said = f"{comparison.trivial} {metric.show(unbound)}."
    if metric.gain(unbound, chance) <= 0:
        return capitalized(said)
    verb = "answer" if metric == ACCURACY else "give"
    return f"Guessing would {verb} {metric.show(chance)}, {said}"


def _first_to_90(entries: Sequence[Entry]) -> str:
    """Who got to 90 % first, if no seed of another was as soon as its slowest one."""
    timed = sorted(
        (e for e in entries if e.steps_to_90 is not None), key=lambda e: e.steps_to_90 or 0.0
    )
    if not timed or len(entries) == 1:
        return ""
    slowest = max(_reached(timed[0]), default=math.inf)
    first = [e for e in timed if e is timed[0] or min(_reached(e), default=0.0) <= slowest]
    after = sorted({count(e.steps_to_90) for e in first}, key=lambda text: (len(text), text))
    when = after[0] if len(after) == 1 else f"{after[0]} to {after[-1]}"
    if len(first) == 1:
        return f" {first[0].mixer} was first to reach 90 %, after {when} steps."
    return f" {listing([e.mixer for e in entries if e in first])} reach 90 % after {when} steps."


def _reached(entry: Entry) -> list[float]:
    """Of each seed the first step at which its accuracy was 90 %."""
    found = [curve.steps[curve.score >= 0.9] for curve in entry.curves]
    return [float(steps[0]) for steps in found if steps.size]


def _diverged(entries: Sequence[Entry]) -> str:
    bad = [f"{e.mixer} ({e.num_diverged} of {len(e.outcomes)})" for e in entries if e.num_diverged]
    return f"Members diverged in {listing(bad)}." if bad else "No member diverged."


def _token(entry: Entry) -> str:
    """What `Entry.flops` is for: a classifier decodes nothing."""
    return "token of a sequence" if entry.cost.decode is None else "decoded token"


def _cost(entries: Sequence[Entry]) -> str:
    small, large = (f(entries, key=lambda e: e.state_size) for f in (min, max))
    cheap, dear = (f(entries, key=lambda e: e.flops) for f in (min, max))
    if len(entries) == 1:
        return (
            f"State {count(small.state_size)} numbers, {count(small.num_params)} parameters, "
            f"{count(small.flops)} operations per {_token(small)}."
        )
    if small.state_size == large.state_size:
        text = f"All have a state of {count(small.state_size)} numbers."
    else:
        text = (
            f"{small.mixer} has the smallest state, {count(small.state_size)} numbers, "
            f"{large.mixer} the largest, {count(large.state_size)}."
        )
    return text + (
        f" A {_token(cheap)} costs {cheap.mixer} {count(cheap.flops)} operations, {dear.mixer} "
        f"{count(dear.flops)}."
    )


def _compared() -> dict[str, Callable[[Entry], float | None]]:
    """What may go with the score, as it is called in a sentence."""

    def of(aspect: str, read: Callable[[Layers], float | None]) -> Callable[[Entry], float | None]:
        def number(entry: Entry) -> float | None:
            found = entry.findings or {}
            return read(found[aspect]) if aspect in found else None

        return number

    return {
        "the size of the state": lambda entry: entry.state_size,
        **{
            column.called: of(aspect.name, column.read)
            for aspect in registered()
            for column in aspect.all_columns().values()
            if column.called
        },
        "the number of parameters": lambda entry: entry.num_params,
    }


def _company(comparison: Comparison) -> str:
    """Which numbers rank the mixers as the score does; what learnt nothing shares a rank."""
    entries, able, clear = comparison.entries, learnt(comparison), []
    if len(able) < ENOUGH_LEARNT:
        return ""
    for name, read in _compared().items():
        pairs = [(e.score_mean if e in able else comparison.unbound, read(e)) for e in entries]
        known = [(a, float(b)) for a, b in pairs if b is not None and not math.isnan(b)]
        if len(known) >= ENOUGH_MODELS:
            correlation = rank_correlation(*zip(*known, strict=True))
            if abs(correlation) >= CLEAR:
                sign = "+" if correlation > 0 else "−"
                clear.append((abs(correlation), f"{name} ({sign}{abs(correlation):.2f})"))
    if not clear:
        return ""
    ordered = [text for _, text in sorted(clear, reverse=True)]
    return (
        f"Over the {len(entries)} mixers, {comparison.metric.called} ranks with {listing(ordered)} "
        "(Spearman's rank correlation; it says what goes together, not what causes what)."
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 0 if one does not vary.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0, 3.0], [10.0, 40.0, 90.0, 90.0])
        1.0
    """

    def ranks(values: Sequence[float]) -> np.ndarray:
        v = np.asarray(values, float)
        return np.array([np.mean(np.flatnonzero(np.sort(v) == one)) for one in v])

    a, b = ranks(x), ranks(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return round(float(np.corrcoef(a, b)[0, 1]), 12)


def _doubts(comparison: Comparison) -> list[str]:
    entries, metric = comparison.entries, comparison.metric
    top, doubts = leaders(metric, learnt(comparison) or entries), []
    seeds = min(len(entry.curves) for entry in entries)
    if seeds < ENOUGH_SEEDS:
        doubts.append(
            f"{seeds} seed{'s' if seeds > 1 else ''} per learning rate: "
            + ("no scatter is known" if seeds == 1 else "the scatter is a guess")
            + f"; {ENOUGH_SEEDS} or more would show better which mixers differ."
        )
    edge = [e.mixer for e in entries if _at_edge(e)]
    if edge:
        whose = listing(edge) if len(edge) <= FEW else f"{len(edge)} of {len(entries)} mixers"
        doubts.append(
            f"The best learning rate of {whose} is the smallest or largest that was tried: "
            "a better one may lie beyond."
        )
    rising = [
        e.mixer for e in entries if e.mixer not in {t.mixer for t in top} and _rising(metric, e)
    ]
    if rising:
        doubts.append(
            f"{listing(rising)} {'was' if len(rising) == 1 else 'were'} still improving when "
            "training ended: more steps may change the order."
        )
    sizes = [entry.num_params for entry in entries]
    if max(sizes) > SIZES * min(sizes):
        doubts.append(
            f"The models have {count(min(sizes))} to {count(max(sizes))} parameters: they are not "
            "of one size."
        )
    bad = [e.mixer for e in entries if any(c.status == "diverged" for c in e.curves)]
    if bad:
        worst = f"{100 * metric.worst:.0f} %" if metric.percent else metric.show(metric.worst)
        doubts.append(
            f"At their best learning rate seeds of {listing(bad)} diverged; they count as {worst}."
        )
    return doubts


def _at_edge(entry: Entry) -> bool:
    tried = sorted({outcome.point.learning_rate for outcome in entry.outcomes})
    return len(tried) > 1 and entry.learning_rate in (tried[0], tried[-1])


def _rising(metric: Metric, entry: Entry) -> bool:
    """Whether some seed was neither solved nor stopped, and gained over its last evaluation."""

    def rises(before: float, last: float) -> bool:
        return metric.gain(last, before) > TIE * metric.scale(before)

    return any(
        curve.status == "finished" and len(curve.score) > 1 and rises(*curve.score[-2:].tolist())
        for curve in entry.curves
    )
