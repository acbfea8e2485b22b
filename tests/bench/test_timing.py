"""Turns and medians, with a clock of our own."""

import pytest

from dsfjax.bench import timing


class Clock:
    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def run(self, name: str, *seconds: float):
        left = list(seconds)

        def once() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return once


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    return made


def test_contestants_take_turns_and_medians_are_taken(clock: Clock) -> None:
    runs = {"a": clock.run("a", 1.0, 9.0, 2.0), "b": clock.run("b", 1.5)}
    assert timing.take_turns(runs, repeats=3, budget_s=100.0) == {"a": 2000.0, "b": 1500.0}
    assert clock.order == ["a", "b", "a", "b", "a", "b"]


def test_who_takes_over_from_another_runs_twice(clock: Clock) -> None:
    """The first run has the caches of the other, and does not count; a loop alone needs none."""
    runs = {"a": clock.run("a", *[0.9, 0.1] * 3), "b": clock.run("b", 0.5)}
    assert timing.take_turns(runs, repeats=3) == pytest.approx({"a": 100.0, "b": 500.0})
    assert clock.order == ["a", "a", "b", "b"] * 3
    clock.order.clear()
    timing.take_turns({"alone": clock.run("alone", 0.5)}, repeats=3)
    assert clock.order == ["alone"] * 3


def test_a_slow_one_stops_after_three(clock: Clock) -> None:
    runs = {"slow": clock.run("slow", 3.0), "quick": clock.run("quick", 0.1)}
    timing.take_turns(runs, repeats=6, budget_s=4.0)
    assert clock.order.count("slow") == 3
    assert clock.order.count("quick") == 3 * 2 + 3  # alone after the slow one has stopped
