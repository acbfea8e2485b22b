"""The results of a sweep as a table: ``results.sqlite``, a row per member.

The columns are those of :data:`COLUMNS`, so any SQLite client reads them. ``config``, ``metrics``
(a list over time), ``environment`` and ``timing`` are JSON. A row is written when its run is
finished, all rows of a run at once. Sweeps that share a folder take turns to write.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsfjax.training import files, serial
from dsfjax.training.config import from_json
from dsfjax.training.folder import finished, read_metrics
from dsfjax.training.program import Member
from dsfjax.training.record import NUMBERS

NAME = "results.sqlite"
COLUMNS = {
    "run": "TEXT",
    "member": "INTEGER",
    "mixer": "TEXT",
    **dict.fromkeys(Member._fields, "REAL"),
    "seed": "INTEGER",
    "status": "TEXT",
    "step": "INTEGER",
    **dict.fromkeys(NUMBERS, "REAL"),
    "steps_to_90": "INTEGER",
    "num_params": "INTEGER",
    "state_size": "INTEGER",
    "config": "TEXT",
    "metrics": "TEXT",
    "environment": "TEXT",
    "timing": "TEXT",
}
"""Column to SQLite type. ``run`` is the folder of the run; the primary key is (run, member)."""

_JSON = ("config", "metrics", "environment", "timing")
_APPLICATION, _VERSION = 0x64736678, 1  # "dsfx": tells our files from those of other programs
_TIMES = ("seconds", "tokens_per_second")


def add(folder: Path, run: str) -> None:
    """Write the rows of a finished run, in place of those that it had.

    A store that is damaged or another program's is set aside, and made anew of all runs in the
    folder that are finished.

    Args:
        folder: The sweep's folder.
        run: The folder in it that has the run.
    """
    with files.lock(folder):
        try:
            with _connect(folder / NAME) as connection:
                _insert(connection, _rows(folder, run))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, or no space: nothing is wrong with the file
            files.set_aside(folder / NAME, f"it is no store of results ({error})")
            with _connect(folder / NAME) as connection:
                for path in sorted(folder.glob("*/result.json")):
                    _insert(connection, _rows(folder, path.parent.name))


def read_results(folder: Path | str) -> list[dict[str, Any]]:
    """All rows of a store.

    Args:
        folder: The sweep's folder.

    Returns:
        A dict per member, in the order of ``(run, member)``, with the keys of :data:`COLUMNS`.

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
        with _connect(path) as connection:
            found = connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM members ORDER BY run, member"
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"{path} is no store of results ({error}); running the sweep again makes it anew"
        ) from error
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in found]
    return [row | {name: json.loads(row[name]) for name in _JSON} for row in rows]


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a store, made if there is none, in one transaction."""
    new = not path.exists()
    connection = sqlite3.connect(path, timeout=60)
    try:
        with connection:
            if new:
                columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute(f"CREATE TABLE members ({columns}, PRIMARY KEY (run, member))")
            for pragma, expected in (("application_id", _APPLICATION), ("user_version", _VERSION)):
                (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
                if found != expected:
                    raise sqlite3.DatabaseError(f"{pragma} {found}, expected {expected}")
            yield connection
    finally:
        connection.close()


def _insert(connection: sqlite3.Connection, rows: list[Mapping[str, Any]]) -> None:
    connection.execute("DELETE FROM members WHERE run = ?", (rows[0]["run"],))
    marks = ", ".join("?" * len(COLUMNS))
    values = [[row[name] for name in COLUMNS] for row in rows]
    connection.executemany(f"INSERT INTO members VALUES ({marks})", values)


def _rows(folder: Path, run: str) -> list[Mapping[str, Any]]:
    path = folder / run
    config = from_json((path / "config.json").read_text(encoding="utf-8"))
    result, metrics = finished(path, config), read_metrics(path)
    assert result is not None
    environment = _environment(path)
    ended = (path / "result.json").stat().st_mtime
    timing = {
        "finished_at": ended,
        **{
            name: result[name] for name in ("train_seconds", "compile_seconds", "tokens_per_second")
        },
    }
    common = {
        "run": run,
        "mixer": config.model.mixer,
        "num_params": result["num_params"],
        "state_size": result["state_size"],
        "config": json.dumps(serial.to_dict(config)),
        "environment": json.dumps(environment),
        "timing": json.dumps(timing),
    }
    left_out = ("member", "learning_rate", "seed", "tokens_per_second")
    return [
        {
            **common,
            **member,
            "metrics": json.dumps(
                [
                    {name: value for name, value in line.items() if name not in left_out}
                    for line in metrics
                    if line["member"] == member["member"]
                ]
            ),
        }
        for member in result["members"]
    ]


def _environment(path: Path) -> dict[str, Any] | None:
    try:
        return files.read_json(path / "environment.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        files.set_aside(path / "environment.json", f"it is not JSON ({error})")
        return None
