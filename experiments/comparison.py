"""Rows of numbers of ours next to another's, measured in one run.

The contestants of a row take turns, so a busy moment hits all of them; numbers are medians, and a
ratio is above 1 where ours is better. JAX on a CPU has a device per core, for all contestants.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from rich.table import Table

from dsfjax._util import limits
from dsfjax._util.allocation import keep_freed_memory
from dsfjax._util.names import choose
from dsfjax.bench import machine
from dsfjax.bench.timing import take_turns
from dsfjax.cli.output import console
from dsfjax.tasks.data import reading
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
        wanted: The ratio aimed at; None for a row that shows what the target depends on.
    """

    what: str
    case: str
    ours: float
    other: float
    unit: str
    ratio: float
    wanted: float | None


RESULTS = Path("experiments") / "results"
"""Where the numbers of a whole run are written."""

Seconds = Callable[[dict[str, Callable[[], Any]]], dict[str, float]]
"""Runs each contestant once, then times them in turn."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        scale: "demo" takes a minute, "small" some minutes on two cores.
        only: Names of parts; all by default. With some left out, only ``out`` is written: the
            results have all parts of one run.
        repeats: Rounds, of which the median is taken.
        data_dir: Folder of data sets, where one is read; by default DSFJAX_DATA.
        out: A JSON file for the numbers; by default the one of the results, if all parts run.
    """

    scale: Literal["demo", "small"] = "small"
    only: tuple[str, ...] = ()
    repeats: int = 5
    data_dir: Path | None = None
    out: Path | None = None


class Comparison(NamedTuple):
    """An experiment that compares.

    Attributes:
        name: Of its file and of what it writes.
        about: The docstring of its file.
        parts: Name to what measures its rows: ``part(sizes, seconds)``.
        sizes: Scale to what the parts take.
    """

    name: str
    about: str | None
    parts: Mapping[str, Callable[[Any, Seconds], Iterator[Row]]]
    sizes: Mapping[str, Any]

    def main(self) -> None:
        """Measure from the command line."""
        keep_freed_memory()
        prog = f"python -m experiments.{self.name}"
        options = tyro.cli(Options, prog=prog, description=self.about)
        only = " ".join(("--only", *options.only)) if options.only else ""
        words = f"{prog} --scale {options.scale} --repeats {options.repeats} {only}"
        self.run(options, words.rstrip())

    def run(self, options: Options, command: str = "") -> list[Row]:
        """Measure rows, print them and write them.

        Args:
            options: The options.
            command: What is said to have started it.

        Returns:
            The rows.

        Raises:
            ValueError: For a part that there is not.
        """
        if options.data_dir is not None:
            reading.use(options.data_dir)
        names = options.only or tuple(self.parts)
        for name in names:
            choose("part", name, tuple(self.parts))
        reserve(limits.cores())

        def seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
            for run in runs.values():
                run()
            milliseconds = take_turns(runs, repeats=options.repeats, budget_s=15.0)
            return {name: each / 1e3 for name, each in milliseconds.items()}

        sizes = self.sizes[options.scale]
        rows = [row for name in names for row in self.parts[name](sizes, seconds)]
        table = Table("what", "on", "ours", "other", "ratio", "target")
        for row in rows:
            numbers = (f"{x:,.1f} {row.unit}" for x in (row.ours, row.other))
            wanted = "" if row.wanted is None else f"{row.wanted:.3g}"
            table.add_row(row.what, row.case, *numbers, f"{row.ratio:.2f}", wanted)
        console().print(table)
        found = {
            "command": command,
            "scale": options.scale,
            "repeats": options.repeats,
            "machine": machine.describe(),
            "environment": environment.describe(),
            "rows": [row._asdict() for row in rows],
        }
        if options.out is not None:
            files.write_json(options.out, found)
        elif not options.only:
            files.write_json(RESULTS / options.scale / f"{self.name}.json", found)
        return rows
