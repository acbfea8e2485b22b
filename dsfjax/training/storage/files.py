"""The files of runs: there whole or not at all (`dsfjax._util.atomic`), damaged ones set aside.

What is certainly ours and certainly half-written is renamed to ``broken_<name>`` with a warning in
the log (logger ``dsfjax``), never deleted and never read. Anything else that does not fit is an
error of the caller, and stays as it is.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsfjax._util.atomic import LOCK, TEMPORARY, sync_folder
from dsfjax._util.atomic import lock as lock
from dsfjax._util.atomic import write_bytes as write_bytes

_BROKEN = "broken_"
_log = logging.getLogger("dsfjax")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file so that it is there whole or not at all.

    Args:
        path: The file; its folder is created if need be.
        data: JSON data without NaN.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, a loss of power included.

    Args:
        path: The file; its folder is created if need be.
        text: Its content.
    """
    write_bytes(path, text.encode())


def append_lines(path: Path, lines: Iterable[Any]) -> None:
    """Add lines of JSON to a file; they are on the disk when this returns.

    Args:
        path: The file; created if need be, in a folder that exists.
        lines: JSON data without NaN, an object per line.
    """
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def sync(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk.

    Args:
        folder: A folder that another library has written.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.

    Returns:
        JSON data.

    Raises:
        ValueError: If it is no JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def set_aside(path: Path, reason: str) -> Path:
    """Rename what cannot be used, and say so in the log.

    Args:
        path: A file or folder.
        reason: What is wrong with it.

    Returns:
        Its new path. What was there before is removed.
    """
    aside = path.with_name(_BROKEN + path.name)
    if aside.is_dir():
        shutil.rmtree(aside)
    path.rename(aside)
    _log.warning("%s set aside as %s: %s", path, aside.name, reason)
    return aside


def is_aside(path: Path) -> bool:
    """Whether a file or folder has been set aside.

    Args:
        path: The file or folder.

    Returns:
        True if so.
    """
    return path.name.startswith(_BROKEN)


def is_ours(path: Path) -> bool:
    """Whether a file is one that this module leaves behind when a process is killed.

    Args:
        path: The file.

    Returns:
        True for temporary files, locks and what has been set aside.
    """
    return path.name == LOCK or bool(TEMPORARY.fullmatch(path.name)) or is_aside(path)
