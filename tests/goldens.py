"""Reference values of the original implementations.

``tests/golden`` holds a selection; with the environment variable ``DSFJAX_GOLDEN`` the tests read
another folder of such files.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(os.environ.get("DSFJAX_GOLDEN", Path(__file__).parent / "golden"))


class Golden(Mapping[str, np.ndarray]):
    """The arrays of one file by name, and its description in ``meta``."""

    def __init__(self, name: str, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.name = name
        self.meta = meta
        self.arrays = arrays

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays named ``prefix.<name>``, under ``<name>``."""
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}


def names(pattern: str) -> list[str]:
    """Names of the files that match, for ``pytest.mark.parametrize``; never empty."""
    found = sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))
    if not found:
        raise ValueError(f"no golden file matches {pattern!r} in {FOLDER}")
    return found


@functools.cache
def load(name: str) -> Golden:
    """Read ``<name>.npz``; the arrays are read-only, as the file is shared."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(arrays.pop("meta").item())
    for array in arrays.values():
        array.flags.writeable = False
    return Golden(name, meta, arrays)
