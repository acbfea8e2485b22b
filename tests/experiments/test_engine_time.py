"""The table of engines and forms: every row has its numbers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import comparison, engine_time
from experiments.comparison import Options


@pytest.mark.slow
def test_every_row_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "engine_time.json"
    rows = engine_time.COMPARISON.run(Options(scale="demo", repeats=3, out=out), "the command")
    written = json.loads(out.read_text())
    assert written["command"] == "the command"
    assert written["rows"] == [row._asdict() for row in rows]
    wanted = [1 / 1.15, 1 / 2.5, *[1 / 1.2] * 2, None, None, *[1] * 4]
    assert [row.wanted for row in rows] == wanted
    for row in rows:
        assert row.ratio == pytest.approx(row.other / row.ours) and row.ratio > 0
    median, slowest = (row.ours for row in rows[-2:])
    assert median <= slowest and "of 2 within 4 s" in rows[-2].case


def test_a_function_compiles_once_per_program(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compiled(op: object, gradients: bool) -> float:
        seen.append((op, gradients))
        return {False: 1.0, True: 5.0}[gradients]

    monkeypatch.setattr(engine_time, "_compiled", compiled)
    rows = list(engine_time.compilation(engine_time.LENGTHS["demo"], lambda runs: {}))
    assert len(set(seen)) == len(seen) == 4
    assert [(row.ours, row.other) for row in rows] == [(1, 1.5), (1, 1.5), (5, 4), (5, 4)]
    assert "2 of 2 within 1.5 s" in rows[0].case and "0 of 2 within 4 s" in rows[2].case


def test_a_part_alone_leaves_the_results_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = comparison.Row("a", "b", 1.0, 2.0, "ms", 2.0, None)

    def part(sizes: object, seconds: object) -> Iterator[comparison.Row]:
        yield row

    both = comparison.Comparison("name", None, {"one": part, "two": part}, {"demo": None})
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    whole, other = tmp_path / "demo" / "name.json", tmp_path / "other.json"
    assert both.run(Options(scale="demo")) == [row, row]
    before = whole.read_bytes()
    assert both.run(Options(scale="demo", only=("two",))) == [row]
    both.run(Options(scale="demo", only=("two",), out=other))
    assert whole.read_bytes() == before
    assert len(json.loads(other.read_text())["rows"]) == 1


def test_a_part_that_there_is_not_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "never.json"
    with pytest.raises(ValueError, match="decays"):
        engine_time.COMPARISON.run(Options(only=("decay",), out=out))
    assert not out.exists()
