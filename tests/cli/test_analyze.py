"""``dsfjax analyze``: of one run, and of a comparison with members that diverged."""

import csv
from pathlib import Path

import pytest

from dsfjax.cli import main
from dsfjax.training import load, presets, to_json

SMOKE = ["--preset", "smoke", "--steps", "8"]


def run(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Standard output of a command that succeeds."""
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    run(capsys, "train", "mqar", *SMOKE, "--mixer", "softmax_attention", "--run-dir", folder)
    assert not (folder / "report").exists()
    out = run(capsys, "analyze", folder)
    assert out.endswith(f"report: {folder}/report/index.html\n")
    assert "- 1 seed per learning rate" in out
    assert "softmax_attention" in (folder / "report" / "index.html").read_text()
    (row,) = rows(folder / "report" / "data" / "summary.csv")
    assert float(row["accuracy_mean"]) == load(folder).result["members"][0]["eval_accuracy"]


def test_members_that_diverged_are_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    words = ["--mixers", "softmax_attention", "--seeds", 0, "--lrs", 1e300, "--run-dir", folder]
    run(capsys, "compare", "mqar", *SMOKE, *words, "--no-report")
    said = run(capsys, "analyze", folder, "--report", out)
    assert "None can be recommended" in said and "diverged; they count as 0 %" in said
    page = (out / "index.html").read_text()
    assert "softmax_attention: every member at its best learning rate diverged" in page
    assert [(x["status"], x["accuracy"]) for x in rows(out / "data" / "members.csv")] == [
        ("diverged", "0.0")
    ]


def test_a_run_of_an_unknown_mixer_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (config,) = presets.configs("smoke", "mqar", ["ssd"]).values()
    run = tmp_path / "mine"
    run.mkdir()
    (run / "config.json").write_text(to_json(config).replace('"ssd"', '"sdd"'))
    (run / "result.json").write_text("{}")
    (tmp_path / "compare.json").write_text('[{"mixer": "mine"}]')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    for folder in (run, tmp_path):
        assert main(["analyze", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert "unknown mixer 'sdd'; did you mean 'ssd'?" in err
        assert "import the module that registers what it names (--import)" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_run_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    run(capsys, "train", "mqar", *SMOKE, "--mixer", "softmax_attention", "--run-dir", folder)
    for path in (folder / "checkpoints").glob("*/state/*"):
        path.unlink() if path.is_file() else None
    assert main(["analyze", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dsfjax: checkpoint ") and err.count("\n") == 1
