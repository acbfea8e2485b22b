r"""Forecasting: the next values of several series from the last ones.

A window of ``lookback`` steps is read, and the ``horizon`` steps after it are predicted at once, at
the last step (direct multi-horizon forecasting). Values are standardised with mean and standard
deviation of the training rows, and errors are in these units, as in the literature:

.. math:: \mathrm{MSE} = \frac{1}{|w| h C} \sum_{w, i, c} (\hat y_{w,i,c} - y_{w,i,c})^2 .

With ``instance_norm`` a window is shifted and scaled by its own mean and deviation, and the answer
is put back (reversible instance normalisation, without learned scale): series drift, and a model
should not have to learn their level. With ``independent`` channels every series is an example of
its own, and one model forecasts them all.

Splits. ETT: 12, 4 and 4 months of 30 days; the rest of the file is not used. The others: 70, 10 and
20 % of the rows. Windows of validation and test may begin in the rows before, their answers not.
All windows count, at every step (Informer leaves the last incomplete batch out).

References:
    Zhou et al. (2021), Informer, arXiv:2012.07436. Zeng et al. (2023), Are Transformers Effective
    for Time Series Forecasting?, arXiv:2205.13504. Kim et al. (2022), Reversible Instance
    Normalization, ICLR. Nie et al. (2023), PatchTST, arXiv:2211.14730 (independent channels).
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from dsfjax._util.names import choose
from dsfjax.tasks import data
from dsfjax.tasks.data import Preparation, Read
from dsfjax.tasks.data.splits import TEST, VALIDATION
from dsfjax.tasks.metric import MAE, MSE, Baseline
from dsfjax.tasks.protocol import HELD_OUT, Example, Preset, option
from dsfjax.tasks.supply import Windows

LINEAR_LOOKBACK = 336
"""Steps that the linear baseline reads."""
RIDGE = 1e-3
"""Its regularisation, times the number of its windows."""
LINEAR_WINDOWS = 100_000
"""About as many windows as it is fitted to at most, evenly spread."""

_VERSION = 1  # raised when the baselines are computed differently
FEATURES = ("M", "S", "MS")


class Source(NamedTuple):
    """Where a series comes from.

    Attributes:
        path: Its file in the data folder.
        channels: Number of series.
        borders: Rows where training, validation and test end; None for 70, 10 and 20 %.
        dated: Whether the file begins with a column of dates and a line of names.
        minutes: Time between rows.
    """

    path: str
    channels: int
    borders: tuple[int, int, int] | None
    dated: bool
    minutes: int


_HOURLY = (8_640, 11_520, 14_400)
_QUARTERS = (34_560, 46_080, 57_600)
SOURCES = {
    "ETTh1": Source("ett/ETTh1.csv", 7, _HOURLY, True, 60),
    "ETTh2": Source("ett/ETTh2.csv", 7, _HOURLY, True, 60),
    "ETTm1": Source("ett/ETTm1.csv", 7, _QUARTERS, True, 15),
    "ETTm2": Source("ett/ETTm2.csv", 7, _QUARTERS, True, 15),
    "exchange": Source("ltsf_extra/exchange_rate.csv", 8, None, False, 1440),
    "weather": Source("ltsf_extra/weather.csv", 21, None, False, 10),
}
"""Name to source. Of weather and exchange rates the files have no dates."""


def _parse(source: Source, read: Read) -> dict[str, np.ndarray]:
    """Values and calendar of a file, not standardised."""
    content = read(source.path)
    if source.dated:
        names, _, content = content.partition(b"\n")
        expected = f"'date' and the names of {source.channels} columns"
        fits = names.startswith(b"date,") and names.count(b",") == source.channels
        data.expect(fits, f"{source.path}, line 1", expected, names.decode(errors="replace"))
    columns, first = source.channels + source.dated, 1 + source.dated
    rows = data.rows(content, source.path, columns, separator=b",", first=first)
    cells = [row[1:] if source.dated else row for row in rows]
    values = np.empty((len(cells), source.channels), np.float64)
    for i, row in enumerate(cells):
        try:
            values[i] = [float(cell) for cell in row]
        except ValueError:
            at = f"{source.path}, line {i + first}"
            data.expect(False, at, f"{source.channels} numbers", b",".join(row).decode("latin-1"))
    finite = np.isfinite(values).all(axis=1)
    at = f"{source.path}, line {int(finite.argmin()) + first}"
    data.expect(finite.all(), at, "finite numbers", "others")
    calendar = _calendar(source, [row[0] for row in rows]) if source.dated else np.zeros((0, 0))
    return {"values": values, "calendar": calendar}


def _calendar(source: Source, dates: list[bytes]) -> Float[np.ndarray, "rows features"]:
    """Minute of the hour (where it varies), hour, weekday, day of month and of year, in ±1/2."""
    try:
        when = np.array([date.decode() for date in dates], "datetime64[m]")
    except (ValueError, UnicodeDecodeError) as error:
        data.expect(False, source.path, "dates such as 2016-07-01 00:00:00", error)
        raise
    day, month, year = (when.astype(f"datetime64[{unit}]") for unit in "DMY")
    weekday = (day.astype(int) + 3) % 7  # 1 January 1970 was a Thursday; Monday is 0
    parts = [
        ((when - when.astype("datetime64[h]")).astype(int), 59),
        ((when.astype("datetime64[h]") - day).astype(int), 23),
        (weekday, 6),
        ((day - month).astype(int), 30),
        ((day - year.astype("datetime64[D]")).astype(int), 365),
    ]
    own = parts if source.minutes < 60 else parts[1:]
    return np.stack([part / most - 0.5 for part, most in own], axis=1)


PREPARATIONS = {
    name: data.register(
        Preparation(
            name=f"series-{name}",
            data_set=data.set_of(source.path).name,
            files=(source.path,),
            make=functools.partial(_parse, source),
        )
    )
    for name, source in SOURCES.items()
}


class Series(NamedTuple):
    """A standardised file.

    Attributes:
        values: All rows, (rows, C), in units of the training rows.
        calendar: What the dates say, (rows, features).
        borders: Rows where training, validation and test end.
    """

    values: Float[np.ndarray, "rows C"]
    calendar: Float[np.ndarray, "rows features"]
    borders: tuple[int, int, int]


def standardised(name: str) -> Series:
    """A file in units of the mean and the standard deviation (ddof 0) of its training rows.

    Args:
        name: One of `SOURCES`.

    Raises:
        DataError: If its file is missing or damaged.
    """
    return _standardised(name, PREPARATIONS[name].key())


@functools.lru_cache(maxsize=8)
def _standardised(name: str, key: tuple[object, ...]) -> Series:
    del key  # what the arrays depend on
    arrays = PREPARATIONS[name].arrays()
    values = np.asarray(arrays["values"])
    rows = len(values)
    test = int(rows * 0.2)
    train = int(rows * 0.7)
    borders = SOURCES[name].borders or (train, rows - test, rows)
    seen = values[: borders[0]]
    scaled = (values - seen.mean(axis=0)) / seen.std(axis=0)
    return Series(scaled, np.asarray(arrays["calendar"]), borders)


@dataclasses.dataclass(frozen=True)
class Forecast(Windows):
    """Forecast the next ``horizon`` values of several series at once.

    Args:
        series: Which file, one of `SOURCES`.
        horizon: h, steps that are predicted.
        lookback: L, steps that are read.
        features: "M" (all series to all), "S" (the last series alone, as "OT" of ETT), or "MS" (all
            series to the last).
        independent: Whether each series is an example of its own (only with "M"); else they are
            channels of one sequence.
        instance_norm: Whether a window is shifted and scaled by its own mean and deviation.
        calendar: Whether the hour, weekday, day of month and of year are further channels.
        judged_on: What models are judged on, "validation" or "test".

    Raises:
        ValueError: If the options do not fit together, or a window is longer than a split.

    Example:
        >>> task = Forecast(horizon=24, lookback=96)
        >>> task.seq_len, task.channels, task.num_outputs
        (96, 1, 24)
    """

    series: str = option("ETTh1", f"The data: {', '.join(SOURCES)}.")
    horizon: int = option(24, "Steps that are predicted.")
    lookback: int = option(96, "Steps that are read.")
    features: str = option("M", "M: all series; S: the last alone; MS: all to the last.")
    independent: bool = option(True, "Whether each series is an example of its own.")
    instance_norm: bool = option(True, "Whether a window is scaled by its own mean and deviation.")
    calendar: bool = option(False, "Whether hour, weekday and day are channels, too.")
    judged_on: str = option(TEST, "What models are judged on: validation or test.")

    demands = ("smoothing", "forecasting")
    metric = MSE
    also: ClassVar = (MAE,)

    data_sets = ("ett", "ltsf_extra")
    presets: ClassVar = {
        "demo": Preset(
            settings={
                "batch_size": 64,
                "steps": 400,
                "eval_every": 100,
                "eval_examples": 2048,
                "learning_rates": (1e-3,),
                "stop_at": None,
            }
        ),
        "smoke": Preset(settings={"lookback": 16, "horizon": 4, "stop_at": None}),
    }

    def __post_init__(self) -> None:
        choose("series", self.series, SOURCES)
        choose("features", self.features, FEATURES)
        choose("judged_on", self.judged_on, (TEST, VALIDATION))
        if self.horizon < 1 or self.lookback < 2:
            raise ValueError(
                f"Forecast: expected horizon >= 1 and lookback >= 2, got {self.horizon} and "
                f"{self.lookback}."
            )
        if self.calendar and not SOURCES[self.series].dated:
            dated = ", ".join(name for name, source in SOURCES.items() if source.dated)
            raise ValueError(
                f"Forecast: expected a file with dates for calendar=True, got {self.series}; "
                f"those are {dated}."
            )
        borders = SOURCES[self.series].borders
        if borders is not None:
            self._check(borders)

    def _check(self, borders: tuple[int, int, int]) -> None:
        train, validation, test = borders
        shortest = min(validation - train, test - validation)
        if self.horizon > shortest or self.window > train:
            raise ValueError(
                f"Forecast: expected a horizon of at most {shortest} rows, those of the shortest "
                f"split of {self.series}, and a window of at most {train}, those of training; got "
                f"horizon={self.horizon} and lookback={self.lookback}."
            )

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The data and the horizon."""
        return f"Forecasting {self.series}, {self.horizon} steps ahead"

    def provenance(self) -> str:
        """The file of the series."""
        return PREPARATIONS[self.series].provenance()

    @property
    def seq_len(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """L."""
        return self.lookback

    @property
    def window(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Steps that are read, and steps that are predicted."""
        return self.lookback + self.horizon

    @property
    def _alone(self) -> bool:
        """Whether a window gives several examples, one per series."""
        return self.independent and self.features == "M"

    @property
    def _inputs(self) -> int:
        return 1 if self._alone or self.features == "S" else SOURCES[self.series].channels

    @property
    def _answers(self) -> int:
        return self._inputs if self.features == "M" else 1

    @property
    def channels(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Series of a sequence, and what the calendar adds."""
        source = SOURCES[self.series]
        return self._inputs + (4 + (source.minutes < 60)) * self.calendar

    @property
    def num_outputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Horizon times the number of predicted series."""
        return self.horizon * self._answers

    def arrays(self, split: str) -> PyTree:
        """Values, and the calendar, of the rows of a split."""
        found = standardised(self.series)
        self._check(found.borders)
        train, validation, test = found.borders
        first, last = 0, train
        if split == HELD_OUT:
            first, last = (validation, test) if self.judged_on == TEST else (train, validation)
            first -= self.lookback
        values = found.values[:, -1:] if self.features == "S" else found.values
        own = {"values": values[first:last].astype(np.float32)}
        if self.calendar:
            own["calendar"] = found.calendar[first:last].astype(np.float32)
        return own

    def size(self, split: str) -> int | None:
        """Number of windows, times the series where each is an example."""
        windows = super().size(split) or 0
        return windows * (SOURCES[self.series].channels if self._alone else 1)

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a window, or of a series in a window."""
        if not self._alone:
            return super().example(pick, data)
        num = SOURCES[self.series].channels
        values = jax.lax.dynamic_slice_in_dim(data["values"], pick % num, 1, axis=1)
        return super().example(pick // num, data | {"values": values})

    def read(self, row: PyTree) -> Example:
        """A window; the query is at the last step that is read.

        Targets are ŷ's scale, too: rows of the true values, of the window's mean and deviation.
        """
        seen, after = row["values"][: self.lookback], row["values"][self.lookback :]
        after = after if self.features == "M" else after[:, -1:]
        mean, deviation = jnp.zeros(seen.shape[1]), jnp.ones(seen.shape[1])
        if self.instance_norm:
            mean, deviation = seen.mean(axis=0), jnp.sqrt(seen.var(axis=0) + 1e-5)
        inputs = (seen - mean) / deviation
        if self.calendar:
            inputs = jnp.concatenate([inputs, row["calendar"][: self.lookback]], axis=1)
        scale = jnp.stack([mean, deviation])[:, -after.shape[1] :]
        targets = jnp.concatenate([after, scale.astype(after.dtype)])
        last = jnp.array([self.lookback - 1], jnp.int32)
        return Example(inputs, last, targets[None])

    def measure(
        self, outputs: Float[Array, "*batch k"], targets: Shaped[Array, "..."]
    ) -> dict[str, Shaped[Array, "*batch"]]:
        """Mean squared and absolute error of a forecast in standardised units.

        The error that is minimised is the squared one.
        """
        true, mean, deviation = (targets[..., : self.horizon, :], *_last_two(targets))
        forecast = outputs.reshape(true.shape) * deviation + mean
        error = forecast - true
        squared = jnp.square(error).mean(axis=(-2, -1))
        return {"loss": squared, "mse": squared, "mae": jnp.abs(error).mean(axis=(-2, -1))}

    def baselines(self) -> dict[str, Baseline]:
        """The mean of the training rows, the last value, and a linear map of the last 336 steps."""
        errors = baseline_errors(self.series, self.horizon, self.features, self.judged_on)
        return {
            "chance": Baseline(errors["mean"][0], "naming the mean of the training rows"),
            "trivial": Baseline(errors["repeat"][0], "repeating the last value"),
            "linear": Baseline(
                errors["linear"][0],
                f"a linear map of the last {LINEAR_LOOKBACK} steps, the same for every series",
            ),
        }

    def describe(self) -> str:
        """The data, what is read and what is predicted."""
        how = "each series for itself" if self._alone else f"features {self.features}"
        return f"{self.series}, {self.lookback} steps read, {self.horizon} predicted, {how}"

    def slug(self) -> str:
        """The data, horizon and lookback."""
        how = "-independent" if self._alone else ""
        return f"{self.series}-h{self.horizon}-L{self.lookback}-{self.features}{how}"


def _last_two(targets: Array) -> tuple[Array, Array]:
    return targets[..., -2:-1, :], targets[..., -1:, :]


@functools.lru_cache(maxsize=32)
def baseline_errors(
    series: str, horizon: int, features: str = "M", judged_on: str = TEST
) -> dict[str, tuple[float, float]]:
    """What needs no sequence model, on all windows of a split: (MSE, MAE) in standardised units.

    The linear model is the direct one, a map from the last 336 steps of a series, relative to the
    last of them, to all steps of the horizon, by least squares with a little shrinkage. It is
    shared by all series. The errors are kept with the prepared arrays.

    Args:
        series: One of `SOURCES`.
        horizon: h.
        features: As in `Forecast`; with "S" and "MS" the last series alone is judged.
        judged_on: "validation" or "test".

    Returns:
        "mean", "repeat" and "linear" to their two errors.
    """
    key = (PREPARATIONS[series].key(), horizon, features, judged_on, _VERSION)
    made = data.cached(
        f"baselines-{series}",
        key,
        lambda: {"errors": _baseline_errors(standardised(series), horizon, features, judged_on)},
    )
    mean, repeat, linear = (tuple(map(float, pair)) for pair in made["errors"])
    return {"mean": mean, "repeat": repeat, "linear": linear}  # pyright: ignore[reportReturnType]


def _baseline_errors(
    found: Series, horizon: int, features: str, judged_on: str
) -> Float[np.ndarray, "3 2"]:
    train, validation, test = found.borders
    begin, end = (validation, test) if judged_on == TEST else (train, validation)
    values = found.values if features == "M" else found.values[:, -1:]
    lookback = min(LINEAR_LOOKBACK, train // 2)
    weights = _least_squares(values[:train], lookback, horizon)
    windows = np.lib.stride_tricks.sliding_window_view
    after = windows(values[begin:end], horizon, axis=0)  # (windows, C, h)
    before = windows(values[begin - lookback : end - horizon], lookback, axis=0)
    last = before[..., -1:]
    sums = np.zeros((3, 2))
    for i in range(0, len(after), 1024):  # a block of windows at a time: they are views
        x, y, z = before[i : i + 1024], after[i : i + 1024], last[i : i + 1024]
        flat = (x - z).reshape(-1, lookback)  # one product of matrices instead of many
        linear = z + (flat @ weights).reshape(y.shape)
        for row, forecast in enumerate((np.zeros(()), z, linear)):
            sums[row] += np.square(forecast - y).sum(), np.abs(forecast - y).sum()
    return sums / after.size


def _least_squares(
    values: Float[np.ndarray, "rows C"], lookback: int, horizon: int
) -> Float[np.ndarray, "lookback horizon"]:
    windows = np.lib.stride_tricks.sliding_window_view(values, lookback + horizon, axis=0)
    windows = windows[:: max(1, windows.shape[0] * windows.shape[1] // LINEAR_WINDOWS)]
    gram, right = np.zeros((lookback, lookback)), np.zeros((lookback, horizon))
    for i in range(0, len(windows), 1024):
        block = windows[i : i + 1024].reshape(-1, lookback + horizon)
        block = block - block[:, lookback - 1 : lookback]
        x, y = block[:, :lookback], block[:, lookback:]
        gram += x.T @ x
        right += x.T @ y
    count = windows.shape[0] * windows.shape[1]
    return np.linalg.solve(gram + RIDGE * count * np.eye(lookback), right)
