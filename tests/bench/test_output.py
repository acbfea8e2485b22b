"""Files and tables of a small run."""

import csv
import json
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from dsfjax import bench
from dsfjax.bench import lengths
from dsfjax.bench.measure import Measurement
from dsfjax.bench.roofline import Roofline
from dsfjax.bench.targets import Target, choices, verdicts
from dsfjax.bench.write import as_json, environment, markdown, plot

SIZES = "B=4"
ROWS = [
    Measurement("ssd", "scalar", SIZES, "sequential", "ours", False, None, 2.0, 80.0, 1.5, 2**20,
                3 * 2**20, 0.25, 1e-7, 2e-7),
    Measurement("ssd", "scalar", SIZES, "chunked", "ours", True, None, 1.0, 10.0, 2.5, 2**19,
                2**21, 0.5, 3e-7, 2e-5),
    Measurement("ssd", "scalar", SIZES, "autodiff associative_scan", "baseline", False, None, None,
                500.0, 1.0, 30 * 2**20, 31 * 2**20, None, 1e-7, 2e-7),
    Measurement("simple_gla", "scalar", SIZES, "FLA", "peer", skipped="torch not installed"),
]  # fmt: skip


def results(precision: str = "float32", *, quick: bool = False) -> bench.Results:
    machine = {
        "device": "cpu", "devices": 4, "backend": "cpu", "processor": "a processor", "cores": 4,
        "usable_cores": 2, "python": "3.11", "versions": {"jax": "0.10.2", "torch": None},
        "allocator": {"MALLOC_MMAP_MAX_": "0"}, "threads": {},
    }  # fmt: skip
    return bench.Results(
        machine,
        Roofline(2e10, 3e11),
        precision,
        quick,
        5,
        ROWS,
        verdicts(ROWS),
        choices(ROWS),
        [lengths.Growth("s6", "chunked", 1.0, 17.0, 17.0, True)],
        [lengths.Latency("s6", (64, 4096), (20.0, 21.0))],
        [lengths.LongError("s6", "chunked", 100_000, 2e-3, False)],
        [lengths.LongMemory("ssd", "chunked", 2**20, 3 * 2**30, True)],
    )


def cells(found: bench.Results, title: str) -> list[tuple[str, ...]]:
    (table,) = (t for t in bench.tables(found) if t.title.startswith(title))
    assert all(len(row) == len(table.head) for row in table.rows)
    return table.rows


def test_tables_say_what_was_measured() -> None:
    grid = cells(results(), "Engines")
    assert grid[0][:6] == ("ssd", "scalar", SIZES, "sequential", "2", "80")
    assert grid[1][:5] == ("", "", "", "chunked *", "1")
    assert grid[1][6:] == ("1", "0.5", "2", "2.5", "50 %", "3.0e-07", "2.0e-05")
    assert grid[3][3:5] == ("FLA", "not run: torch not installed")
    targets = cells(results(), "Must reach")
    first = targets[0]
    assert first[2:8] == (
        "autodiff associative_scan", "10 ms", "500 ms", "50×", "40×", "yes"
    )  # fmt: skip
    assert ("value error, the worst", "yes") == (targets[-2][0], targets[-2][7])
    assert ("gradient error, the worst", "no") == (targets[-1][0], targets[-1][7])
    assert cells(results(), "auto")[0] == ("ssd", "chunked", "chunked", "1.00", "1.00", "yes")
    assert cells(results(), "Length: forward")[0][-2:] == ("17", "yes")
    assert cells(results(), "Length: one decoding")[0] == ("s6", "20", "21")
    assert cells(results(), "Length: float32")[0][-2:] == ("2.0e-03", "no")
    assert cells(results(), "Length: memory")[0][-2:] == ("3,072", "yes")


@pytest.mark.parametrize(
    ("of", "ours", "theirs"),
    [
        ("gradient_ms", "10 ms", "500 ms"),
        ("compile_s", "2.5 s", "1 s"),
        ("temporary_bytes", "0.5 MiB", "30 MiB"),
        ("total_bytes", "2 MiB", "31 MiB"),
    ],
)
def test_a_target_is_shown_in_its_unit(of: str, ours: str, theirs: str) -> None:
    target = Target("what", "ssd", "autodiff associative_scan", 1, of)
    found = results()._replace(verdicts=verdicts(ROWS, [target]))
    assert cells(found, "Must reach")[0][3:5] == (ours, theirs)


def test_reduced_sizes_are_not_judged() -> None:
    found = results(quick=True)
    assert [row[7] for row in cells(found, "Must reach")[:2]] == ["–", "–"]
    assert cells(found, "auto")[0][-1] == "–"
    assert cells(found, "Length: forward")[0][-1] == "–"


def test_another_precision_is_named_and_its_ratios_are_not_judged() -> None:
    found = results("bfloat16")
    titles = [table.title for table in bench.tables(found)]
    assert titles[0].startswith("Engines and contestants, bfloat16")
    assert "Must reach, in bfloat16: not judged" in titles
    assert "bfloat16 products" in environment(found)
    assert as_json(found)["precision"] == "bfloat16"
    rows = cells(found, "Must reach")
    assert [row[7] for row in rows[:2]] == ["–", "–"]
    assert [row[6:8] for row in rows[-2:]] == [("≤ 0.015625", "yes"), ("≤ 0.03125", "yes")]
    assert cells(found, "auto")[0][-1] == "–"


def test_files(tmp_path: Path) -> None:
    files = bench.write(results(), tmp_path / "new" / "folder")
    assert [f.name for f in files] == ["bench.json", "bench.md", "grid.csv", "bench.png"]
    data = json.loads(files[0].read_text())
    assert data["rows"][1]["gradient_ms"] == 10.0
    assert data["rows"][1]["chosen"] is True
    assert data["verdicts"][0]["target"]["wanted"] == 40
    assert data["machine"]["allocator"] == {"MALLOC_MMAP_MAX_": "0"}
    assert data == json.loads(json.dumps(as_json(results())))
    with files[2].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == [row.contestant for row in ROWS]
    assert (rows[0]["gradient_ms"], rows[3]["skipped"]) == ("80.0", "torch not installed")
    assert files[3].read_bytes().startswith(b"\x89PNG")


def test_markdown_and_environment() -> None:
    text = markdown(results())
    assert "| ssd | scalar | B=4 | sequential | 2 | 80 |" in text
    assert "MALLOC_MMAP_MAX_=0" in text
    said = environment(results())
    assert "2 of 4 usable" in said
    assert "20.0 GB/s copied, 300 Gflop/s" in said
    assert "torch" not in said  # it is not installed there


def test_plot_has_a_bar_per_contestant_that_ran() -> None:
    (ax,) = plot(ROWS).axes
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    widths = sorted(bar.get_width() for bar in bars if bar.get_width())
    assert widths == [10.0, 80.0, 500.0]
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "chunked *"


def test_share_of_the_roofline() -> None:
    rates = Roofline(bytes_per_s=1e9, flops_per_s=1e12)
    assert rates.share(flops=1e9, moved=1e6, milliseconds=2.0) == pytest.approx(0.5)
    assert rates.share(flops=1e9, moved=4e6, milliseconds=8.0) == pytest.approx(0.5)
