"""Times of several contestants that take turns, so that a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)

# Threads of the last contestant spin for a moment; the next one starts when they have stopped.
REST_S = 0.005
# Caches and freed pages are as the last contestant left them: who follows one that takes much
# memory pays for it, a loop that runs one thing again and again does not. A run that takes so long
# hides it.
LONG_S = 1.0
LEAST = 3


def take_turns(
    runs: Mapping[K, Callable[[], Any]], *, repeats: int, budget_s: float = 4.0
) -> dict[K, float]:
    """Median times in milliseconds, of runs that follow one of their own.

    Who takes over from another runs twice, and the second run counts, unless the first was long.

    Args:
        runs: What to time; each waits for its own result and has run before, in this order.
        repeats: Rounds, each of which gives every run one time.
        budget_s: A slow one stops after this time, but not before three rounds.

    Returns:
        The median of each.

    Example:
        >>> sorted(take_turns({"a": lambda: None, "b": lambda: None}, repeats=3))
        ['a', 'b']
    """
    times: dict[K, list[float]] = {name: [] for name in runs}
    last = list(runs)[-1] if runs else None
    for _ in range(repeats):
        for name, run in runs.items():
            if len(times[name]) >= LEAST and sum(times[name]) > budget_s:
                continue
            time.sleep(REST_S)
            seconds = _seconds(run)
            if name != last and seconds < LONG_S:
                seconds = _seconds(run)
            times[name].append(seconds)
            last = name
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
