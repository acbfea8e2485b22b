"""A metric's direction, how it is shown, what counts, and JSON."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.tasks import ACCURACY, BITS_PER_BYTE, MAE, MSE, PERPLEXITY, Metric
from dsfjax.tasks.metric import from_json, to_json

ERRORS = Metric("error_rate", higher_is_better=False, percent=True)


def test_order_and_gain_follow_the_direction() -> None:
    assert sorted([0.2, None, 0.9], key=ACCURACY.order) == [0.9, 0.2, None]
    assert sorted([0.2, None, 0.9], key=MSE.order) == [0.2, 0.9, None]
    assert [m.worst for m in (ACCURACY, MSE, ERRORS)] == [0.0, math.inf, 1.0]
    assert ACCURACY.gain(0.75, 0.5) == MSE.gain(0.5, 0.75) == 0.25
    assert MSE.gain(0.5, math.inf) == math.inf and MSE.gain(math.inf, math.inf) == 0.0
    assert [m.better for m in (ACCURACY, MSE)] == ["above", "below"]


def test_shares_differ_in_points_and_other_numbers_relative_to_themselves() -> None:
    assert ACCURACY.scale(0.2, 0.9) == ERRORS.scale(0.1) == 1.0
    assert MSE.scale(2.5, 4.0) == MSE.scale(math.inf, 2.5) == 2.5
    assert MSE.scale(math.inf) == 1.0


@pytest.mark.parametrize(
    ("metric", "mean", "std", "shown", "spread"),
    [
        (ACCURACY, 0.98765, 0.0123, "98.8\xa0%", "98.8 ± 1.2 %"),
        (MSE, 0.38421, 0.00321, "0.384", "0.384 ± 0.003"),
        (MAE, 0.04217, 0.0012, "0.0422", "0.0422 ± 0.0012"),
        (PERPLEXITY, 29.3742, 0.51, "29.37", "29.37 ± 0.51"),
        (PERPLEXITY, 12345.6, 78.9, "12346", "12346 ± 79"),
        (PERPLEXITY, 35543580672.0, 1.25e9, "3.554e+10", "3.554e+10 ± 1.25e+09"),
        (BITS_PER_BYTE, 1.0, 0.0, "1.000", "1.000 ± 0.000"),
        (MSE, math.inf, 0.0, "∞", "∞"),
        (MSE, 0.0, 0.0, "0.00", "0.00 ± 0.00"),
        (Metric("gain", True), -1.25, 0.5, "−1.250", "−1.250 ± 0.500"),
    ],
)
def test_how_it_is_shown(metric: Metric, mean: float, std: float, shown: str, spread: str) -> None:
    assert (metric.show(mean), metric.spread(mean, std)) == (shown, spread)


def test_a_heading_has_an_arrow_where_less_is_better() -> None:
    assert [m.heading for m in (ACCURACY, MSE, BITS_PER_BYTE)] == [
        "accuracy",
        "MSE ↓",
        "bits per byte ↓",
    ]


def test_a_perplexity_is_a_function_of_the_mean() -> None:
    nats = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(PERPLEXITY.of_mean(nats.mean()), np.exp(2.0), rtol=1e-12)
    np.testing.assert_array_equal(MSE.of_mean(nats), nats)


def test_json() -> None:
    assert from_json(to_json((MSE, MAE, PERPLEXITY))) == (MSE, MAE, PERPLEXITY)
    assert from_json(None) == from_json([]) == (ACCURACY,)
