"""Prepared arrays: made once, whole or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dsfjax.tasks import data
from dsfjax.tasks.data import cache
from tests.tasks.conftest import MakeUp

PATH = "listops_original/test_d20s.tsv"
OWN = "wikitext103/wiki.test.tokens"


def _arrays() -> Mapping[str, np.ndarray]:
    return {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "none": np.zeros(0), "y": np.ones(())}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path / "cache"))


def test_arrays_are_made_once_and_mapped() -> None:
    made = []

    def make() -> Mapping[str, np.ndarray]:
        made.append(1)
        return _arrays()

    for _ in range(2):
        found = data.cached("a", (1, "b"), make)
        assert {k: (v.dtype, v.tolist()) for k, v in found.items()} == {
            k: (v.dtype, v.tolist()) for k, v in _arrays().items()
        }
        assert isinstance(found["x"], np.memmap) and not found["x"].flags.writeable
    assert made == [1]
    data.cached("a", (2, "b"), make)
    assert made == [1, 1]
    assert cache.is_cached("a", (2, "b")) and not cache.is_cached("a", (3, "b"))


def test_what_was_left_half_made_is_made_again() -> None:
    data.cached("a", (1,), _arrays)
    folder = cache._folder("a", (1,))
    about = (folder / "about.json").read_bytes()
    for damage in ("no about", "half an about", "half an array", "no array"):
        match damage:
            case "no about":  # killed between two arrays
                (folder / "about.json").unlink()
                (folder / f"x.npy.{os.getpid()}.tmp").write_bytes(b"half")
            case "half an about":
                (folder / "about.json").write_bytes(about[:-9])
            case "half an array":
                (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-1])
            case _:
                (folder / "x.npy").unlink()
        assert not cache.is_cached("a", (1,)), damage
        assert data.cached("a", (1,), _arrays)["x"].sum() == 15
        assert sorted(path.name for path in folder.iterdir()) == [
            ".lock",
            "about.json",
            "none.npy",
            "x.npy",
            "y.npy",
        ]


@pytest.mark.slow
def test_a_killed_preparation_is_done_again() -> None:
    code = (
        "import os, signal, numpy as np\n"
        "from dsfjax.tasks.data import cache\n"
        "def killed(path, data):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.write_bytes = killed\n"
        "cache.cached('a', (1,), lambda: {'x': np.zeros(3)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (cache._folder("a", (1,)) / "x.npy").exists()
    assert not cache.is_cached("a", (1,))
    assert data.cached("a", (1,), _arrays)["x"].sum() == 15


def test_a_failed_preparation_leaves_nothing_to_read() -> None:
    def fail() -> Mapping[str, np.ndarray]:
        raise data.DataError("data: no")

    with pytest.raises(data.DataError):
        data.cached("a", (1,), fail)
    assert not cache.is_cached("a", (1,))


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSFJAX_CACHE", "/dev/null/x")
    with pytest.raises(ValueError, match="/dev/null/x/a-.* set DSFJAX_CACHE to another"):
        data.cached("a", (1,), _arrays)


def test_a_missing_file_is_not_taken_for_a_bad_cache(made_up: MakeUp) -> None:
    made_up({PATH: b"abc"})
    (data.data_dir() / f"{PATH}.xz").unlink()
    with pytest.raises(data.MissingDataError):
        _first_byte(PATH).arrays()


def _first_byte(path: str) -> data.Preparation:
    return data.Preparation(
        "first_byte",
        data.set_of(path).name,
        (path,),
        lambda read: {"x": np.frombuffer(read(path), np.uint8)[:1]},
    )


def test_preparation_depends_on_its_files(made_up: MakeUp) -> None:
    preparation = _first_byte(PATH)
    folder = made_up({PATH: b"abc"})
    assert not preparation.ready()
    assert preparation.arrays()["x"].tolist() == [ord("a")]
    assert preparation.ready()
    (folder / f"{PATH}.xz").unlink()  # its checksum is declared: what was made of it is enough
    assert preparation.arrays()["x"].tolist() == [ord("a")]
    made_up({PATH: b"bcd"})
    assert not preparation.ready()
    assert preparation.arrays()["x"].tolist() == [ord("b")]
    with pytest.raises(ValueError, match="unknown source of data 'tfds'.* Known: files"):
        preparation.arrays(data.TFDS)


def test_preparation_of_a_copy_of_ones_own(made_up: MakeUp) -> None:
    preparation = _first_byte(OWN)
    folder = made_up({OWN: b"abc"})
    assert preparation.arrays()["x"].tolist() == [ord("a")]
    made_up({OWN: b"bcd, and more of it"})  # has no declared checksum, so its size and time count
    assert preparation.arrays()["x"].tolist() == [ord("b")]
    (folder / f"{OWN}.xz").unlink()
    assert not preparation.ready()
    with pytest.raises(data.MissingDataError, match=f"the file {OWN}"):
        preparation.arrays()
