"""How a comparison over several tasks ends in the terminal."""

from pathlib import Path

import pytest

from dsfjax.cli import analyze, options, training
from dsfjax.report import Report, Reports
from tests.report.test_joint import JOINT, VERDICTS


def test_one_table_then_an_answer_per_task_then_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    pages = [Report(tmp_path, verdict) for verdict in VERDICTS]
    index = tmp_path / "index.html"
    monkeypatch.setattr(analyze, "write_all", lambda *_, **__: Reports(index, pages, JOINT))
    analyze.report(tmp_path, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mixer", "recall,", "%", "images,", "%", "N", "params"]
    assert lines[-4:] == [
        "recall: For this task, b: 98 %.",
        "- 1 seed <b>",
        "images: No model reaches η_t.",
        f"report: {index}",
    ]


@pytest.mark.parametrize("no_report", [False, True])
def test_rows_of_several_tasks_are_not_sorted_among_each_other(
    no_report: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(training, "read_joint", lambda _: JOINT)
    command = options.Compare(task=("recall", "images"), no_report=no_report)
    training.finish([], tmp_path, command)
    out = capsys.readouterr().out
    # With a report the table comes after it, next to the answers.
    assert ("trivial answer" in out) == no_report
    assert "steps to" not in out
    assert out.endswith(f"run directory: {tmp_path}\n")
