"""Forecasting: files, splits, windows, errors and baselines, against NumPy."""

import math

import jax
import numpy as np
import pytest

from dsfjax.tasks import HELD_OUT, TRAIN, data
from dsfjax.tasks.time_series import PREPARATIONS, Forecast, baseline_errors, standardised
from tests.tasks.conftest import MakeUp

ROWS = 400
TRAINED, TESTED = 280, 320  # 70 %, and where the last 20 % begin


def series(rows: int = ROWS, channels: int = 8) -> np.ndarray:
    t = np.arange(rows)[:, None]
    noise = np.random.default_rng(0).normal(size=(rows, channels))
    return np.sin(t / (3 + np.arange(channels))) + 0.1 * noise + t / rows


def as_csv(values: np.ndarray) -> bytes:
    return b"".join(",".join(map(repr, map(float, row))).encode() + b"\n" for row in values)


@pytest.fixture
def exchange(made_up: MakeUp) -> np.ndarray:
    values = series()
    made_up({"ltsf_extra/exchange_rate.csv": as_csv(values)})
    seen = values[:TRAINED]
    return (values - seen.mean(axis=0)) / seen.std(axis=0)


def test_windows_and_answers_are_those_of_the_rows(exchange: np.ndarray) -> None:
    own = dict(series="exchange", horizon=3, lookback=10)
    alone = Forecast(**own)  # pyright: ignore[reportArgumentType]
    assert alone.size(TRAIN) == (TRAINED - 12) * 8
    assert alone.size(HELD_OUT) == (ROWS - TESTED - 2) * 8
    # Every held-out window is asked about once, in an order that is not that of time.
    order = np.asarray(jax.vmap(lambda i: alone.held_out(jax.random.key(0), i))(np.arange(624)))
    assert sorted(order) == list(range(624)) and list(order) != list(range(624))
    example = jax.jit(lambda pick: alone.example(pick, alone.arrays(HELD_OUT)))
    for pick in (0, 7, 623):
        window, channel = divmod(pick, 8)
        first = TESTED - 10 + window
        found = example(pick)
        seen = exchange[first : first + 10, channel]
        after = exchange[first + 10 : first + 13, channel]
        mean, deviation = seen.mean(), math.sqrt(seen.var() + 1e-5)
        np.testing.assert_allclose(found.inputs[:, 0], (seen - mean) / deviation, rtol=2e-4)
        np.testing.assert_allclose(found.targets[0, :3, 0], after, rtol=1e-5)
        # A forecast of f in units of the window has the error of f · deviation + mean.
        forecast = jax.numpy.array([[0.5, -1.0, 2.0]])
        errors = alone.measure(forecast, found.targets)
        off = np.asarray(forecast[0]) * deviation + mean - after
        np.testing.assert_allclose(errors["mse"], [np.square(off).mean()], rtol=1e-4)
        np.testing.assert_allclose(errors["mae"], [np.abs(off).mean()], rtol=1e-4)
    together = Forecast(**own, features="MS", instance_norm=False)  # pyright: ignore[reportArgumentType]
    assert (together.channels, together.num_outputs, together.size(HELD_OUT)) == (8, 3, 78)
    found = together.example(jax.numpy.int32(5), together.arrays(TRAIN))
    np.testing.assert_allclose(found.inputs, exchange[5:15], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.targets[0, :, 0], [*exchange[15:18, -1], 0, 1], rtol=1e-5)


def test_baselines_are_those_of_numpy(exchange: np.ndarray) -> None:
    errors = baseline_errors("exchange", 3)
    starts = range(TESTED, ROWS - 2)
    after = np.stack([exchange[i : i + 3] for i in starts])
    last = np.stack([exchange[i - 1 : i] for i in starts])
    assert errors["mean"][0] == pytest.approx(np.square(after).mean())
    assert errors["repeat"][1] == pytest.approx(np.abs(after - last).mean())
    assert errors["linear"][0] < errors["repeat"][0]  # sines are what it can forecast
    task = Forecast("exchange", 3)
    assert task.baselines()["trivial"].score == errors["repeat"][0]
    assert task.trivial().score == min(errors["mean"][0], errors["repeat"][0])
    on_validation = Forecast("exchange", 3, judged_on="validation")
    assert on_validation.size(HELD_OUT) == (TESTED - TRAINED - 2) * 8
    assert on_validation.baselines()["trivial"].score != errors["repeat"][0]


def test_dates_are_channels(made_up: MakeUp) -> None:
    rows = 14_500
    hours = np.datetime64("2016-07-01") + np.arange(rows).astype("timedelta64[h]")
    lines = [b"date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"]
    for hour, row in zip(hours, series(rows, 7).round(4), strict=True):
        when = str(hour).replace("T", " ") + ":00:00"
        lines.append(",".join([when, *map(str, row)]).encode())
    made_up({"ett/ETTh1.csv": b"\n".join(lines) + b"\n"})
    task = Forecast("ETTh1", horizon=24, lookback=48, calendar=True, features="S")
    assert (task.channels, task.size(HELD_OUT)) == (5, 2880 - 24 + 1)
    found = task.example(jax.numpy.int32(0), task.arrays(TRAIN))
    hour, weekday, day, year = np.asarray(found.inputs[:, 1:]).T
    np.testing.assert_allclose(hour[:25], [*np.arange(24) / 23 - 0.5, -0.5], atol=1e-6)
    assert weekday[0] == pytest.approx(4 / 6 - 0.5)  # a Friday
    assert day[0] == pytest.approx(-0.5) and year[0] == pytest.approx(182 / 365 - 0.5)


def test_what_is_wrong_is_named(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown series 'ETTh3'; did you mean 'ETTh"):
        Forecast("ETTh3")
    with pytest.raises(ValueError, match="a horizon of at most 2880 rows"):
        Forecast("ETTh1", horizon=3000)
    with pytest.raises(ValueError, match="expected a file with dates for calendar=True"):
        Forecast("weather", calendar=True)
    bad = as_csv(series()).split(b"\n")
    for change, message in (
        ({7: b"1,2,3"}, r"exchange_rate\.csv, line 8: expected 8 columns, got 3"),
        ({3: b"1,2,3,4,5,6,7,x"}, r"exchange_rate\.csv, line 4: expected 8 numbers, got 1,2"),
        ({4: b"1,2,3,4,5,6,7,nan"}, r"exchange_rate\.csv, line 5: expected finite numbers"),
    ):
        lines = [change.get(i, line) for i, line in enumerate(bad)]
        made_up({"ltsf_extra/exchange_rate.csv": b"\n".join(lines)})
        with pytest.raises(data.DataError, match=message):
            standardised("exchange")
    made_up({"ltsf_extra/exchange_rate.csv": as_csv(series(40))})
    with pytest.raises(ValueError, match="a horizon of at most 4 rows"):
        Forecast("exchange", horizon=6, lookback=4).arrays(TRAIN)
    monkeypatch.delenv("DSFJAX_DATA")
    with pytest.raises(data.MissingDataError, match="pass --data-dir or set DSFJAX_DATA"):
        standardised("ETTm2")


# Mean squared and absolute error of repeating the last value, 96 steps ahead, as published for
# LTSF-Linear (arXiv:2205.13504, table "Repeat").
REPEAT = {
    "ETTh1": (1.295, 0.713),
    "ETTh2": (0.432, 0.422),
    "ETTm1": (1.214, 0.665),
    "ETTm2": (0.266, 0.328),
    "weather": (0.259, 0.254),
    "exchange": (0.081, 0.196),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPEAT)
def test_published_baselines(data_dir, name: str) -> None:
    del data_dir
    errors = baseline_errors(name, 96)
    np.testing.assert_allclose(errors["repeat"], REPEAT[name], atol=1e-3)
    if name == "ETTh1":
        made = PREPARATIONS[name].arrays()["values"][:8640]
        means = [7.9377, 2.0210, 5.0798, 0.7462, 2.7818, 0.7885, 17.1283]
        np.testing.assert_allclose(made.mean(axis=0), means, atol=6e-5)
        assert errors["linear"][0] < 0.38  # DLinear: 0.375
