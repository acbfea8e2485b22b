"""The nearest tasks with a demand, who did best on them, and how thin that is.

**How near** a task is: first, whether it is the asked task itself, at another length or with other
options; then how many demands one of the two has and the other has not; then by how many doublings
their lengths differ, plus `OTHER_INPUT` where one reads token ids and the other values; then by how
many doublings their vocabularies differ. A task that lacks the demand is never a neighbour.

**Who did best.** On each task a mixer is represented by the best of its settings. Its *gain* is
the way from the trivial answer to the best mixer of that task that it has gone: 1 for the best, 0
for one that is not clearly better than the trivial answer. Means that the seeds do not tell apart
are a tie. Mixers are ranked by their mean gain over the nearest tasks; one that ran on fewer than
half of them is named and not ranked. A task on which no mixer is better than the trivial answer
ranks none.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsfjax import systems, tasks
from dsfjax._util.words import count, listing, unit
from dsfjax.guidance.evidence import Evidence
from dsfjax.guidance.profile import Profile

NEAREST = 3
"""Tasks that rank the mixers of a demand."""
OTHER_INPUT = 3.0
"""Doublings of length that count as much as token ids in place of values."""
ENOUGH_SEEDS = 3
NAMED = 8  # architectures that a sentence lists by name
UNSURE = 0.1
"""Seeds that scatter further do not say how good a mixer is."""


class Standing(NamedTuple):
    """A mixer on a task.

    Attributes:
        best: Its best setting.
        settings: How many were tried.
        gain: The way from the trivial answer to the best mixer that it has gone, in [0, 1].
        top: Whether the seeds do not tell it from the best mixer, and it has learnt the task.
    """

    best: Evidence
    settings: int
    gain: float
    top: bool

    @property
    def score(self) -> str:
        """Mean and standard deviation in words."""
        said = self.best.metric.spread(self.best.mean, self.best.std)
        said = said if self.best.metric.percent else f"{self.best.metric.called} {said}"
        return said if self.best.learnt else f"{said}, not learnt"


@dataclass(frozen=True)
class Neighbour:
    """A task with the demand, and everything that ran on it.

    Attributes:
        label: The task in words.
        other_task: Whether it is not the asked task itself, at whatever length and options.
        other_demands: Demands that it has and the asked task has not, or the other way round.
        longer: Asked length over its own.
        other_input: Whether one reads token ids and the other values.
        width: Doublings between the vocabularies.
        standings: Mixer to how it did, the best first.
    """

    label: str
    other_task: bool
    other_demands: int
    longer: float
    other_input: bool
    width: float
    standings: dict[str, Standing]

    @property
    def distance(self) -> tuple[float, ...]:
        """What neighbours are sorted by."""
        doublings = abs(math.log2(self.longer)) + OTHER_INPUT * self.other_input
        return float(self.other_task), float(self.other_demands), doublings, self.width

    @property
    def tells(self) -> bool:
        """Whether a mixer has learnt it."""
        return any(standing.top for standing in self.standings.values())

    @property
    def first(self) -> Evidence:
        """The best result."""
        return next(iter(self.standings.values())).best

    @property
    def why(self) -> str:
        """How near it is, in words."""
        said = ["the same length"]
        if self.longer != 1:
            times = _times(max(self.longer, 1 / self.longer))
            said = [f"{times} {'shorter' if self.longer > 1 else 'longer'}"]
        if self.other_input:
            said.append(f"reads {self.first.inputs}")
        if self.other_demands:
            said.append(f"{self.other_demands} demand{'s' * (self.other_demands > 1)} not shared")
        return ", ".join(said)


@dataclass(frozen=True)
class Place:
    """A mixer in the ranking of a demand.

    Attributes:
        rank: 1 for the first; the same for mixers that seeds do not tell from the first of them.
        mixer: The architecture.
        gain: Mean over the tasks on which it ran.
        on: Task to how it did there, the nearest first.
    """

    rank: int
    mixer: str
    gain: float
    on: dict[str, Standing]

    @property
    def steps(self) -> int:
        """Training steps that the longest of these results took."""
        return max(standing.best.steps for standing in self.on.values())

    @property
    def tokens(self) -> int:
        """Training tokens that the longest of these results took."""
        return max(standing.best.tokens for standing in self.on.values())

    @property
    def reason(self) -> str:
        """How it did, in words, the nearest task first."""
        said = []
        for label, one in self.on.items():
            seeds = f"{one.best.seeds} seed{'s' * (one.best.seeds > 1)}"
            place = "at the top on" if one.top else "on"
            said.append(f"{place} {label} ({one.score}, {seeds})")
        return "; ".join(said)


@dataclass(frozen=True)
class Ranking:
    """What the results say of one demand, or of several of which they say the same.

    Attributes:
        demands: The demands.
        neighbours: The nearest tasks with it, the nearest first; empty if nothing was run.
        places: The mixers, the best first; empty where no neighbour tells them apart.
        unranked: Mixers that ran on too few of the neighbours.
        doubts: How thin the evidence is, in sentences.
    """

    demands: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    places: tuple[Place, ...]
    unranked: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def called(self) -> str:
        """The demands in a sentence."""
        return listing(list(self.demands))


def rank(profile: Profile, demand: str, evidence: Iterable[Evidence]) -> Ranking:
    """Rank the mixers by what was run on the nearest tasks with a demand.

    Args:
        profile: The asked task.
        demand: One of its demands.
        evidence: All results.

    Returns:
        The ranking; without evidence for the demand it has no places and says so.
    """
    fitting = [one for one in evidence if demand in one.demands]
    near = neighbours(profile, fitting)
    used, telling = near[:NEAREST], [each for each in near[:NEAREST] if each.tells]
    found = {
        mixer: {each.label: each.standings[mixer] for each in telling if mixer in each.standings}
        for mixer in dict.fromkeys(mixer for each in telling for mixer in each.standings)
    }
    ranked = {mixer: on for mixer, on in found.items() if 2 * len(on) >= len(telling)}
    doubts = _doubts(profile, demand, fitting, near, ranked)
    unranked = tuple(mixer for mixer in found if mixer not in ranked)
    return Ranking((demand,), tuple(used), tuple(_places(ranked)), unranked, tuple(doubts))


def neighbours(profile: Profile, evidence: Iterable[Evidence]) -> list[Neighbour]:
    """The tasks of some results, the nearest first.

    Args:
        profile: The asked task.
        evidence: The results.
    """
    by_label: dict[str, list[Evidence]] = {}
    for one in evidence:
        by_label.setdefault(one.label, []).append(one)
    found = []
    for label, own in by_label.items():
        first = own[0]
        both = profile.vocab_size and first.vocab_size
        width = abs(math.log2(profile.vocab_size / first.vocab_size)) if both else 0.0
        found.append(
            Neighbour(
                label,
                profile.task != first.task,
                len({*profile.demands} ^ {*first.demands}),
                profile.length / first.length,
                profile.inputs != first.inputs,
                width,
                standings(own),
            )
        )
    return sorted(found, key=lambda each: each.distance)


def standings(evidence: Sequence[Evidence]) -> dict[str, Standing]:
    """How mixers did on one task.

    Args:
        evidence: Its results.

    Returns:
        Mixer to its standing, the best first.
    """
    metric = evidence[0].metric
    by_mixer: dict[str, list[Evidence]] = {}
    for one in sorted(evidence, key=lambda one: metric.order(one.mean)):
        by_mixer.setdefault(one.mixer, []).append(one)
    top = next(iter(by_mixer.values()))[0]
    return {
        mixer: Standing(
            own[0],
            len(own),
            _gain(own[0], top) if own[0].learnt else 0.0,
            own[0].learnt and not metric.apart((own[0].mean, own[0].std), (top.mean, top.std)),
        )
        for mixer, own in by_mixer.items()
    }


def _gain(one: Evidence, best: Evidence) -> float:
    metric, trivial = one.metric, best.trivial
    if not math.isfinite(one.mean) or not math.isfinite(best.mean):
        return float(one is best)
    if math.isfinite(trivial):
        whole = metric.gain(best.mean, trivial)
        return min(1.0, max(0.0, metric.gain(one.mean, trivial) / whole)) if whole > 0 else 0.0
    # Without a trivial answer, as the one error over the other.
    low, high = sorted((abs(one.mean), abs(best.mean)))
    return low / high if high else 1.0


def _places(ranked: dict[str, dict[str, Standing]]) -> list[Place]:
    gains = {mixer: sum(s.gain for s in on.values()) / len(on) for mixer, on in ranked.items()}
    places: list[Place] = []
    for i, mixer in enumerate(sorted(ranked, key=lambda mixer: -gains[mixer])):
        leader = next((p for p in places if p.rank == places[-1].rank), None)
        tied = leader is not None and _tied(leader.on, ranked[mixer])
        position = leader.rank if leader is not None and tied else i + 1
        places.append(Place(position, mixer, gains[mixer], ranked[mixer]))
    return places


def _tied(a: dict[str, Standing], b: dict[str, Standing]) -> bool:
    """Whether seeds tell two mixers apart on no task that both ran on, and there is one."""
    shared = [(a[label].best, b[label].best) for label in a if label in b]
    apart = (x.metric.apart((x.mean, x.std), (y.mean, y.std)) for x, y in shared)
    return bool(shared) and not any(apart)


def _doubts(
    profile: Profile,
    demand: str,
    fitting: Sequence[Evidence],
    near: Sequence[Neighbour],
    ranked: dict[str, dict[str, Standing]],
) -> list[str]:
    if not near:
        known = [name for name in tasks.names() if demand in tasks.kind(name).demands]
        which = f" on {' or '.join(known[:NEAREST])}" if known else ""
        return [
            f"Nothing was run that demands {demand}: no mixer is ranked. Compare some{which}, and "
            "name the folder of the runs."
        ]
    seeds = [one.seeds for one in fitting]
    each = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    said = [
        f"{_several(len(near), 'task')} with this demand, {_several(len(fitting), 'result')} of "
        f"{each} seed{'s' * (max(seeds) > 1)}, from {listing(_sources(fitting))}; the largest "
        f"model has {unit(max(one.num_params for one in fitting))} parameters."
    ]
    used = near[:NEAREST]
    lengths = [each.first.length for each in used]
    if profile.length > max(lengths):
        times = _times(profile.length / max(lengths))
        said.append(
            f"None of these tasks has more than {count(max(lengths))} steps; this extrapolates "
            f"{times}."
        )
    if profile.length < min(lengths):
        said.append(f"None of these tasks has fewer than {count(min(lengths))} steps.")
    if all(each.other_input for each in used):
        said.append(f"None of these tasks reads {profile.inputs}.")
    if all(each.other_demands for each in used):
        said.append("None of these tasks demands the same and nothing else.")
    if silent := [each.label for each in used if not each.tells]:
        said.append(
            f"No mixer learnt {listing(silent)}: no order follows from {_them(len(silent))}."
        )
    standing = [one for on in ranked.values() for one in on.values()]
    if any(one.best.seeds < ENOUGH_SEEDS for one in standing):
        said.append(f"Some of these results have fewer than {ENOUGH_SEEDS} seeds.")
    loose = [
        mixer
        for mixer, on in ranked.items()
        if any(s.best.std > UNSURE * s.best.metric.scale(s.best.mean) for s in on.values())
    ]
    if loose:
        said.append(f"Seeds of {listing(loose)} scatter too far to say how good {_they(loose)}.")
    tried = {s.settings for s in standing}
    if len(tried) > 1:
        said.append(
            f"A mixer counts with the best of its settings, of which {min(tried)} to {max(tried)} "
            "were tried."
        )
    absent = [name for name in systems.names() if name not in ranked]
    if ranked and absent:
        named, rest = absent[:NAMED], len(absent[NAMED:])
        more = f", and {rest} others of `dsfjax systems`" if rest else ""
        said.append(f"Not run, or on too few of these tasks: {listing(named)}{more}.")
    return said


def _times(value: float) -> str:
    return f"{value:.2g}×" if value < 10 else f"{count(value)}×"


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _them(number: int) -> str:
    return "it" if number == 1 else "them"


def _they(names: Sequence[str]) -> str:
    return "it is" if len(names) == 1 else "they are"


def _sources(evidence: Iterable[Evidence]) -> list[str]:
    """Where results are from: the experiments of each scale counted, folders by name."""
    by_scale: dict[str, set[str]] = {}
    folders = {}
    for one in evidence:
        if one.scale:
            by_scale.setdefault(one.scale, set()).add(one.source)
        else:
            folders[one.source] = None
    counted = [
        f"{_several(len(names), 'experiment')} at scale {scale}"
        for scale, names in by_scale.items()
    ]
    return [*counted, *folders]
