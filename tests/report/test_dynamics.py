"""Probes read back from metrics, drawn, written and shown."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dsfjax.report import dynamics
from dsfjax.report.export import write_data
from dsfjax.report.page import render
from dsfjax.report.verdict import decide
from tests.report.synthetic import comparison


def line(step: int, member: int, finite: bool = True, **changes: Any) -> dict[str, Any]:
    layer = {
        "modulus": [0.1, 0.2, 0.3, 0.4, step / 10],
        "growing": 0.0,
        "gradient": [1.0, 2.0, 3.0, 4.0] if finite else None,
        "dimension": step + 0.5 if finite else None,
    }
    probe = {"sharpness": 2.0 * step, "layers": [layer, layer | {"growing": 0.5}]}
    base = {"step": step, "member": member, "seed": 7, "eval_loss": 1 / step, "eval_accuracy": 0.5}
    return base | {"probe": probe} | changes


LINES = [line(4, 0), line(4, 1), {"step": 6, "member": 1, "seed": 7}, line(8, 1, eval_loss=None)]


def test_lines_of_a_member() -> None:
    found = dynamics.read_dynamics(LINES, 1)
    assert found is not None and found.seed == 7
    np.testing.assert_array_equal(found.steps, [4, 8])
    np.testing.assert_array_equal(found.loss, [0.25, np.nan])
    np.testing.assert_array_equal(found.sharpness, [8, 16])
    assert found.modulus.shape == (2, 2, 5) and found.modulus[1, 0, 4] == 0.8
    np.testing.assert_array_equal(found.gradient[0, 1], [1, 2, 3, 4])
    np.testing.assert_array_equal(found.dimension, [[4.5, 4.5], [8.5, 8.5]])
    assert dynamics.read_dynamics(LINES, 2) is None
    assert dynamics.read_dynamics([LINES[2]], 1) is None


def test_figure() -> None:
    found = dynamics.read_dynamics(LINES, 1)
    assert found is not None
    axes = dynamics.draw("ssd", found, "#0072b2").axes
    drawn = [np.asarray(ax.lines[0].get_ydata(), float) for ax in axes]
    expected = [[0.25, np.nan], [8, 16], [0.3, 0.3], [0.25, 0.25], [4.5, 8.5]]
    np.testing.assert_array_equal(drawn, expected)
    assert [len(ax.lines) for ax in axes] == [1, 1, 3, 2, 2]  # layers, and the line at |λ| = 1
    assert axes[1].get_yscale() == "log"
    without = dynamics.read_dynamics([line(4, 0, finite=False), line(8, 0, finite=False)], 0)
    assert without is not None and np.isnan(without.dimension).all()
    assert len(dynamics.draw("softmax", without, "#0072b2").axes) == 3


def test_page_and_csv(tmp_path: Path) -> None:
    whole, found = comparison(), dynamics.read_dynamics(LINES, 1)
    entries = (dataclasses.replace(whole.entries[0], dynamics=found), whole.entries[1])
    seen = dataclasses.replace(whole, entries=entries)
    page = render(seen, decide(seen), "t", [])
    plain = render(whole, decide(whole), "t", [])
    assert "Training as two dynamical systems" in page
    assert "Training as two dynamical systems" not in plain
    assert page.count('aria-label="training dynamics of') == 1
    assert "dynamics.csv" in write_data(seen, tmp_path)
    assert "dynamics.csv" not in write_data(whole, tmp_path / "plain")
    with (tmp_path / "dynamics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["mixer"], r["step"], r["layer"]) for r in rows] == [
        ("softmax_attention", step, layer) for step in ("4", "8") for layer in ("1", "2")
    ]
    assert (rows[2]["loss"], rows[2]["sharpness"], rows[2]["modulus_0.95"]) == (
        "nan",
        "16.0",
        "0.8",
    )
    assert (rows[0]["gradient_4"], rows[0]["dimension"]) == ("4.0", "4.5")
