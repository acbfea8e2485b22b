"""Data sets of tensorflow-datasets, read without TensorFlow.

Its builders write array_record files, which ``tfds.data_source`` reads example by example. The
package is imported where it is used only: it is an extra, and its import takes seconds.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dsfjax.tasks.data.declared import get
from dsfjax.tasks.data.reading import DataError, MissingDataError, data_dir

Records = Callable[[str], Iterable[Mapping[str, Any]]]
"""What a preparation reads examples with: name of a split to its examples, as NumPy data."""


def records(data_set: str, folder: Path | str | None = None) -> Records:
    """The reader of a data set in the layout of tensorflow-datasets.

    Args:
        data_set: Name of the data set (`dsfjax.tasks.data.DATA_SETS`).
        folder: The data folder (`dsfjax.tasks.data.data_dir`), which has
            ``<name>/<version>/dataset_info.json`` below it.

    Raises:
        DataError: If it has no name in tensorflow-datasets.
        MissingDataError: If the package or the data are not there.
    """
    name = _name(data_set)
    version_of(data_set, folder)
    found = data_dir(folder)
    return lambda split: _tfds().data_source(name, split=split, data_dir=str(found), download=False)


def version_of(data_set: str, folder: Path | str | None = None) -> str:
    """Which version of a data set is there, such as "mnist/3.0.1".

    Args:
        data_set: Name of the data set.
        folder: The data folder.

    Raises:
        DataError: If it has no name in tensorflow-datasets.
        MissingDataError: If it is not there.
    """
    name, root = _name(data_set), data_dir(folder)
    infos = (root / name).rglob("dataset_info.json")
    # While one is being written, its folder has another name.
    found = [path.parent for path in infos if re.fullmatch(r"\d+(\.\d+)*", path.parent.name)]
    if not found:
        raise MissingDataError(
            f"data: expected {root / name}/<version>/dataset_info.json of tensorflow-datasets, "
            f"found none; dsfjax data prepare {data_set} --source tfds fetches it where there is a "
            "network."
        )
    newest = max(found, key=lambda path: [int(part) for part in path.name.split(".")])
    return newest.relative_to(root).as_posix()


def download(data_set: str, folder: Path | str | None = None) -> None:
    """Let tensorflow-datasets fetch a data set and write it into the data folder.

    Args:
        data_set: Name of the data set.
        folder: The data folder.

    Raises:
        DataError: If it has no name in tensorflow-datasets.
        MissingDataError: If the package is not there.
    """
    name, root = _name(data_set), data_dir(folder)
    builder = _tfds().builder(name, data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()


def _name(data_set: str) -> str:
    if (name := get(data_set).tfds) is None:
        raise DataError(
            f"data: {data_set}: expected a data set that tensorflow-datasets has, got one that it "
            "has not; use source 'files'."
        )
    return name


def _tfds() -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f"data: expected tensorflow-datasets to be installed, got none ({error}); "
            "pip install 'dsfjax[data]'."
        ) from error
