"""Which mixer follows from which results, and what is said of them: made-up numbers."""

import dataclasses
import math
from typing import Any

import pytest

from dsfjax import tasks
from dsfjax.guidance import Advice, Profile, recommend
from dsfjax.guidance.advice import Price
from dsfjax.guidance.ranking import Ranking, neighbours, rank, standings
from dsfjax.tasks import MSE
from tests.guidance.results import evidence

PROFILE = Profile(length=4096, demands=("recall",), vocab_size=16)
FOUR = [
    evidence("softmax_attention", 0.99),
    evidence("ssd", 0.985, 0.02),
    evidence("s6", 0.75),
    evidence("rg_lru", 0.51),
]


def said(ranking: Ranking) -> str:
    return " ".join(ranking.doubts)


def test_gains_ties_and_what_has_not_learnt() -> None:
    ranking = rank(PROFILE, "recall", FOUR)
    places = {p.mixer: (p.rank, round(p.gain, 3)) for p in ranking.places}
    assert places == {
        "softmax_attention": (1, 1.0),
        "ssd": (1, 0.99),  # 0.5 points behind, and its seeds scatter by 2
        "s6": (3, 0.51),
        "rg_lru": (4, 0.0),
    }
    on = [next(iter(p.on.values())) for p in ranking.places]
    assert [(one.top, one.best.learnt) for one in on] == [
        (True, True),
        (True, True),
        (False, True),
        (False, False),
    ]
    assert ranking.places[0].reason == "at the top on made_up, L = 64 (99.0 ± 1.0 %, 4 seeds)"
    assert ranking.places[3].reason.endswith("(51.0 ± 1.0 %, not learnt, 4 seeds)")


def test_an_error_is_better_the_lower_it_is() -> None:
    errors = {"metric": MSE, "trivial": 1.0}
    found = standings([evidence(f"m{x}", x, **errors) for x in (0.9, 0.4, 0.7, math.inf)])
    assert [(name, round(one.gain, 3)) for name, one in found.items()] == [
        ("m0.4", 1.0),
        ("m0.7", 0.5),
        ("m0.9", 0.167),
        ("minf", 0.0),
    ]
    errors["trivial"] = math.inf  # nobody knows: one error over the other
    found = standings([evidence(f"m{x}", x, **errors) for x in (0.4, 0.8)])
    assert [one.gain for one in found.values()] == [1.0, 0.5]


def test_the_nearest_tasks_by_demands_then_length_then_inputs() -> None:
    more = {"both": ("recall", "copying"), "long": ("recall",), "values": ("recall",)}
    lengths = {"both": 4096, "long": 1024, "values": 4096}
    known = [
        *FOUR,
        *(
            evidence("ssd", 0.9, task=task, demands=more[task], length=lengths[task])
            for task in ("both", "long")
        ),
        evidence("ssd", 0.9, task="values", length=4096, vocab_size=0),
    ]
    near = neighbours(PROFILE, known)
    assert [(each.first.task, each.distance) for each in near] == [
        ("long", (1, 0, 2.0, 0.0)),
        ("values", (1, 0, 3.0, 0.0)),
        ("made_up", (1, 0, 6.0, 0.0)),
        ("both", (1, 1, 0.0, 0.0)),
    ]
    assert [each.why for each in near] == [
        "4× shorter",
        "the same length, reads values",
        "64× shorter",
        "the same length, 1 demand not shared",
    ]
    itself = neighbours(dataclasses.replace(PROFILE, task="made_up"), known)
    assert [each.first.task for each in itself] == ["made_up", "long", "values", "both"]
    # On one task of three: named, not ranked.
    ranking = rank(PROFILE, "recall", known)
    assert [place.mixer for place in ranking.places] == ["ssd"]
    assert ranking.unranked == ("softmax_attention", "s6", "rg_lru")
    assert "on too few of these tasks: softmax_attention" in said(ranking)


def test_how_thin_it_is() -> None:
    assert said(rank(PROFILE, "recall", FOUR)).startswith(
        "1 task with this demand, 4 results of 4 seeds, from 1 experiment at scale small; the "
        "largest model has 5 k parameters. None of these tasks has more than 64 steps; this "
        "extrapolates 64×."
    )
    own = [evidence("s6", 0.9, 0.2, seeds=2, source="my_run", scale=""), *FOUR]
    short = dataclasses.replace(PROFILE, length=8, demands=("recall", "copying"))
    short = dataclasses.replace(short, vocab_size=0, channels=1)
    text = said(rank(short, "recall", own))
    for sentence in (
        "5 results of 2 to 4 seeds, from 1 experiment at scale small and my_run;",
        "None of these tasks has fewer than 64 steps.",
        "None of these tasks reads values.",
        "None of these tasks demands the same and nothing else.",
        "Some of these results have fewer than 3 seeds.",
        "Seeds of s6 scatter too far to say how good it is.",
        "best of its settings, of which 1 to 2 were tried.",
    ):
        assert sentence in text
    nobody = rank(PROFILE, "recall", [evidence("ssd", 0.5), evidence("s6", 0.49)])
    assert nobody.places == () and "No mixer learnt made_up, L = 64: no order" in said(nobody)


def test_without_evidence_there_is_no_ranking() -> None:
    advice = recommend(dataclasses.replace(PROFILE, demands=("language",)), FOUR)
    (ranking,) = advice.rankings
    assert ranking.places == ranking.neighbours == ()
    assert said(ranking).startswith("Nothing was run that demands language: no mixer is ranked.")
    assert advice.answer == (
        "No result says which architecture to take. For language there is no evidence."
    )


def priced(**limits: Any) -> Advice:
    """Advice with a cache of a megabyte next to a state of a kilobyte."""
    profile = dataclasses.replace(PROFILE, **limits)
    prices = {
        "softmax_attention": Price(1_000_000, True, 9, 9.0),
        "ssd": Price(1_000, False, 9, 9.0),
    }
    return dataclasses.replace(recommend(profile, FOUR, priced=False), prices=prices)


def test_memory_and_budget() -> None:
    assert priced().answer == (
        "Try softmax_attention first. For recall: at the top on made_up, L = 64 (99.0 ± 1.0 %, 4 "
        "seeds). Seeds do not tell it from ssd."
    )
    tight = priced(decode_memory=64_000.0, tokens=500_000.0, steps=100.0)
    assert tight.order == ["ssd", "s6", "rg_lru", "softmax_attention"]
    assert tight.answer.startswith("Try ssd first.")
    assert tight.answer.endswith("softmax_attention would need more than 64 kB.")
    over = {p.mixer: tight.over(p) for p in tight.rankings[0].places}
    assert over["softmax_attention"] == ["memory", "tokens"] and over["ssd"] == ["tokens"]
    assert priced(decode_memory=1.0).answer.startswith("Try s6 first.")  # whose price nobody knows


def test_several_demands_are_judged_by_the_worst() -> None:
    track = {"task": "track", "demands": ("state-tracking",)}
    known = [*FOUR, evidence("softmax_attention", 0.55, **track), evidence("s6", 0.95, **track)]
    both = dataclasses.replace(PROFILE, demands=("recall", "state-tracking"))
    advice = recommend(both, known, priced=False)
    assert advice.order == ["s6", "softmax_attention"]
    assert "For state-tracking: at the top on track, L = 64" in advice.answer


def test_demands_of_which_the_results_say_the_same_are_one() -> None:
    demands = ("smoothing", "classification")
    known = [dataclasses.replace(one, demands=demands) for one in FOUR]
    both = dataclasses.replace(PROFILE, demands=(*demands, "language"))
    advice = recommend(both, known, priced=False)
    assert [ranking.demands for ranking in advice.rankings] == [demands, ("language",)]
    assert "For smoothing and classification: at the top on" in advice.answer


def test_a_profile_that_cannot_be() -> None:
    for own, message in (
        ({"demands": ()}, "expected what the task demands, one or more of recall"),
        ({"demands": ("recal",)}, "unknown demand 'recal'; did you mean 'recall'?"),
        ({"length": 0}, "expected a length >= 1, got 0"),
        ({"channels": 2}, "one of them, got vocabulary 16 and 2 channels"),
        ({"vocab_size": 0}, "one of them, got vocabulary 0 and 0 channels"),
        ({"decode_memory": 0.0}, "expected decode memory > 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            dataclasses.replace(PROFILE, **own)


def test_every_task_says_what_it_demands() -> None:
    for name in tasks.names():
        demands = tasks.kind(name).demands
        assert demands and {*demands} <= {*tasks.DEMANDS}, name
