"""Times of several contestants that take turns, so that a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)

# Threads of the last contestant spin for a moment; the next one starts when they have stopped.
REST_S = 0.005
LEAST = 3


def take_turns(
    runs: Mapping[K, Callable[[], Any]], *, repeats: int, budget_s: float = 4.0
) -> dict[K, float]:
    """Median times in milliseconds.

    Args:
        runs: What to time; each waits for its own result and has run before.
        repeats: Rounds, each run once per round.
        budget_s: A slow one stops after this time, but not before three rounds.

    Returns:
        The median of each.

    Example:
        >>> sorted(take_turns({"a": lambda: None, "b": lambda: None}, repeats=3))
        ['a', 'b']
    """
    times: dict[K, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if len(times[name]) >= LEAST and sum(times[name]) > budget_s:
                continue
            time.sleep(REST_S)
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
