"""``dsfjax lengths``: trained models on longer sequences."""

import csv
from pathlib import Path

import pytest

from dsfjax.cli import main
from dsfjax.training import load


@pytest.mark.slow
def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    words = "compare parity --preset smoke --steps 8 --mixers ssd softmax_attention --seq-len 8"
    assert main([*words.split(), "--no-report", "--run-dir", str(folder)]) == 0
    capsys.readouterr()
    assert main(["lengths", str(folder), "--factors", "1", "2", "--out", str(out)]) == 0
    said, err = capsys.readouterr()
    assert err == "" and "×2" in said and "carried" in said
    with (out / "lengths.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Two lengths and two seeds; softmax attention begins without a state only.
    assert len(rows) == 2 * 2 * (3 + 1) and (out / "lengths.png").stat().st_size > 5000
    at_one = [r for r in rows if (r["run"], r["start"], r["factor"]) == ("ssd", "empty", "1")]
    members = load(folder / "ssd").members
    for row in at_one:
        own = [m.eval_score for m in members if m.point.seed == int(row["seed"])]
        assert float(row["score"]) in own
    assert len(at_one) == 2


@pytest.mark.slow
def test_lengths_that_are_not_there_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = str(tmp_path / "run")
    words = "train mqar --preset smoke --steps 4 --mixer ssd --max-length 16 --run-dir"
    assert main([*words.split(), folder]) == 0
    capsys.readouterr()
    words = "--factors 1 2 4 --starts empty --examples 4"
    assert main(["lengths", folder, *words.split()]) == 0
    said = capsys.readouterr().out
    assert "2 times the length left out: " in said and "4 times the length left out: " in said
    assert (tmp_path / "run" / "lengths" / "lengths.csv").exists()


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["lengths", str(tmp_path)]) == 2
    assert "expected a finished run" in capsys.readouterr().err
    assert main(["lengths", str(tmp_path), "--factors", "0"]) == 2
    assert "expected factors of at least 1, got (0,)" in capsys.readouterr().err
