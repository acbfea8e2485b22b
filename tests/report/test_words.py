"""Sentences follow from the numbers."""

import dataclasses

import pytest

from dsfjax.report import words
from dsfjax.report.comparison import Comparison, Entry
from tests.report.synthetic import comparison

BASE = comparison().entries[0]


def entry(mixer: str, mean: float, std: float = 0.0, steps: float | None = None) -> Entry:
    return dataclasses.replace(
        BASE, mixer=mixer, accuracy_mean=mean, accuracy_std=std, steps_to_90=steps
    )


def verdict(*entries: Entry) -> str:
    text = words.verdict(Comparison({}, 1 / 32, 1 / 4, entries))
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_clear_winner() -> None:
    text = verdict(entry("a", 0.98, 0.01, 300.0), entry("b", 0.93, 0.01, 200.0), entry("c", 0.2))
    assert text == (
        "a recalls best: it answers 98.0 % of the queries (mean over 3 seeds at its best learning "
        "rate); next comes b with 93.0 %, last c with 20.0 %. Guessing would answer 3.1 %, naming "
        "any value of the sequence 25.0 %. b was the first to reach 90 %, after 200 steps."
    )


def test_tie_is_called_a_tie() -> None:
    text = verdict(entry("a", 0.98), entry("b", 0.978), entry("c", 0.5))
    assert text.startswith(
        "a and b recall best, and 3 seeds cannot tell them apart: they answer 97.8 % to 98.0 %"
    )
    assert "next comes c with 50.0 %." in text
    assert "first to reach" not in text


def test_two_may_be_first() -> None:
    text = verdict(entry("a", 0.98, steps=200.0), entry("b", 0.93, steps=200.0), entry("c", 0.2))
    assert text.endswith("a and b were the first to reach 90 %, after 200 steps.")


def test_single_mixer_has_not_won() -> None:
    assert verdict(entry("a", 0.5)).startswith("a answers 50.0 % of the queries")


@pytest.mark.parametrize(
    ("means", "stds", "expected"),
    [
        ((0.9, 0.896), (0.0, 0.0), 2),  # within half a point
        ((0.9, 0.89), (0.0, 0.0), 1),
        ((0.9, 0.85), (0.0, 0.06), 2),  # within the second one's scatter
        ((0.9, 0.85), (0.06, 0.0), 2),
        ((0.9, 0.85), (0.04, 0.04), 1),
    ],
)
def test_leaders(means: tuple[float, ...], stds: tuple[float, ...], expected: int) -> None:
    entries = tuple(entry(str(i), m, s) for i, (m, s) in enumerate(zip(means, stds, strict=True)))
    assert len(words.leaders(entries)) == expected
