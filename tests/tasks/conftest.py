"""Data for tests of tasks: made up in the format of the files, or the user's own."""

import dataclasses
import hashlib
import lzma
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dsfjax.tasks import data

MakeUp = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a data folder there are no prepared data either, so that all machines test alike."""
    if "DSFJAX_DATA" not in os.environ:
        monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def data_dir() -> Path:
    """The user's data folder; the test is skipped where there is none."""
    if "DSFJAX_DATA" not in os.environ:
        pytest.skip("DSFJAX_DATA is not set, so there are no data sets")
    return data.data_dir()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeUp:
    """``made_up({path: content}, {path: rows})`` writes a data folder and declares its files so.

    Contents are compressed, their checksums are declared, and a file's number of rows is that
    given, or not fixed. The cache of prepared arrays is a folder of the test. Returns the folder.
    """

    def make_up(files: Mapping[str, bytes], rows: Mapping[str, int] | None = None) -> Path:
        folder = tmp_path / "data"
        for path, content in files.items():
            packed = folder / f"{path}.xz"
            packed.parent.mkdir(parents=True, exist_ok=True)
            packed.write_bytes(lzma.compress(content, preset=0))
        for one in {data.set_of(path).name: data.set_of(path) for path in files}.values():
            declared = [
                dataclasses.replace(
                    each,
                    sha256=each.sha256 and hashlib.sha256(files[each.path]).hexdigest(),
                    rows=(rows or {}).get(each.path),
                )
                if each.path in files
                else each
                for each in one.files
            ]
            remade = dataclasses.replace(one, files=tuple(declared))
            monkeypatch.setitem(data.DATA_SETS, one.name, remade)
        monkeypatch.setenv("DSFJAX_DATA", str(folder))
        monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path / "cache"))
        return folder

    return make_up
