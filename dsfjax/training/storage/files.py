"""Files that are there whole or not at all, damaged ones set aside, and folders taken by one.

A file is written under another name, synced to the disk, and renamed; then the folder is synced,
because a rename is an entry of the folder. So neither a kill nor a loss of power leaves half a
file.

What is certainly ours and certainly half-written is renamed to ``broken_<name>`` with a warning in
the log (logger ``dsfjax``), never deleted and never read. Anything else that does not fit is an
error of the caller, and stays as it is.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

_BROKEN, _LOCK = "broken_", ".lock"
_TEMPORARY = re.compile(r".+\.\d+\.tmp")
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, a loss of power included.

    Args:
        path: The file; its folder is created if need be.
        data: Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of this process: others may be writing the same file, and one of them wins.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


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
        _sync_folder(path.parent)


def sync(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk.

    Args:
        folder: A folder that another library has written.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there; NTFS logs a rename before it returns
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    return path.name == _LOCK or bool(_TEMPORARY.fullmatch(path.name)) or is_aside(path)


@contextlib.contextmanager
def lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Have a folder for oneself.

    The lock is the operating system's on an open file, so it ends with the process, however that
    ends. It is advisory: only those see it who ask for it.

    Args:
        folder: The folder; created if need be.
        wait: Whether to wait while another process has it.

    Yields:
        Whether it is ours; always True after waiting.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, lock(Path(name)) as mine:
        ...     with lock(Path(name), wait=False) as also_mine:
        ...         mine, also_mine
        (True, False)
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:
        if not _lock(file, wait):
            yield False
            return
        for left in folder.iterdir():
            if _TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)
        yield True


if sys.platform == "win32":
    import msvcrt
    import time

    def _lock(file: IO[str], wait: bool) -> bool:
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.1)
else:
    import fcntl

    def _lock(file: IO[str], wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            return False
