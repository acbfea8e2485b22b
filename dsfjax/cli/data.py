"""``dsfjax data``: the data sets of tasks."""

import sys
import time

from rich import box
from rich.table import Table

from dsfjax import tasks
from dsfjax._util.names import choose
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.usage import usage_errors
from dsfjax.tasks import data

ACTIONS = ("list", "prepare")


def main(command: options.Data) -> int:
    """List data sets, or prepare them.

    Args:
        command: The options.

    Returns:
        The exit code: 0, or 1 if a data set that was named could not be prepared.

    Raises:
        UsageError: For an unknown name, or without a data folder to prepare from.
    """
    with usage_errors(ValueError):
        if not command.action:
            raise ValueError(f"expected one of {', '.join(ACTIONS)}; see dsfjax data --help")
        choose("action", command.action, ACTIONS)
        chosen = [data.get(name) for name in command.names] or list(data.DATA_SETS.values())
        if choose("source", command.source, (data.FILES, data.TFDS)) == data.TFDS:
            chosen = [one for one in chosen if one.tfds or command.names]
        if command.action == "prepare":
            data.data_dir()
        elif command.data_dir is not None:
            data.data_dir()
    if command.action == "list":
        console().print(_table(chosen, command.source))
        return 0
    failed = [one.name for one in chosen if not _prepare(one, command)]
    return 1 if failed and command.names else 0


def _table(chosen: list[data.DataSet], source: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("data set", no_wrap=True)
    for head in ("tasks", "files", "size", "prepared", "licence"):
        table.add_column(head, justify="right" if head == "size" else "left")
    for one in chosen:
        users = [name for name in tasks.names() if one.name in tasks.kind(name).data_sets]
        made = [ready.ready(source) for ready in _preparations(one)]
        prepared = "yes" if made and all(made) else f"{sum(made)} of {len(made)}" if made else "-"
        files, size = _found(one)
        table.add_row(one.name, ", ".join(users) or "-", files, size, prepared, one.licence)
    return table


def _found(one: data.DataSet) -> tuple[str, str]:
    """How many of the files are there, and their size as they are there."""
    needed = [each.path for each in one.files if each.required]
    try:
        found = [path for each in needed if (path := data.find(each)) is not None]
    except data.MissingDataError:  # no data folder
        return f"0 of {len(needed)}", "-"
    size = sum(path.stat().st_size for path in found)
    return f"{len(found)} of {len(needed)}", f"{size / 1e6:.1f} MB" if found else "-"


def _preparations(one: data.DataSet) -> list[data.Preparation]:
    return [made for made in data.PREPARATIONS.values() if made.data_set == one.name]


def _prepare(one: data.DataSet, command: options.Data) -> bool:
    """Prepare a data set, or check its files if nothing is made of them; and say so in a line."""
    began, source = time.perf_counter(), command.source
    screen = console()

    def said(text: str) -> None:
        screen.print(f"{one.name}: {text}", soft_wrap=True, highlight=False, markup=False)
        screen.file.flush()

    made = [each for each in _preparations(one) if source in each.sources]
    try:
        if source == data.TFDS:
            data.download(one.name)
        elif not command.names and _found(one)[0].startswith("0 "):
            said("not there")
            return False
        if made and all(each.ready(source) for each in made):
            said("already prepared")
            return True
        size = sum(a.nbytes for each in made for a in each.arrays(source).values())
        if source == data.FILES:
            used = {path for each in made for path in each.files}
            rest = [each.path for each in one.files if each.required and each.path not in used]
            for path in rest:
                data.read(path)
    except data.DataError as error:
        screen.file.flush()
        print(f"dsfjax: {one.name}: {error}", file=sys.stderr)
        return False
    what = f"prepared, {size / 1e6:.1f} MB" if made else "checked, nothing to prepare"
    said(f"{what}, in {time.perf_counter() - began:.1f} s")
    return True
