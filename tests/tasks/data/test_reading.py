"""Files of a data folder: found, checked, parsed; and what is said of bad ones."""

import lzma
import re
from pathlib import Path

import numpy as np
import pytest

from dsfjax.tasks import data
from tests.tasks.conftest import MakeUp

PATH = "listops_original/test_d20s.tsv"


def test_read_takes_a_file_compressed_or_not(made_up: MakeUp) -> None:
    folder = made_up({PATH: b"a\tb\n"})
    assert data.find(PATH) == folder / f"{PATH}.xz"
    assert data.read(PATH) == b"a\tb\n"
    (folder / f"{PATH}.xz").rename(folder / PATH)
    (folder / PATH).write_bytes(b"a\tb\n")
    assert data.find(PATH) == folder / PATH
    assert data.read(PATH, folder) == b"a\tb\n"


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSFJAX_DATA", raising=False)
    with pytest.raises(data.MissingDataError, match="got none; pass --data-dir or set DSFJAX_DATA"):
        data.data_dir()
    monkeypatch.setenv("DSFJAX_DATA", str(tmp_path / "no"))
    with pytest.raises(data.MissingDataError, match="no, which does not exist; pass --data-dir"):
        data.read(PATH)
    (tmp_path / "no").touch()
    with pytest.raises(data.MissingDataError, match="which is not a folder"):
        data.data_dir()
    assert data.data_dir(tmp_path) == tmp_path  # an argument has priority


def test_bad_files_are_named_with_a_remedy(made_up: MakeUp) -> None:
    content = bytes(range(256)) * 40
    folder = made_up({PATH: content})
    packed = folder / f"{PATH}.xz"
    whole, remedy = packed.read_bytes(), "; get it from .*github.com/nyu-mll/spinn"

    packed.write_bytes(whole[:-40])
    with pytest.raises(data.DataError, match=f"{packed}: expected a whole xz file.*{remedy}"):
        data.read(PATH)
    packed.write_bytes(b"not xz at all")
    with pytest.raises(data.DataError, match="expected a whole xz file"):
        data.read(PATH)
    packed.write_bytes(lzma.compress(content + b"x"))
    with pytest.raises(data.DataError, match=f"{packed}: expected content with sha256 .*{remedy}"):
        data.read(PATH)
    packed.unlink()
    with pytest.raises(data.MissingDataError, match=f"the file {PATH} or .*xz in .*{remedy}"):
        data.read(PATH)
    with pytest.raises(ValueError, match="unknown data file 'mnist/t10k'; did you mean 'mnist/t1"):
        data.read("mnist/t10k")


def test_rows(made_up: MakeUp) -> None:
    made_up({PATH: b""}, {PATH: 2})
    assert data.rows(b"1\ta\x85b\n2\tc\td\n", PATH, 2) == [[b"1", b"a\x85b"], [b"2", b"c\td"]]
    with pytest.raises(data.DataError, match=f"{PATH}, line 2: expected 3 columns, got 2; get"):
        data.rows(b"1\t2\t3\n1\t2\n", PATH, 3)
    with pytest.raises(data.DataError, match="expected 2 rows, got 1;"):
        data.rows(b"1,2\n", PATH, 2, separator=b",")


def test_text_that_is_not_utf8() -> None:
    assert data.text("ä\n".encode(), PATH) == "ä\n"
    with pytest.raises(data.DataError, match=re.escape("line 2 (byte 3): expected UTF-8 text, go")):
        data.text(b"ab\n\xffc", PATH)


def test_arrays_of_a_file(tmp_path: Path) -> None:
    path = "imdb/imdb_movie_ids.npz"
    np.savez(tmp_path / "a.npz", train=np.arange(3))
    np.save(tmp_path / "a.npy", np.arange(2))
    npz, npy = ((tmp_path / f"a.{suffix}").read_bytes() for suffix in ("npz", "npy"))
    assert data.arrays_of(npz, path, "train")["train"].tolist() == [0, 1, 2]
    assert data.arrays_of(npy, path)[""].tolist() == [0, 1]
    with pytest.raises(data.DataError, match="expected arrays train, test, got none named test"):
        data.arrays_of(npz, path, "train", "test")
    for bad in (npz[:-30], npy[:-1], b"", b"hello"):
        with pytest.raises(data.DataError, match=f"{path}: expected a file of NumPy arrays"):
            data.arrays_of(bad, path)


def test_declarations() -> None:
    paths = [one.path for known in data.DATA_SETS.values() for one in known.files]
    assert len(set(paths)) == len(paths)
    for name, known in data.DATA_SETS.items():
        assert known.name == name and known.title and known.licence and known.citation
        assert not known.remedy.endswith(".")
        for one in known.files:
            assert one.sha256 is None or re.fullmatch("[0-9a-f]{64}", one.sha256)
            assert not one.path.endswith(".xz")
    known = data.get("mnist")
    with pytest.raises(ValueError, match="which is a file of 'mnist'; leave it out"):
        data.declare(data.DataSet("mine", "m", known.files, "l", "c", "get it"))
    assert "mine" not in data.DATA_SETS
    assert data.provenance(["aan"]).startswith("aan/new_aan_pairs.train.tsv (own copy), ")


@pytest.mark.slow
def test_staged_files_are_the_declared_ones(data_dir: Path) -> None:
    known = [one.path for each in data.DATA_SETS.values() for one in each.files]
    found = [path for path in known if data.find(path)]
    assert found
    for path in found:
        data.read(path)
