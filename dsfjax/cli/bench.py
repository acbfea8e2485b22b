"""``dsfjax bench``."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dsfjax import bench
from dsfjax._util.names import choose
from dsfjax.bench.tables import Table as TextTable
from dsfjax.bench.write import environment
from dsfjax.cli import options
from dsfjax.cli.training import reserve_devices
from dsfjax.cli.usage import UsageError, usage_errors, writable

LENGTHS = "lengths"
Listener = Callable[[str], Any]


def main(command: options.Bench) -> int:
    """Time the engines, print the tables, and write them if asked to.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If there is no such case or precision, or nothing to repeat.
    """
    plan = plan_of(command)
    with usage_errors(ValueError):
        reserve_devices(command.devices)
        plan.check()
        if command.out is not None:
            writable(command.out)
    terminal = Console()
    # A pipe is as wide as the widest table: lines that wrap cannot be read by a program.
    console = terminal if terminal.is_terminal else Console(width=250)
    with _progress(console, plan.parts) as (began, said):
        results = bench.run(plan, began=began, said=said)
    console.print(environment(results), highlight=False, markup=False)
    for table in bench.tables(results):
        console.print(f"\n{table.title}", highlight=False, markup=False, soft_wrap=True)
        console.print(_render(table))
    if command.out is not None:
        for path in bench.write(results, command.out):
            console.print(f"wrote {path}", soft_wrap=True, highlight=False)
    return 0


def plan_of(command: options.Bench) -> bench.Plan:
    """What a command line asks for.

    Args:
        command: The options.

    Returns:
        The plan.

    Raises:
        UsageError: If there is no such case, or nothing to repeat.

    Example:
        >>> plan = plan_of(options.Bench(cases=("ssd", "lengths"), quick=True))
        >>> [case.name for case in plan.cases], plan.lengths
        (['ssd'], True)
    """
    if command.repeats < 1:
        raise UsageError(f"expected --repeats >= 1, got {command.repeats}")
    grid = {case.name: case for case in bench.cases(quick=command.quick)}
    with usage_errors(ValueError):
        for name in command.cases:
            choose("case", name, (*grid, LENGTHS))
    return bench.Plan(
        [case for name, case in grid.items() if not command.cases or name in command.cases],
        precision=command.precision,
        repeats=command.repeats,
        baselines=not command.no_baselines,
        quick=command.quick,
        lengths=not command.cases or LENGTHS in command.cases,
        long=command.long,
    )


@contextlib.contextmanager
def _progress(console: Console, parts: int) -> Iterator[tuple[Listener, Listener]]:
    """A live bar on a terminal, a plain line per part elsewhere."""
    if not console.is_terminal:

        def say(part: str) -> None:
            console.print(part, highlight=False, markup=False)
            console.file.flush()

        yield say, lambda text: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=parts, news="")
        begun = 0

        def began(part: str) -> None:
            nonlocal begun
            bar.update(task, description=part, completed=begun, news="")
            begun += 1

        yield began, lambda text: bar.update(task, news=text)


def _render(table: TextTable) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, head in enumerate(table.head):
        made.add_column(head, justify="left" if i < table.left else "right")
    for row in table.rows:
        made.add_row(*row)
    return made
