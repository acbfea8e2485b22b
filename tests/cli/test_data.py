"""``dsfjax data``."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsfjax.cli import main, parse
from dsfjax.cli.settings import given_by
from dsfjax.tasks import data
from dsfjax.tasks.data import declared


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one small data set of which bytes are made."""
    one = data.DataSet("small", "Small", (data.DataFile("small/a.txt"),), "free", "me", "make it")
    monkeypatch.setattr(declared, "DATA_SETS", known := {"small": one, "ett": data.get("ett")})
    monkeypatch.setattr(data, "DATA_SETS", known)
    made = data.Preparation(
        "bytes", "small", ("small/a.txt",), lambda read: {"x": np.frombuffer(read("small/a.txt"))}
    )
    monkeypatch.setattr(data, "PREPARATIONS", {"bytes": made})
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DSFJAX_DATA", "")  # so that what a command sets does not outlast the test
    (tmp_path / "data" / "small").mkdir(parents=True)
    (tmp_path / "data" / "small" / "a.txt").write_bytes(bytes(800))
    return tmp_path / "data"


def _lines(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_list_and_prepare(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "list"]) == 0
    lines = _lines(capsys.readouterr().out)
    assert "0 of 1" in lines["small"] and "0 of 4" in lines["ett"] and "CC BY-ND" in lines["ett"]
    assert main(["data", "list", "--data-dir", str(folder)]) == 0
    assert "1 of 1" in _lines(capsys.readouterr().out)["small"]

    monkeypatch.setenv("DSFJAX_DATA", "")
    assert main(["data", "prepare", "--data-dir", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("small: prepared, 0.0 MB, in ") and out[1] == "ett: not there"
    assert os.environ["DSFJAX_DATA"] == str(folder)
    assert main(["data", "prepare", "small"]) == 0
    assert capsys.readouterr().out == "small: already prepared\n"
    assert main(["data", "list", "small"]) == 0
    assert "yes" in _lines(capsys.readouterr().out)["small"]

    assert main(["data", "prepare", "ett", "small"]) == 1
    out, err = capsys.readouterr()
    assert out == "small: already prepared\n"
    assert err.startswith("dsfjax: ett: data: expected the file ett/ETTh1.csv or ") and "\n" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data", "expected one of list, prepare"),
        ("data lits", "unknown action 'lits'; did you mean 'list'?"),
        ("data list smal", "unknown data set 'smal'; did you mean 'small'?"),
        ("data prepare", "got none; pass --data-dir or set DSFJAX_DATA"),
        ("data list --data-dir /nowhere", "got /nowhere, which does not exist"),
        ("data list --source tdfs", "unknown source 'tdfs'; did you mean 'tfds'?"),
        ("data list --data-dri x", "did you mean '--data-dir'?"),
    ],
)
def test_refused(words: str, message: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dsfjax: ") and message in err and err.count("\n") == 1


def test_the_folder_is_no_part_of_a_run() -> None:
    for name, more in (("train", ["--mixer", "ssd"]), ("compare", []), ("sweep", [])):
        command: Callable | None = parse.parse([name, "digits", *more, "--data-dir", "here"])  # type: ignore
        assert command.data_dir == Path("here")  # type: ignore[union-attr]
        assert "data_dir" not in given_by(command)  # type: ignore[arg-type]
