"""Rows of numbers of ours next to another's, measured in one run.

The contestants of a row take turns, so a busy moment hits all of them; numbers are medians, and a
ratio is above 1 where ours is better. JAX on a CPU has a device per core, for all contestants.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from dsfjax._util import limits
from dsfjax.bench import machine
from dsfjax.bench.timing import take_turns
from dsfjax.cli.output import console
from dsfjax.training.devices import reserve
from dsfjax.training.storage import environment, files


class Row(NamedTuple):
    """A comparison.

    Attributes:
        what: What is compared.
        case: On what.
        ours: Our number.
        other: The other's.
        unit: Of both.
        ratio: How many times better ours is.
        wanted: The ratio that is promised; None for a row that shows what the promise depends on.
    """

    what: str
    case: str
    ours: float
    other: float
    unit: str
    ratio: float
    wanted: float | None


Seconds = Callable[[dict[str, Callable[[], Any]]], dict[str, float]]
"""Runs each contestant once, then times them in turn."""


def compare(
    parts: Iterable[Callable[[Seconds], Iterator[Row]]], about: Mapping[str, Any], out: Path
) -> list[Row]:
    """Measure rows, print them and write them.

    Args:
        parts: What measures them.
        about: What the file says first: ``command``, ``scale`` and ``repeats``, the rounds of
            which the median is taken.
        out: A JSON file for the numbers.

    Returns:
        The rows.
    """
    reserve(limits.cores())

    def seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
        for run in runs.values():
            run()
        milliseconds = take_turns(runs, repeats=about["repeats"], budget_s=15.0)
        return {name: each / 1e3 for name, each in milliseconds.items()}

    rows = [row for part in parts for row in part(seconds)]
    table = Table("what", "on", "ours", "other", "ratio", "wanted")
    for row in rows:
        numbers = (f"{x:,.1f} {row.unit}" for x in (row.ours, row.other))
        wanted = "" if row.wanted is None else f"{row.wanted:.2g}"
        table.add_row(row.what, row.case, *numbers, f"{row.ratio:.2f}", wanted)
    console().print(table)
    found = {
        **about,
        "machine": machine.describe(),
        "environment": environment.describe(),
        "rows": [row._asdict() for row in rows],
    }
    files.write_json(out, found)
    return rows
