"""The figures hold the values that were put in, and one artist for each."""

import numpy as np
from matplotlib.colors import to_hex

from dsfjax.aspects.phi_maps import PhiMap
from dsfjax.aspects.style import PALETTE, colors, turn
from dsfjax.report import figures
from dsfjax.report.entries import Comparison, Curve, Entry, band
from dsfjax.report.of_text import draw_left
from tests.report.synthetic import comparison, diverged, errors

ENTRIES = comparison().entries


def of(*entries: Entry) -> Comparison:
    return Comparison({}, 0.03, 0.25, entries)


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
    figure = figures.learning_curves(of(*ENTRIES))
    (ax,) = figure.axes
    assert len(ax.collections) == len(ENTRIES)  # the bands
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]  # pyright: ignore
    assert [line.get_label() for line in lines] == [entry.mixer for entry in ENTRIES]
    for line, entry in zip(lines, ENTRIES, strict=True):
        mean = np.mean([curve.score for curve in entry.curves], axis=0)
        np.testing.assert_allclose(np.asarray(line.get_ydata()), mean)
        assert line.get_color() == colors([e.mixer for e in ENTRIES])[entry.mixer]
    baselines = [line.get_ydata() for line in ax.lines[-2:]]
    np.testing.assert_array_equal(baselines, [[0.03, 0.03], [0.25, 0.25]])


def test_accuracy_bars() -> None:
    (ax,) = figures.score_bars(of(*ENTRIES)).axes
    widths = [bar.get_width() for bar in ax.patches]  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(widths, [entry.score_mean for entry in ENTRIES])
    whiskers = np.array([np.ptp(c.get_segments()[i][:, 0]) for c in ax.collections for i in (0,)])  # pyright: ignore
    np.testing.assert_allclose(whiskers, [2 * entry.score_std for entry in ENTRIES])
    dots = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    expected = [x for entry in ENTRIES for x in entry.scores]
    np.testing.assert_array_equal(np.concatenate([np.asarray(x) for x in dots]), expected)
    assert [text.get_text() for text in ax.texts][2] == f"{100 * ENTRIES[2].score_mean:.1f}"


def test_diverged_members_are_crosses_at_zero() -> None:
    entries = of(ENTRIES[0], diverged(ENTRIES[2]))
    for figure, count in (
        (figures.learning_curves(entries), 3),
        (figures.score_bars(entries), 3),
        (figures.rates(entries), 9),
    ):
        crosses = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
        assert len(crosses) == count
        for line in crosses:
            assert 0 in np.asarray(line.get_xydata())


def test_errors_are_drawn_on_their_own_scale_and_what_diverged_at_the_worse_end() -> None:
    whole = errors()
    curves, bars, rates, trade = (
        draw(whole).axes[0]
        for draw in (
            figures.learning_curves,
            figures.score_bars,
            figures.rates,
            figures.trade_off,
        )
    )
    assert (curves.get_ylabel(), bars.get_xlabel()) == ("MSE ↓", "MSE ↓")
    assert rates.get_ylabel() == trade.get_ylabel() == "final MSE ↓"
    low, high = curves.get_ylim()
    assert low < whole.entries[0].score_mean and 1.0 < high < 2.0  # the baseline is in it
    assert bars.get_xlim()[0] == 0.0 and 1.0 < bars.get_xlim()[1] < 2.0
    assert [text.get_text() for text in bars.texts][-1] == "∞"
    for ax, count in ((curves, 3), (bars, 3), (rates, 9)):
        crosses = [line for line in ax.lines if line.get_marker() == "X"]
        assert len(crosses) == count
        assert all(1.0 in np.asarray(line.get_xydata()) for line in crosses)
    baselines = [line.get_ydata() for line in curves.lines[-2:]]
    np.testing.assert_array_equal(baselines, [[1.0, 1.0], [0.5, 0.5]])
    assert len(trade.containers) == len(whole.entries) - 1


def test_rates_show_every_member() -> None:
    (ax,) = figures.rates(of(*ENTRIES[:2])).axes
    dots = sorted(tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o")  # pyright: ignore
    place = {1e-3: 0, 3e-3: 1, 1e-2: 2}
    expected = [(place[o.point.learning_rate], o.score) for e in ENTRIES[:2] for o in e.outcomes]
    assert dots == sorted(expected)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.001", "0.003", "0.01"]
    means = np.asarray(ax.lines[0].get_ydata())
    own = [o.score for o in ENTRIES[0].outcomes]
    np.testing.assert_allclose(means, np.reshape(own, (3, 3)).mean(axis=1))


def test_trade_off_is_accuracy_by_state() -> None:
    (ax,) = figures.trade_off(of(*ENTRIES)).axes
    marks = [c.lines[0].get_xydata()[0] for c in ax.containers]  # pyright: ignore
    expected = [(e.state_size, e.score_mean) for e in ENTRIES]
    np.testing.assert_array_equal(marks, expected)


def test_hues_repeat_with_another_line() -> None:
    names = [f"m{i}" for i in range(10)]
    color = colors(names)
    assert len({to_hex(color[name]) for name in names[:8]}) == len(PALETTE) == 8
    assert color["m8"] == color["m0"]
    assert [turn(names, name) for name in ("m0", "m7", "m8")] == [0, 0, 1]


def test_a_text_longer_than_there_are_mixers_leaves_no_room_empty() -> None:
    kernel = np.tril(np.ones((40, 40)))
    layers = [PhiMap(kernel, 1, 1, ()) for _ in range(3)]
    (ax,) = draw_left("three mixers", layers, [f"t{i}" for i in range(40)]).axes
    assert ax.get_ylim() == (2.5, -0.5) and ax.get_xlim() == (-0.5, 39.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2", "3"]
    assert ax.get_xticklabels()[0].get_text() == "t0"
