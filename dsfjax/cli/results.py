"""``dsfjax results``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from dsfjax._util import words
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.usage import usage_errors
from dsfjax.training import read_results
from dsfjax.training.program import Member
from dsfjax.training.record import NUMBERS

MEMBER = Member._fields
FINAL = ("status", "step", *NUMBERS, "steps_to_90")


def main(command: options.Results) -> int:
    """Print the results of a sweep, a member per line.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the folder has no results.
    """
    with usage_errors(ValueError):
        rows = read_results(command.run_dir)
    if command.json:
        for row in rows:
            print(json.dumps(as_object(row, timing=not command.no_timing), allow_nan=False))
    else:
        console().print(table(rows))
    return 0


def as_object(row: Mapping[str, Any], *, timing: bool = True) -> dict[str, Any]:
    """A row of the store as the object that is printed.

    Args:
        row: The row.
        timing: Whether to include ``timing``: wall times and timestamps, which are all that
            differs between two runs of one sweep on one machine.

    Returns:
        JSON data: ``run``, ``member``, ``config``, ``final``, ``num_params``, ``state_size``,
        ``environment``, and ``timing`` if wanted. ``final`` has a ``reason`` where the status is
        "failed".
    """
    made = {
        "run": row["run"],
        "member": row["member"],
        "config": {**row["config"], **{name: row[name] for name in MEMBER}},
        "final": {name: row[name] for name in FINAL}
        | ({"reason": row["reason"]} if row["reason"] else {}),
        "num_params": row["num_params"],
        "state_size": row["state_size"],
        "environment": row["environment"],
    }
    return made | ({"timing": row["timing"]} if timing else {})


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table.

    Args:
        rows: Rows of the store.

    Returns:
        The table: the axes that vary, and how each member ended.
    """
    varying = [name for name in MEMBER if len({row[name] for row in rows}) > 1]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    made.add_column("run", no_wrap=True)
    for head in (*varying, "accuracy", "loss", "steps to 90 %", "status"):
        made.add_column(head.replace("_", " "), justify="right", no_wrap=True)
    for row in rows:
        accuracy, loss = row["eval_accuracy"], row["eval_loss"]
        made.add_row(
            row["run"],
            *("–" if row[name] is None else f"{row[name]:g}" for name in varying),
            "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            "–" if loss is None else f"{loss:.4f}",
            words.count(row["steps_to_90"]),
            row["status"],
        )
    reasons = {row["run"]: row["reason"] for row in rows if row["reason"]}
    if reasons:
        made.caption = "\n".join(f"{run} failed: {reason}" for run, reason in reasons.items())
        made.caption_justify = "left"
    return made
