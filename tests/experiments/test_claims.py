"""What the numbers say of a claim."""

import math
from typing import Any

import numpy as np
import pytest

from dsfjax.tasks import MAE, MSE
from dsfjax.tasks.metric import to_json
from experiments import page, plots
from experiments.claims import Claim, judge

AXES = {"num_kv_pairs": 4, "d_state": 8}
A_OVER_B = Claim("a recalls more than b", better={"series": "a"}, worse={"series": "b"})


def point(series: str, mean: float, std: float = 0.0, **axes: Any) -> dict[str, Any]:
    return {"series": series, "mean": mean, "std": std, "seq_len": 64, "d_model": 8} | AXES | axes


@pytest.mark.parametrize(
    "a, b, word",
    [
        ((0.9, 0.1), (0.5, 0.2), "confirmed"),
        ((0.9, 0.4), (0.5, 0.45), "not confirmed"),  # pooled: √((0.16 + 0.2025) / 2) = 0.426
        ((0.9, 0.4), (0.5, 0.39), "confirmed"),  # pooled: 0.395
        ((0.504, 0.0), (0.5, 0.0), "not confirmed"),  # within half a point
        ((0.5, 0.1), (0.9, 0.1), "not confirmed"),
    ],
)
def test_a_difference_counts_above_the_pooled_deviation(
    a: tuple[float, float], b: tuple[float, float], word: str
) -> None:
    verdict = judge(A_OVER_B, [point("a", *a), point("b", *b)])
    assert verdict.word == word
    assert math.isclose(verdict.gain, a[0] - b[0])


def test_half_of_the_pairs_are_enough_and_one_against_is_too_many() -> None:
    def at(width: int, a: float, b: float) -> list[dict[str, Any]]:
        return [point("a", a, d_model=width), point("b", b, d_model=width)]

    confirmed = judge(A_OVER_B, at(8, 0.9, 0.5) + at(16, 1.0, 1.0))
    assert confirmed[:4] == ("confirmed", 1, 0, 2)
    assert judge(A_OVER_B, at(8, 0.9, 0.5) + at(16, 1.0, 1.0) + at(32, 1, 1)).word != "confirmed"
    against = judge(A_OVER_B, at(8, 0.9, 0.5) + at(16, 0.9, 0.5) + at(32, 0.5, 0.9))
    assert against[:4] == ("not confirmed", 2, 1, 3)


def test_points_are_compared_where_all_other_axes_agree() -> None:
    points = [point("a", 0.9, d_model=8), point("b", 0.1, d_model=16)]
    assert judge(A_OVER_B, points).word == "not run"
    anyway = Claim("", {"series": "a", "d_model": "any"}, {"series": "b", "d_model": "any"})
    assert judge(anyway, points).word == "confirmed"


def test_the_ends_of_an_axis() -> None:
    grows = Claim("", {"series": "a", "d_state": "largest"}, {"series": "a", "d_state": "smallest"})
    points = [point("a", accuracy, d_state=n) for n, accuracy in ((2, 0.1), (4, 0.0), (8, 0.7))]
    verdict = judge(grows, [*points, point("b", 1.0, d_state=16)])
    assert (verdict.word, verdict.pairs) == ("confirmed", 1)
    assert math.isclose(verdict.gain, 0.6)


def test_maxima_have_no_deviation() -> None:
    """Two models that reach the same at best, one of them seldom."""
    points = [point("a", 0.9, 0.1, max=0.99), point("b", 0.5, 0.1, max=0.988)]
    assert judge(A_OVER_B, points).word == "confirmed"
    assert judge(A_OVER_B, points, by="max").word == "not confirmed"
    points[1]["max"] = 0.9
    assert judge(A_OVER_B, points, by="max")[:4] == ("confirmed", 1, 0, 1)


def test_points_that_did_not_learn_the_task_speak_for_nothing() -> None:
    # Naming any of the four values gives 25 %.
    below = [point("a", 0.24, max=0.26), point("b", 0.19, max=0.2)]
    assert judge(A_OVER_B, below).word == "not confirmed"
    assert judge(A_OVER_B, below, by="max").word == "not confirmed"
    scattered = [point("a", 0.4, 0.2), point("b", 0.1, 0.0)]
    assert judge(A_OVER_B, scattered).pro == 0
    assert judge(A_OVER_B, [point("a", 0.4, 0.01), point("b", 0.1, 0.0)]).pro == 1


def error(series: str, mse: float | None, std: float | None = 0.0, **task: Any) -> dict[str, Any]:
    """A point of a task that is judged by an error, of which the trivial one is 1."""
    plain = {"series": series, "d_model": 8, "d_state": 8, "trivial": 1.0, "mean": mse, "std": std}
    measured = {"measured": to_json((MSE, MAE)), "min": None if mse is None else mse / 2}
    return plain | measured | {"task": {"name": "prices", "horizon": 24} | task}


def test_less_is_better_where_the_metric_says_so() -> None:
    verdict = judge(A_OVER_B, [error("a", 0.5), error("b", 0.75)])
    assert (verdict.word, verdict.gain) == ("confirmed", 0.25)
    assert judge(A_OVER_B, [error("a", 0.5), error("b", 0.75)], by="max").gain == 0.125
    assert judge(A_OVER_B, [error("a", 0.75), error("b", 0.5)])[:3] == ("not confirmed", 0, 1)
    # Half a per cent of the smaller one; two per cent below the trivial answer.
    assert judge(A_OVER_B, [error("a", 0.5), error("b", 0.5024)]).pro == 0
    assert judge(A_OVER_B, [error("a", 0.99), error("b", 2.0)]).pro == 0
    assert judge(A_OVER_B, [error("a", 0.97), error("b", None, None)]).pro == 1


def test_sizes_of_any_task_are_axes() -> None:
    points = [error("a", 0.5, horizon=24), error("b", 0.75, horizon=48)]
    assert judge(A_OVER_B, points).word == "not run"
    short = Claim("", {"series": "a", "horizon": "smallest"}, {"series": "b", "horizon": 48})
    assert judge(short, points).word == "confirmed"


def test_errors_in_figures_and_on_the_page() -> None:
    points = [error("a", 0.5, 0.0123, horizon=h) | {"name": f"a, {h}"} for h in (24, 48)]
    points += [error("b", None, None, horizon=24) | {"name": "b, 24"}]
    figure = plots.bars(points, by=("horizon",))
    left, right = figure.axes
    assert left.get_title() == "horizon 24" and right.get_title() == "horizon 48"
    assert left.get_ylabel() == "MSE ↓\n(± std over seeds; hollow: min)"
    trivial = [line for line in right.lines if np.array_equal(line.get_ydata(), [1.0, 1.0])]
    assert len(trivial) == 1
    plain = {"learning_rate": 0.01, "state_size": 8, "diverged": 0, "members": [{}]}
    plain |= {"num_params": 2048, "steps": 100, "batch_size": 10, "seq_len": 500}
    plain |= {"train_seconds": 2.4, "tokens_per_second": 1e3, "steps_to": {}}
    shown = page._row(points[0] | plain)
    numbers = "0.500 ± 0.012 | 0.250 | 0.01 | 8 | 2,048 | 100 | 0.5 M | 0 of 1 | 2 s | 1,000"
    assert shown == f"| a, 24 | {numbers} |"
