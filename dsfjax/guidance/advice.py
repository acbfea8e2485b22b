"""The answer: rankings for every demand of a task, what the mixers cost there, and a sentence."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax

from dsfjax import nn, systems
from dsfjax._util.words import count, listing, unit
from dsfjax.cost import cost
from dsfjax.guidance.evidence import Evidence
from dsfjax.guidance.profile import Profile
from dsfjax.guidance.ranking import Place, Ranking, rank


class Price(NamedTuple):
    """What a mixer costs at the length of a profile.

    Attributes:
        memory: Bytes that decoding keeps of one sequence: state, cache, and convolution tails.
        grows: Whether they grow with the length.
        num_params: Parameters of the model.
        flops: Operations of the token that follows the sequence.
    """

    memory: int
    grows: bool
    num_params: int
    flops: float


@dataclass(frozen=True)
class Advice:
    """Which architecture, from what was run.

    Attributes:
        profile: The asked task.
        rankings: One per demand; one for demands of which the results say the same.
        prices: Mixer to what it costs; empty if that was not counted.
        d_model: Width of the models that were counted.
        num_layers: Their layers.
    """

    profile: Profile
    rankings: tuple[Ranking, ...]
    prices: Mapping[str, Price]
    d_model: int = 64
    num_layers: int = 2

    @property
    def order(self) -> list[str]:
        """Mixers from the best to the worst: by the demand that each of them is worst at.

        Only those that every demand with evidence ranks; those that do not fit come last.
        """
        known = [ranking.places for ranking in self.rankings if ranking.places]
        gains = [{place.mixer: place.gain for place in places} for places in known]
        shared = [mixer for mixer in (gains or [{}])[0] if all(mixer in own for own in gains)]
        worst = {mixer: min(own[mixer] for own in gains) for mixer in shared}
        return sorted(shared, key=lambda mixer: (not self.fits(mixer), -worst[mixer]))

    def fits(self, mixer: str) -> bool:
        """Whether what it keeps of a sequence fits into the memory for decoding.

        Args:
            mixer: The mixer; one whose memory is not known fits.
        """
        limit, price = self.profile.decode_memory, self.prices.get(mixer)
        return limit is None or price is None or price.memory <= limit

    def over(self, place: Place) -> list[str]:
        """What a mixer, or the results it is ranked by, has too much of.

        Args:
            place: Its place in one of the rankings.

        Returns:
            Of "memory", "steps" and "tokens" those that are above what the profile allows.
        """
        budgets = {name: getattr(self.profile, name) for name in ("steps", "tokens")}
        took = [n for n, most in budgets.items() if most is not None and getattr(place, n) > most]
        return [*([] if self.fits(place.mixer) else ["memory"]), *took]

    @property
    def answer(self) -> str:
        """What to try first, in a sentence or two."""
        order, silent = self.order, [r.called for r in self.rankings if not r.places]
        lacking = f" For {listing(silent)} there is no evidence." if silent else ""
        if not order:
            return f"No result says which architecture to take.{lacking}"
        chosen = [mixer for mixer in order if self.fits(mixer)]
        large = [mixer for mixer in order if mixer not in chosen]
        limit = self.profile.decode_memory
        out = f" {listing(large)} would need more than {unit(limit or 0, 'B')}." if large else ""
        if not chosen:
            return f"No mixer fits.{out}{lacking}"
        first, said = chosen[0], []
        for ranking in self.rankings:
            places = {place.mixer: place for place in ranking.places}
            if first in places:
                place = places[first]
                ties = [m for m in chosen[1:] if m in places and places[m].rank == place.rank]
                also = f" Seeds do not tell it from {listing(ties)}." if ties else ""
                said.append(f"For {ranking.called}: {place.reason}.{also}")
        return f"Try {first} first. {' '.join(said)}{out}{lacking}"

    @property
    def priced(self) -> str:
        """What the prices are of, in words."""
        return (
            f"Memory, parameters and operations: of a model of {self.num_layers} "
            f"layer{'s' * (self.num_layers > 1)} of width {self.d_model} that has nothing but the "
            "mixers with what surrounds them in practice; memory is what decoding keeps of one "
            f"sequence of {count(self.profile.length)} steps, operations are those of the next one."
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "profile": asdict(self.profile),
            "order": self.order,
            "answer": self.answer,
            "rankings": [self._ranking(ranking) for ranking in self.rankings],
            "prices": {mixer: price._asdict() for mixer, price in self.prices.items()},
        }

    def _ranking(self, ranking: Ranking) -> dict[str, Any]:
        return {
            "demands": list(ranking.demands),
            "neighbours": [
                {
                    "task": each.label,
                    "distance": list(each.distance),
                    "why": each.why,
                    "learnt": each.tells,
                }
                for each in ranking.neighbours
            ],
            "places": [
                {
                    "rank": place.rank,
                    "mixer": place.mixer,
                    "gain": place.gain,
                    "reason": place.reason,
                    "steps": place.steps,
                    "tokens": place.tokens,
                    "over": self.over(place),
                    "on": {
                        label: {
                            "metric": one.best.metric.name,
                            "mean": one.best.mean if math.isfinite(one.best.mean) else None,
                            "std": one.best.std,
                            "seeds": one.best.seeds,
                            "settings": one.settings,
                            "setting": one.best.setting,
                            "gain": one.gain,
                            "top": one.top,
                            "learnt": one.best.learnt,
                            "source": one.best.source,
                        }
                        for label, one in place.on.items()
                    },
                }
                for place in ranking.places
            ],
            "unranked": list(ranking.unranked),
            "doubts": list(ranking.doubts),
        }


def recommend(
    profile: Profile,
    evidence: Iterable[Evidence],
    *,
    d_model: int = 64,
    num_layers: int = 2,
    priced: bool = True,
) -> Advice:
    """Which architectures did best on the tasks that are nearest to a profile.

    Args:
        profile: The asked task.
        evidence: Results, such as `dsfjax.guidance.shipped` and those of one's own.
        d_model: Width of the model whose cost is counted.
        num_layers: Its layers.
        priced: Whether to count costs, which traces a model per ranked mixer.

    Returns:
        The advice.
    """
    known = list(evidence)
    rankings: list[Ranking] = []
    for demand in profile.demands:
        new = rank(profile, demand, known)
        same = (i for i, one in enumerate(rankings) if replace(one, demands=new.demands) == new)
        if (i := next(same, None)) is None:
            rankings.append(new)
        else:
            rankings[i] = replace(new, demands=(*rankings[i].demands, demand))
    mixers = dict.fromkeys(place.mixer for each in rankings for place in each.places)
    prices = {
        mixer: price(mixer, profile, d_model, num_layers)
        for mixer in mixers
        if priced and mixer in systems.names()
    }
    return Advice(profile, tuple(rankings), prices, d_model, num_layers)


def price(mixer: str, profile: Profile, d_model: int, num_layers: int) -> Price:
    """What a mixer costs, in a model of nothing but mixers with what surrounds them in practice.

    Args:
        mixer: Name of an architecture.
        profile: Whose length, vocabulary or channels count.
        d_model: Width of the model.
        num_layers: Its layers.
    """
    values = {"channels": profile.channels, "head": "values", "num_outputs": profile.channels}
    config = nn.ModelConfig(
        mixer,
        vocab_size=profile.vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        block="mamba",
        surroundings="practice",
        **(values if profile.channels else {}),
    )
    model = nn.build(config)
    found = cost(model, profile.length, phases=("decode",))
    assert found.decode is not None
    memory = _state_bytes(model, profile.length)
    grows = _state_bytes(model, 2 * profile.length) > memory
    return Price(memory, grows, found.parameters, found.decode.flops)


def _state_bytes(model: nn.Model, length: int) -> int:
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: model.init_state(p, length), params)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
