"""Curves of retention by age, against a loop."""

import numpy as np

from dsfjax import analysis
from dsfjax.aspects.memory_curves import FLOOR, Measured, Memory, Reduced, summarise


def test_by_age_and_until_asked() -> None:
    rng = np.random.default_rng(0)
    marks, asked, steps = np.array([[1, 3], [2, 0]]), np.array([[4, 5], [2, 5]]), 6
    state = rng.uniform(0.1, 1.0, (2, 2, steps, 3))
    state[0, 1, 5] = 0.0  # nothing left counts as next to nothing
    output, predicted = state / 2, state * 2
    for (b, m), mark in np.ndenumerate(marks):
        for values in (state, output, predicted):
            values[b, m, :mark] = np.nan
    agreement = analysis.Agreement(*(np.float64(x) for x in (0.5, 2.0, 3.0, 9.0)))  # type: ignore

    def trace(state: np.ndarray | None) -> Memory:
        retention = analysis.Retention(state, output, predicted)  # type: ignore
        ages, lives = np.zeros((2, steps)), np.ones((2, 3))
        measured = Measured(None, lives, ages, retention, marks, asked)  # type: ignore
        return summarise(Reduced(np.ones(steps), agreement, measured))  # type: ignore

    found = trace(state)
    for age in range(steps):
        values = [
            max(state[b, m, mark + age, h], FLOOR)
            for (b, m), mark in np.ndenumerate(marks)
            for h in range(3)
            if mark + age < steps
        ]
        expected = np.exp(np.mean(np.log(values))) if values else np.nan
        assert found.state is not None
        np.testing.assert_allclose(found.state[age], expected)
    assert not np.isnan(found.predicted).any()  # the token at step 0 has every age
    left = [
        max(state[b, m, asked[b, m], h], FLOOR)
        for b in range(2)
        for m in range(2)
        for h in range(3)
    ]
    np.testing.assert_allclose(found.until_asked, np.exp(np.mean(np.log(left))))
    assert (found.correlation, found.ratio) == (0.5, 2.0)
    without = trace(None)
    assert without.state is None
    np.testing.assert_array_equal(without.traced, without.output)
