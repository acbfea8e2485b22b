"""Mistakes of the user, told from mistakes of ours."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


class UsageError(Exception):
    """What the user asked for cannot be done; the message says what to change."""


@contextlib.contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Report exceptions of these kinds as the user's mistake, in one line without a traceback.

    Only around code that checks what the user gave: elsewhere such an exception is a defect, and
    its traceback is wanted.

    Args:
        kinds: Exception types.

    Raises:
        UsageError: In the place of an exception of these kinds.

    Examples:
        >>> with usage_errors(ValueError):
        ...     raise ValueError("expected two heads")
        Traceback (most recent call last):
            ...
        dsfjax.cli.usage.UsageError: expected two heads
    """
    try:
        yield
    except kinds as error:
        raise UsageError(str(error)) from error


def writable(folder: Path) -> Path:
    """A folder in which files can be made, found out before hours are computed for it.

    Args:
        folder: The folder; it need not exist, and is not made.

    Returns:
        The folder.

    Raises:
        ValueError: If it is a file, or cannot be made or written to.

    Examples:
        >>> writable(Path("/dev/null"))
        Traceback (most recent call last):
            ...
        ValueError: expected a folder to write to, got /dev/null (Not a directory); choose another
    """
    try:
        # A file is really made: access rights alone say that a superuser may write anywhere.
        with tempfile.TemporaryFile(dir=_existing(folder.absolute())):
            return folder
    except OSError as error:
        raise ValueError(
            f"expected a folder to write to, got {folder} ({error.strerror}); choose another"
        ) from error


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    try:
        path.lstat()
    except FileNotFoundError:
        return _existing(path.parent)
    return path
