"""Files that are there whole or not at all, and folders taken by one process at a time.

A file is written under another name, synced to the disk, and renamed; then the folder is synced,
because a rename is an entry of the folder. So neither a kill nor a loss of power leaves half a
file.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = ".lock"
"""Name of the file that a process holds while a folder is its own."""
TEMPORARY = re.compile(r".+\.\d+\.tmp")
"""Names under which files are written."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, a loss of power included.

    Args:
        path: The file; its folder is created if need be.
        data: Its content.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing; it takes its name when all of it is on the disk.

    Args:
        path: The file; its folder is created if need be.

    Yields:
        The file to write to. After an exception nothing is left of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a"
        ...     with replacing(path) as file:
        ...         _ = file.write(b"ab")
        ...         path.exists()
        ...     path.read_bytes()
        False
        b'ab'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of this process: others may be writing the same file, and one of them wins.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk.

    Args:
        folder: The folder.
    """
    if sys.platform == "win32":
        return  # folders cannot be opened there; NTFS logs a rename before it returns
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    with (folder / LOCK).open("a") as file:
        if not _lock(file, wait):
            yield False
            return
        for left in folder.iterdir():
            if TEMPORARY.fullmatch(left.name):
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
