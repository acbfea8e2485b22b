"""The CSV files hold the inputs, digit for digit."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dsfjax.report.export import write_data
from tests.report.synthetic import LENGTH, MIXERS, PAIRS, comparison

WHOLE = comparison()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "data"
    names = write_data(WHOLE, path)
    assert sorted(names) == sorted(file.name for file in path.iterdir())
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_summary(folder: Path) -> None:
    found = rows(folder / "summary.csv")
    assert [row["mixer"] for row in found] == list(MIXERS)
    for row, entry in zip(found, WHOLE.entries, strict=True):
        assert float(row["accuracy_mean"]) == entry.accuracy_mean
        assert float(row["accuracy_std"]) == entry.accuracy_std
        assert float(row["learning_rate"]) == entry.learning_rate
        assert row["steps_to_90"] == ("" if entry.steps_to_90 is None else str(entry.steps_to_90))
        assert int(row["num_params"]) == entry.num_params


def test_curves_and_final_accuracy(folder: Path) -> None:
    found = {
        (row["mixer"], int(row["seed"]), int(row["step"])): float(row["accuracy"])
        for row in rows(folder / "curves.csv")
    }
    expected = {
        (entry.mixer, curve.seed, int(step)): float(value)
        for entry in WHOLE.entries
        for curve in entry.curves
        for step, value in zip(curve.steps, curve.accuracy, strict=True)
    }
    assert found == expected
    final = {
        (r["mixer"], int(r["seed"])): float(r["accuracy"]) for r in rows(folder / "accuracy.csv")
    }
    assert final == {(m, s): value for (m, s, step), value in expected.items() if step == 1000}


def test_moduli(folder: Path) -> None:
    found = [row for row in rows(folder / "moduli.csv") if row["mixer"] == "s6"]
    moduli = next(e.probe.moduli for e in WHOLE.entries if e.mixer == "s6" and e.probe)
    total = 0.0
    for row in found[:-1]:
        low, high = float(row["low"]), float(row["high"])
        assert float(row["fraction"]) == np.mean((moduli >= low) & (moduli < high))
        total += float(row["fraction"])
    assert float(found[-1]["fraction"]) == pytest.approx(1 - total)


def test_kernel(folder: Path) -> None:
    kernel = next(e.probe.kernel for e in WHOLE.entries if e.mixer == "ssd" and e.probe)
    found = np.zeros((LENGTH, LENGTH))
    marked = set()
    for row in rows(folder / "phi_ssd.csv"):
        t, s = int(row["t"]), int(row["s"])
        found[t, s] = float(row["phi"])
        if row["query_meets_value"] == "1":
            marked.add((t, s))
    np.testing.assert_array_equal(found, kernel)
    assert marked == set(PAIRS)
