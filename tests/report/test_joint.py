"""Several tasks in one table: in the terminal, on the page and as data."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dsfjax import tasks
from dsfjax.report import read_joint, render_joint
from dsfjax.report.joint import Score, TaskScores, mixers, write_joint
from dsfjax.report.page import render_index
from dsfjax.report.verdict import Verdict
from dsfjax.tasks import MSE, Baseline
from dsfjax.training import presets, to_json
from tests.report.test_page import read

RECALL = TaskScores(
    "recall",
    "Recall & more",
    "L = 32",
    Baseline(0.25, "naming any value"),
    None,
    {"a": Score(0.27, 0.03, 0.008, 64, 2_000), "b": Score(0.98, 0.012, 0.004, 4_096, 51_234)},
)
IMAGES = TaskScores(
    "images",
    "Images",
    "L = 64",
    Baseline(0.1, "always naming one class"),
    Baseline(0.856, "least squares"),
    {"c": Score(0.5, 0.0, 0.005, 8, 9), "b": Score(0.7, 0.2, 0.005, 8_192, 51_234)},
)
JOINT = [RECALL, IMAGES]
VERDICTS = [
    Verdict("b", "For this task, b: 98 %.", {}, ("1 seed <b>",)),
    Verdict(None, "No model reaches η_t.", {}, ()),
]


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_has_a_column_per_task_and_the_baselines_last(width: int) -> None:
    out = io.StringIO()
    Console(file=out, width=width).print(render_joint(JOINT))
    text = out.getvalue()
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip(" ─")]
    assert lines[:6] == [
        "mixer recall, % images, % N params",
        "b 98.0 ± 1.2 70.0 ± 20.0 4 096/8 192 51 234",
        "a * 27.0 ± 3.0 – 64/– 2 000/–",
        "c – 50.0 ± 0.0 –/8 –/9",
        "trivial answer 25.0 10.0",
        "linear model – 85.6",
    ]
    note = " ".join(lines[6:])
    assert "* not learnt: not clearly above the trivial answer." in note
    assert "Trivial answer: recall, naming any value; images, always naming one class." in note
    assert "Linear model of the whole input: images, least squares." in note
    assert "\x1b" not in text and "…" not in text


def test_what_is_not_learnt_is_dim_and_a_task_without_linear_baseline_has_no_row() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system="standard")
    console.print(render_joint([RECALL]))
    (line,) = [line for line in out.getvalue().splitlines() if "27.0" in line]
    assert "\x1b[2m* 27.0 ± 3.0" in line
    assert "linear" not in out.getvalue()


def test_mixers_by_the_first_task_and_then_the_next() -> None:
    assert mixers(JOINT) == ["b", "a", "c"]
    assert mixers(JOINT[::-1]) == ["b", "c", "a"]
    assert [RECALL.learnt("a"), RECALL.learnt("b"), IMAGES.learnt("c")] == [False, True, True]


def test_index_has_the_table_the_verdicts_and_the_links() -> None:
    page = render_index(JOINT, VERDICTS, "joint.csv")
    reader = read(page)
    (table,), (keys,) = reader.tables, reader.keys
    assert table[0] == [
        "mixer",
        *("recall", "images"),
        *("N, recall", "N, images", "parameters, recall", "parameters, images"),
    ]
    assert table[1] == [
        *("b", "98.0\xa0% ± 1.2", "70.0\xa0% ± 20.0"),
        *("4\u202f096", "8\u202f192", "51\u202f234", "51\u202f234"),
    ]
    assert table[2][:3] == ["a", "27.0\xa0% ± 3.0, not learnt", "–"]
    assert (keys[1][1], keys[2][2], keys[3][4]) == ("0.98", "", "8")
    assert [row[:3] for row in table[4:]] == [
        ["trivial answer", "25.0\xa0%", "10.0\xa0%"],
        ["linear model", "–", "85.6\xa0%"],
    ]
    assert 'href="recall/index.html"' in page and 'href="images/index.html"' in page
    assert 'href="joint.csv"' in page
    assert page.index("Every mixer on every task") < page.index("For this task, b: 98 %.")
    assert page.index("For this task, b: 98 %.") < page.index("No model reaches η<sub>t</sub>.")
    assert "1 seed <b>" in reader.text and "b" not in reader.tags
    assert "Recall & more: L = 32" in reader.text


PRICES = TaskScores(
    "prices",
    "Prices",
    "L = 96",
    Baseline(1.25, "repeating the last value"),
    Baseline(0.5, "least squares"),
    {"b": Score(1.24, 0.0, 0.005, 8, 9), "c": Score(0.375, 0.01, 0.005, 8, 9)},
    MSE,
)


def test_tasks_of_several_metrics_are_in_one_table(tmp_path: Path) -> None:
    assert mixers([PRICES, RECALL]) == ["c", "b", "a"]
    assert (PRICES.learnt("c"), PRICES.learnt("b")) == (True, False)
    out = io.StringIO()
    Console(file=out, width=100).print(render_joint([RECALL, PRICES]))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip(" ─")]
    assert lines[0] == "mixer recall, % prices, MSE ↓ N params"
    assert lines[1].startswith("b 98.0 ± 1.2 * 1.24 ± 0.00")
    assert lines[3].startswith("c – 0.375 ± 0.010")
    assert lines[4:6] == ["trivial answer 25.0 1.25", "linear model – 0.500"]
    assert "Score at the best learning rate" in lines[6]
    assert "not clearly better than the trivial answer" in " ".join(lines[6:])
    page = render_index([RECALL, PRICES], VERDICTS, "joint.csv")
    table = read(page).tables[0]
    assert table[0][1:3] == ["recall", "prices, MSE ↓"]
    assert [line[2] for line in table[1:]] == [
        "1.24 ± 0.00, not learnt",
        "–",
        "0.375 ± 0.010",
        "1.25",
        "0.500",
    ]
    assert "a member that diverged counts as 0 % or ∞" in page
    write_joint([RECALL, PRICES], tmp_path / "joint.csv")
    with (tmp_path / "joint.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["accuracy_mean"], r["mse_mean"], r["trivial_mse"]) for r in rows] == [
        ("0.27", "", ""),
        ("0.98", "", ""),
        ("", "1.24", "1.25"),
        ("", "0.375", "1.25"),
    ]


def test_data_in_full_precision(tmp_path: Path) -> None:
    write_joint(JOINT, tmp_path / "joint.csv")
    with (tmp_path / "joint.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], r["mixer"], r["learnt"], r["linear_accuracy"]) for r in rows] == [
        ("recall", "a", "0", ""),
        ("recall", "b", "1", ""),
        ("images", "c", "1", "0.856"),
        ("images", "b", "1", "0.856"),
    ]
    assert (float(rows[0]["accuracy_mean"]), float(rows[0]["trivial_accuracy"])) == (0.27, 0.25)


def test_read_from_the_rows_of_a_comparison(tmp_path: Path) -> None:
    rows = []
    for task, names in (("mqar", ["ssd", "s6"]), ("digits", ["ssd"])):
        for mixer, config in presets.configs("smoke", task, names).items():
            name = f"{mixer}-{task}"
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(to_json(config), encoding="utf-8")
            score = Score(len(rows) / 10, 0.01, 0.004, 8, 9)
            row = dataclasses.asdict(score) | {"best_learning_rate": 0.004}
            means = {"accuracy_mean": row.pop("mean"), "accuracy_std": row.pop("std")}
            rows.append({"mixer": name, **means, **row})
    (tmp_path / "compare.json").write_text(json.dumps(rows), encoding="utf-8")
    recall, images = read_joint(tmp_path)
    assert (recall.name, images.name) == ("mqar", "digits")
    assert recall.scores == {
        "ssd": Score(0.0, 0.01, 0.004, 8, 9),
        "s6": Score(0.1, 0.01, 0.004, 8, 9),
    }
    # The same mixer is in the same row, also where a task has no other to compare it with.
    assert images.scores == {"ssd": Score(0.2, 0.01, 0.004, 8, 9)}
    assert recall.linear is None
    known = tasks.get("digits").baselines()
    assert images.linear == known["linear"]
    np.testing.assert_allclose(known["linear"].score, 0.856, atol=5e-4)
    assert images.trivial == known["trivial"]
    assert read_joint(tmp_path / "ssd-mqar") == []
