"""The results of a sweep as a table: ``results.sqlite``, a row per member.

The columns are the fields of `MemberResult`, so any SQLite client reads them. ``config``,
``metrics`` (a list over time), ``measured`` and ``also`` (what the scores are of, and further
numbers), ``environment`` and ``timing`` are JSON. A row is written when its
run is finished or has failed, all rows of a run at once. Sweeps that share a folder take turns.

The table can be made again from the folders of the runs, and is where a kill or a full disk has
left it without them. A file of that name that is not ours is an error and is left alone.
"""

import contextlib
import itertools
import json
import logging
import sqlite3
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsfjax.training.config import AXES, Member
from dsfjax.training.storage import files
from dsfjax.training.storage.folder import RunError, failure, finished, read_config, read_metrics
from dsfjax.training.storage.record import STOPPED, MemberResult, results, row

NAME = "results.sqlite"


def _column(hint: Any) -> str:
    """SQLite's type for a field; "JSON" for what is neither a number nor text."""
    kinds = {int: "INTEGER", float: "REAL", str: "TEXT"}
    plain = [kinds[each] for each in (hint, *typing.get_args(hint)) if each in kinds]
    return plain[0] if plain and typing.get_origin(hint) in (None, types.UnionType) else "JSON"


_HINTS = typing.get_type_hints(MemberResult)
_POINT = {axis.name: axis.kind for axis in AXES}
_KINDS = {
    name: _column(each)
    for field, hint in _HINTS.items()
    for name, each in (_POINT if hint is Member else {field: hint}).items()
}
_JSON = tuple(name for name, kind in _KINDS.items() if kind == "JSON")
COLUMNS = {name: "TEXT" if kind == "JSON" else kind for name, kind in _KINDS.items()}
"""Column to SQLite type: the fields of `MemberResult`, and the axes for its point.

``run`` is the folder of the run; the primary key is (run, member).
"""
_RENAMED = {"train_score": "train_accuracy", "eval_score": "eval_accuracy"}
"""Column to its name in stores from before tasks had metrics, whose scores are accuracies."""
_APPLICATION, _VERSION = 0x64736678, 3  # "dsfx": tells our files from those of other programs
_log = logging.getLogger("dsfjax")


def check(folder: Path) -> None:
    """Refuse a folder whose store cannot be written to, before anything is trained in it.

    Args:
        folder: The sweep's folder; it need not exist.

    Raises:
        RunError: If ``results.sqlite`` is another program's, or of a later version.
    """
    if (folder / NAME).exists():
        with contextlib.suppress(_Damaged, _Empty), _connect(folder / NAME):
            pass


def add(folder: Path, run: str) -> None:
    """Write the rows of a run that is finished or has failed, in place of those that it had.

    A store that has no table yet, or is ours and damaged, is made of all such runs in the folder.

    Args:
        folder: The sweep's folder.
        run: The folder in it that has the run.

    Raises:
        RunError: If ``results.sqlite`` is another program's, or of a later version.
    """
    path = folder / NAME
    with files.lock(folder):
        try:
            with _connect(path, create=True) as (connection, whole):
                for rows in [_rows(folder, run)] if whole else _runs(folder).values():
                    _insert(connection, rows)
        except _Damaged as error:
            files.set_aside(path, f"the store of results is damaged ({error})")
            with _connect(path, create=True) as (connection, _):
                for rows in _runs(folder).values():
                    _insert(connection, rows)


def read_results(folder: Path | str) -> list[MemberResult]:
    """All results in a store.

    Args:
        folder: The sweep's folder.

    Returns:
        A record per member, in the order of ``(run, member)``.

    Raises:
        ValueError: If there is no store, or it cannot be read.

    Examples:
        >>> read_results("nowhere")
        Traceback (most recent call last):
            ...
        ValueError: expected the folder of a sweep, found no results.sqlite in nowhere; make one
        with dsfjax sweep or dsfjax compare
    """
    path = Path(folder) / NAME
    if not path.exists():
        raise ValueError(
            f"expected the folder of a sweep, found no {NAME} in {folder}; "
            "make one with dsfjax sweep or dsfjax compare"
        )
    try:
        with _connect(path) as (connection, current):
            known = _columns(connection)
            named = {name: name if name in known else _RENAMED.get(name) for name in COLUMNS}
            columns = [name for name in COLUMNS if named[name] in known]
            shown = ", ".join(f"{named[name]} AS {name}" for name in columns)
            found = connection.execute(
                f"SELECT {shown} FROM members ORDER BY run, member"
            ).fetchall()
    except _Empty:
        found, columns, current = [], list(COLUMNS), False
    except _Damaged as error:
        raise ValueError(
            f"{path} is no store of results ({error}); running the sweep again makes it anew"
        ) from error
    # In the order of the columns; those that came later are empty in an older store.
    empty: dict[str, Any] = dict.fromkeys(COLUMNS)
    rows = [empty | dict(zip(columns, row, strict=True)) for row in found]
    if not current:
        # What the folders of the runs say is newer than an older store, or than none.
        fresh = _runs(Path(folder))
        rows = [row for row in rows if row["run"] not in fresh]
        rows += [empty | dict(row) for name in fresh for row in fresh[name]]
        rows.sort(key=lambda row: (row["run"], row["member"]))
    return [
        MemberResult.from_columns(row | {name: json.loads(row[name] or "null") for name in _JSON})
        for row in rows
    ]


class _Damaged(Exception):
    """A store of ours that SQLite cannot read."""


class _Empty(Exception):
    """A store without a table: whoever began it was killed."""


@contextlib.contextmanager
def _connect(path: Path, *, create: bool = False) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """A connection to a store in one transaction, and whether it is whole and of this version.

    With ``create`` the table is made, or brought to this version, in that transaction: a kill
    leaves the store as it was before.
    """
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE" if create else "BEGIN")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if application not in ({0, _APPLICATION} if not tables else {_APPLICATION}):
            raise RunError(f"{path} is another program's (application_id {application}); {_CHOOSE}")
        if version > _VERSION:
            raise RunError(f"{path} is of a later version of dsfjax; {_CHOOSE}")
        if "members" not in tables and not create:
            raise _Empty
        whole = "members" in tables and version == _VERSION
        if not whole:
            columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            if "members" not in tables:
                connection.execute(f"CREATE TABLE members ({columns}, PRIMARY KEY (run, member))")
            elif create:
                for name, before in _RENAMED.items():
                    if before in _columns(connection):
                        connection.execute(f"ALTER TABLE members RENAME COLUMN {before} TO {name}")
                for name in COLUMNS.keys() - _columns(connection):
                    connection.execute(f"ALTER TABLE members ADD COLUMN {name} {COLUMNS[name]}")
            if create:
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        yield connection, whole
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # locked, or no space: nothing is wrong with the file
        if not _is_ours(path):
            raise RunError(f"{path} is no store of results ({error}); {_CHOOSE}") from error
        raise _Damaged(str(error)) from error
    finally:
        connection.close()  # rolls back what was not committed


_CHOOSE = "nothing was changed: choose another run directory, or remove the file"


def _is_ours(path: Path) -> bool:
    """Whether a file that SQLite cannot read begins as a store does."""
    with path.open("rb") as file:
        head = file.read(72)
    return head[:16] == b"SQLite format 3\0" and head[68:] == _APPLICATION.to_bytes(4, "big")


def _columns(connection: sqlite3.Connection) -> set[str]:
    return {row[1] for row in connection.execute("PRAGMA table_info(members)")}


def _runs(folder: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of all runs in a folder that are finished or have failed, and can be read here."""
    found = {path.parent.name for name in STOPPED for path in folder.glob(f"*/{name}")}
    runs = {}
    for name in sorted(found):
        try:
            runs[name] = _rows(folder, name)
        except RunError as error:
            _log.warning("left out of %s: %s", NAME, error)
    return runs


def _insert(connection: sqlite3.Connection, rows: list[Mapping[str, Any]]) -> None:
    connection.execute("DELETE FROM members WHERE run = ?", (rows[0]["run"],))
    marks = ", ".join("?" * len(COLUMNS))
    values = [[row.get(name) for name in COLUMNS] for row in rows]
    names = ", ".join(COLUMNS)
    connection.executemany(f"INSERT INTO members ({names}) VALUES ({marks})", values)


def _rows(folder: Path, run: str) -> list[Mapping[str, Any]]:
    """The rows of a run, JSON as text."""
    path = folder / run
    config = read_config(path)
    ended, when = finished(path, config), None
    if ended is not None:
        when = (path / "result.json").stat().st_mtime
    elif (ended := failure(path, config)) is None:
        raise RunError(f"expected a run in {path} that is finished or has failed; train it")
    found = results(
        run,
        config,
        ended,
        metrics=read_metrics(path),
        environment=_environment(path),
        finished_at=when,
    )
    rows = [one.columns() for one in found]
    return [row | {name: json.dumps(row[name]) for name in _JSON} for row in rows]


def _environment(path: Path) -> dict[str, Any] | None:
    try:
        return files.read_json(path / "environment.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        files.set_aside(path / "environment.json", f"it is not JSON ({error})")
        return None


def programs(folder: Path) -> list[dict[str, Any]]:
    """The rows of all finished programs of a sweep's folder, from its table.

    Args:
        folder: The folder.

    Returns:
        A row per program, by name.
    """
    whole = [member for member in read_results(folder) if member.status != "failed"]
    return [row(list(own)) for _, own in itertools.groupby(whole, key=lambda member: member.run)]
