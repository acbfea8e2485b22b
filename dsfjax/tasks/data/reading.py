"""Files of the user's data folder: found, decompressed, checked, and taken apart."""

import hashlib
import io
import lzma
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dsfjax.tasks.data.declared import file_of, set_of

VARIABLE = "DSFJAX_DATA"
"""Environment variable that names the data folder; ``--data-dir`` sets it."""

Read = Callable[[str], bytes]
"""What a preparation reads files with: path in the data folder to content."""


class DataError(ValueError):
    """Data that cannot be used: the message says which file, what is wrong, and what to do."""


class MissingDataError(DataError):
    """Data that are not on this machine."""


def use(folder: Path | str) -> None:
    """Make a folder the one that tasks read.

    They read data deep inside, and processes that are started from here do, too: so it is the
    environment variable that says it.

    Args:
        folder: The folder; whether it exists is asked when something is read.
    """
    os.environ[VARIABLE] = str(Path(folder).absolute())


def data_dir(folder: Path | str | None = None) -> Path:
    """The folder of data sets.

    Args:
        folder: The folder; None for the one that the environment variable names.

    Raises:
        MissingDataError: If none is named, or it does not exist.

    Example:
        >>> data_dir("/nowhere")
        Traceback (most recent call last):
            ...
        dsfjax.tasks.data.reading.MissingDataError: data: expected a folder of data sets, got
        /nowhere, which does not exist; pass --data-dir or set DSFJAX_DATA.
    """
    chosen = folder or os.environ.get(VARIABLE)
    if not chosen:
        raise MissingDataError(
            f"data: expected a folder of data sets, got none; pass --data-dir or set {VARIABLE}."
        )
    path = Path(chosen).expanduser()
    if not path.is_dir():
        why = "is not a folder" if path.exists() else "does not exist"
        raise MissingDataError(
            f"data: expected a folder of data sets, got {path}, which {why}; pass --data-dir or "
            f"set {VARIABLE}."
        )
    return path


def find(path: str, folder: Path | str | None = None) -> Path | None:
    """Where a declared file is, compressed with xz or not; None if it is not there.

    Args:
        path: Its path in the data folder, without ``.xz``.
        folder: The data folder (`data_dir`).
    """
    whole = data_dir(folder) / path
    found = (one for one in (whole, whole.with_name(whole.name + ".xz")) if one.is_file())
    return next(found, None)


def read(path: str, folder: Path | str | None = None) -> bytes:
    """The content of a declared file, decompressed and checked.

    Args:
        path: Its path in the data folder, without ``.xz``.
        folder: The data folder (`data_dir`).

    Raises:
        MissingDataError: If it is not there.
        DataError: If it is cut short, damaged or another version of the file.
    """
    declared, found = file_of(path), _found(path, folder)
    try:
        content = found.read_bytes()
        if found.suffix == ".xz":
            content = lzma.decompress(content)
    except (lzma.LZMAError, EOFError) as error:
        raise _damaged(path, found, error) from error
    digest = hashlib.sha256(content).hexdigest()
    if declared.sha256 not in (None, digest):
        raise DataError(
            f"data: {found}: expected content with sha256 {declared.sha256}, got {digest} "
            f"({len(content):,} bytes): it is damaged or another version; "
            f"{set_of(path).remedy}."
        )
    return content


def _found(path: str, folder: Path | str | None) -> Path:
    file_of(path)  # an unknown name is answered with the nearest
    found = find(path, folder)
    if found is None:
        raise MissingDataError(
            f"data: expected the file {path} or {path}.xz in {data_dir(folder)}, found neither; "
            f"{set_of(path).remedy}."
        )
    return found


def _damaged(path: str, found: Path, error: Exception) -> DataError:
    return DataError(
        f"data: {found}: expected a whole xz file, got one that is cut short or damaged "
        f"({error}); {set_of(path).remedy}."
    )


def lines(path: str, folder: Path | str | None = None) -> Iterator[bytes]:
    """The lines of a declared file that is too large to be held, without their line feeds.

    Args:
        path: Its path in the data folder, without ``.xz``. A declared checksum is not checked, as
            that is known only when all lines are gone.
        folder: The data folder (`data_dir`).

    Yields:
        A line.

    Raises:
        MissingDataError: If it is not there.
        DataError: If it is cut short or damaged.
    """
    found = _found(path, folder)
    with lzma.open(found) if found.suffix == ".xz" else found.open("rb") as file:
        try:
            for line in file:
                yield line.removesuffix(b"\n")
        except (lzma.LZMAError, EOFError) as error:
            raise _damaged(path, found, error) from error


def expect(condition: object, path: str, expected: str, got: object) -> None:
    """Refuse the content of a file unless a condition holds.

    Args:
        condition: What must be true.
        path: The file's path in the data folder, and where in the file.
        expected: What it should be, in words.
        got: What it is.

    Raises:
        DataError: If the condition is false.

    Example:
        >>> expect(False, "mnist/t10k-labels-idx1-ubyte", "10,000 labels", 3)
        Traceback (most recent call last):
            ...
        dsfjax.tasks.data.reading.DataError: data: mnist/t10k-labels-idx1-ubyte: expected 10,000
        labels, got 3; get it from
        https://ossci-datasets.s3.amazonaws.com/mnist/.
    """
    if not condition:
        raise DataError(
            f"data: {path}: expected {expected}, got {got}; "
            f"{set_of(path.partition(',')[0]).remedy}."
        )


def text(content: bytes, path: str) -> str:
    """UTF-8 bytes as text.

    Args:
        content: The bytes.
        path: The file they are of, for the error.

    Raises:
        DataError: If they are not UTF-8; it names line and byte.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        at = f"{path}, line {line} (byte {error.start:,})"
        expect(False, at, "UTF-8 text", f"the byte 0x{content[error.start]:02x}")
        raise


def rows(
    content: bytes, path: str, columns: int, *, separator: bytes = b"\t", first: int = 1
) -> list[list[bytes]]:
    """The rows of a table in text form, without interpretation of quotes.

    Lines end with a line feed and nothing else: reviews have other characters in them at which
    ``str.splitlines`` would cut.

    Args:
        content: The file's bytes.
        path: The file, for the error.
        columns: Columns of a row. The last one may have separators in it.
        separator: What is between columns.
        first: Number of the first line, for the error: 2 where a line of names was taken off.

    Returns:
        The cells of every row. An empty line at the end is not a row.

    Raises:
        DataError: If a row has fewer columns; it names the line. If the file declares its number
            of rows and this is another.

    Example:
        >>> rows(b"2016-07-01,5.8" + bytes([10]) + b"2016-07-02,6,1", "ptb/ptb.test.txt", 2,
        ...      separator=b",")
        [[b'2016-07-01', b'5.8'], [b'2016-07-02', b'6,1']]
    """
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    found = [line.split(separator, columns - 1) for line in lines]
    for number, cells in enumerate(found, first):
        at = f"{path}, line {number}"
        expect(len(cells) == columns, at, f"{columns} columns", len(cells))
    declared = file_of(path).rows
    expect(declared in (None, len(found)), path, f"{declared or 0:,} rows", f"{len(found):,}")
    return found


def arrays_of(content: bytes, path: str, *names: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, or under the name "" the one of an npy file.

    Args:
        content: The file's bytes.
        path: The file, for the error.
        *names: Arrays that an npz file must have.

    Raises:
        DataError: If it is not such a file, or an array is missing.
    """
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        found = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        expect(False, path, "a file of NumPy arrays", f"another ({error})")
        raise
    missing = [name for name in names if name not in found]
    expect(not missing, path, f"arrays {', '.join(names)}", f"none named {', '.join(missing)}")
    return found
