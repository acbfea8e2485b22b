"""The figures hold the values that were put in, and one artist for each."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm, SymLogNorm, to_hex

from dsfjax.report import figures
from dsfjax.report.comparison import Curve, band
from dsfjax.report.style import PALETTE, colors, turn
from tests.report.synthetic import LENGTH, PAIRS, comparison

ENTRIES = comparison().entries


def test_band_carries_a_finished_seed_on() -> None:
    long = Curve(0, np.array([1, 2, 3, 4]), np.array([0.1, 0.2, 0.3, 0.4]))
    solved = Curve(1, np.array([1, 2]), np.array([0.5, 1.0]))
    steps, mean, low, high = band((long, solved))
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_allclose(mean, [0.3, 0.6, 0.65, 0.7])
    np.testing.assert_array_equal(low, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(high, [0.5, 1.0, 1.0, 1.0])


def test_band_begins_where_every_seed_was_measured() -> None:
    early = Curve(0, np.array([1, 2, 3]), np.array([0.1, 0.2, 0.3]))
    late = Curve(1, np.array([2, 3]), np.array([0.4, 0.5]))
    np.testing.assert_array_equal(band((early, late))[0], [2, 3])


def test_learning_curves() -> None:
    figure = figures.learning_curves(ENTRIES, 0.03, 0.25)
    (ax,) = figure.axes
    assert len(ax.collections) == len(ENTRIES)  # the bands
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]  # pyright: ignore
    assert [line.get_label() for line in lines] == [entry.mixer for entry in ENTRIES]
    for line, entry in zip(lines, ENTRIES, strict=True):
        mean = np.mean([curve.accuracy for curve in entry.curves], axis=0)
        np.testing.assert_allclose(np.asarray(line.get_ydata()), mean)
        assert line.get_color() == colors([e.mixer for e in ENTRIES])[entry.mixer]
    baselines = [line.get_ydata() for line in ax.lines[-2:]]
    np.testing.assert_array_equal(baselines, [[0.03, 0.03], [0.25, 0.25]])


def test_accuracy_bars() -> None:
    (ax,) = figures.accuracy_bars(ENTRIES, 0.03, 0.25).axes
    widths = [bar.get_width() for bar in ax.patches]  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(widths, [entry.accuracy_mean for entry in ENTRIES])
    whiskers = np.array([np.ptp(c.get_segments()[i][:, 0]) for c in ax.collections for i in (0,)])  # pyright: ignore
    np.testing.assert_allclose(whiskers, [2 * entry.accuracy_std for entry in ENTRIES])
    dots = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(dots, [entry.accuracies for entry in ENTRIES])
    assert [text.get_text() for text in ax.texts][2] == f"{100 * ENTRIES[2].accuracy_mean:.1f}"


def test_modulus_histogram_counts_everything() -> None:
    moduli = np.array([0.0, 0.01, 0.975, 0.98, 0.99, 1.0, 1.01, 7.0, np.inf, 1.5])
    (ax,) = figures.modulus_histogram("ssd", moduli, "#0072b2").axes
    heights = [bar.get_height() for bar in ax.patches]  # pyright: ignore[reportAttributeAccessIssue]
    expected = np.zeros(30)
    expected[[0, 19, 20, 29]] = 0.2, 0.3, 0.2, 0.3
    np.testing.assert_allclose(heights, expected)


@pytest.mark.parametrize("signed", [False, True])
def test_kernel_map(signed: bool) -> None:
    kernel = np.tril(np.random.default_rng(0).uniform(0.1, 3.0, (LENGTH, LENGTH)))
    if signed:
        kernel[5, 2] = -6.0
    ax = figures.kernel_map("ssd", kernel, PAIRS).axes[0]
    (image,) = ax.images
    shown = image.get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    np.testing.assert_array_equal(shown.mask, np.triu(np.ones((LENGTH, LENGTH), bool), 1))
    past = np.tri(LENGTH, dtype=bool)
    np.testing.assert_allclose(shown.data[past], (kernel / np.abs(kernel).max())[past])
    assert isinstance(image.norm, SymLogNorm if signed else LogNorm)
    rings = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(rings.get_xydata(), [(s, t) for t, s in PAIRS])


def test_kernel_of_zeros_is_drawn() -> None:
    shown = figures.kernel_map("none", np.zeros((4, 4)), ()).axes[0].images[0].get_array()
    assert shown is not None
    np.testing.assert_array_equal(np.ma.compressed(shown), [figures.KERNEL_FLOOR] * 10)


def test_hues_repeat_with_another_line() -> None:
    names = [f"m{i}" for i in range(10)]
    color = colors(names)
    assert len({to_hex(color[name]) for name in names[:8]}) == len(PALETTE) == 8
    assert color["m8"] == color["m0"]
    assert [turn(names, name) for name in ("m0", "m7", "m8")] == [0, 0, 1]
