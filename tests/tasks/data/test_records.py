"""Data sets in the layout of tensorflow-datasets."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsfjax.tasks import data
from dsfjax.tasks.data import records


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package that has one example of a split, and the list of what it was asked."""
    asked: list[Any] = []
    module = types.ModuleType("tensorflow_datasets")

    def data_source(name: str, **options: Any) -> list[dict[str, Any]]:
        asked.append((name, options))
        return [{"image": np.full((28, 28, 1), 7, np.uint8), "label": 3}]

    class Builder:
        def download_and_prepare(self) -> None:
            made = tmp_path / "mnist" / "3.0.1"
            made.mkdir(parents=True)
            (made / "dataset_info.json").write_text("{}")

    module.data_source = data_source  # type: ignore[attr-defined]
    module.builder = lambda name, **options: Builder()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.setenv("DSFJAX_DATA", str(tmp_path))
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path / "cache"))
    return asked


def test_records_of_what_was_fetched(fake: list[Any], tmp_path: Path) -> None:
    preparation = data.Preparation(
        "labels",
        "mnist",
        (),
        lambda read: {},
        from_tfds=lambda of: {"x": np.array([one["label"] for one in of("train")])},
    )
    assert not preparation.ready(data.TFDS)
    with pytest.raises(data.MissingDataError, match="dsfjax data prepare mnist --source tfds"):
        preparation.arrays(data.TFDS)
    data.download("mnist")
    assert records.version_of("mnist") == "mnist/3.0.1"
    assert preparation.arrays(data.TFDS)["x"].tolist() == [3]
    options = {"split": "train", "data_dir": str(tmp_path), "download": False}
    assert fake == [("mnist", options)]
    assert preparation.ready(data.TFDS)
    half = tmp_path / "mnist" / "incomplete.XY_11.0.0"  # as while one is being fetched
    half.mkdir()
    (half / "dataset_info.json").touch()
    assert records.version_of("mnist") == "mnist/3.0.1"
    (tmp_path / "mnist" / "10.0.0").mkdir()  # newer, as numbers and not as words
    (tmp_path / "mnist" / "10.0.0" / "dataset_info.json").write_text("{}")
    assert records.version_of("mnist") == "mnist/10.0.0"
    assert not preparation.ready(data.TFDS)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSFJAX_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match="ett: expected a data set that tensorflow-datasets"):
        records.records("ett")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(data.MissingDataError, match=r"pip install 'dsfjax\[data\]'"):
        data.download("mnist")
