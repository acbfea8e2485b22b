"""Arrays that took a while to make, kept on disk and mapped into memory.

A set of arrays is a folder: an npy file for each, and ``about.json``, which is written last and
says what belongs to it. Each file is there whole or not at all (`dsfjax._util.atomic`), so a folder
with a fitting ``about.json`` is whole, and one without is made again.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsfjax._util.atomic import lock, replacing, write_bytes

VARIABLE = "DSFJAX_CACHE"
"""Environment variable that names the folder of prepared arrays."""

_ABOUT = "about.json"


def cache_dir() -> Path:
    """The folder of prepared arrays: ``DSFJAX_CACHE``, or ``dsfjax`` in the user's cache folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dsfjax"


def cached(
    name: str, key: Sequence[object], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays from the cache, made if they are not there.

    Args:
        name: What they are, a word for a folder's name.
        key: Everything that they depend on: checksums of sources, options, and a version of the
            code that makes them. Its ``repr`` must say all of it.
        make: Makes the arrays, by name.

    Returns:
        The arrays, read-only and mapped into memory: what is not looked at is not read.

    Raises:
        ValueError: If the cache cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     os.environ[VARIABLE] = folder
        ...     first = cached("squares", (3, 1), lambda: {"x": np.arange(3) ** 2})
        ...     again = cached("squares", (3, 1), lambda: {})
        ...     del os.environ[VARIABLE]
        ...     again["x"].tolist()
        [0, 1, 4]
    """
    folder = _folder(name, key)
    if (found := _load(folder)) is not None:
        return found
    try:
        with lock(folder):
            if _load(folder) is None:  # nobody made them while we waited for the lock
                _save(folder, make(), key)
    except OSError as error:
        raise ValueError(
            f"data: expected a cache folder to write to, got {folder} ({error.strerror}); set "
            f"{VARIABLE} to another."
        ) from error
    found = _load(folder)
    assert found is not None
    return found


def is_cached(name: str, key: Sequence[object]) -> bool:
    """Whether arrays are in the cache, whole.

    Args:
        name: What they are.
        key: What they depend on.
    """
    return _load(_folder(name, key)) is not None


def _folder(name: str, key: Sequence[object]) -> Path:
    return cache_dir() / f"{name}-{hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:12]}"


def _save(folder: Path, arrays: Mapping[str, np.ndarray], key: Sequence[object]) -> None:
    sizes = {}
    for name, array in arrays.items():
        with replacing(folder / f"{name}.npy") as file:
            np.save(file, array, allow_pickle=False)
            sizes[name] = file.tell()
    about = {"of": repr(tuple(key)), "bytes": sizes}
    write_bytes(folder / _ABOUT, json.dumps(about, indent=2).encode())


def _load(folder: Path) -> dict[str, np.ndarray] | None:
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_bytes())
        found = {}
        for name, size in about["bytes"].items():
            path = folder / f"{name}.npy"
            if path.stat().st_size != size:
                return None
            found[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None
