"""``dsfjax lengths``."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from dsfjax._util import words
from dsfjax.cli import options
from dsfjax.cli.output import console, say
from dsfjax.cli.usage import UsageError, usage_errors, writable
from dsfjax.report.longer import mean_scores, write_lengths
from dsfjax.tasks import ACCURACY
from dsfjax.training import RunError


def main(command: options.Lengths) -> int:
    """Evaluate trained models on sequences longer than they were trained on.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the folder holds no finished run of a generated task.
    """
    if any(factor < 1 for factor in command.factors) or not command.factors:
        raise UsageError(f"expected factors of at least 1, got {command.factors}")
    out = command.out or command.run_dir / "lengths"
    with usage_errors(RunError, ValueError):
        rows = write_lengths(
            command.run_dir,
            writable(out),
            factors=command.factors,
            starts=command.starts,
            num_examples=command.examples,
            said=say,
        )
    console().print(table(rows))
    console().print(f"lengths: {out / 'lengths.png'}, {out / 'lengths.csv'}", soft_wrap=True)
    return 0


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Mean score over seeds: a row per model and start, a column per length.

    Args:
        rows: As `dsfjax.report.longer.write_lengths` gives them.

    Returns:
        The table.
    """
    factors = sorted({row["factor"] for row in rows})
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    made.add_column("mixer", no_wrap=True)
    made.add_column("start")
    for factor in factors:
        made.add_column(f"×{factor}", justify="right", no_wrap=True)
    shown = {
        row["run"]: words.percent if row["metric"] == ACCURACY.name else words.number
        for row in rows
    }
    for (run, start), scores in mean_scores(rows).items():
        cells = (shown[run](scores[f]) if f in scores else "–" for f in factors)
        made.add_row(run, start, *cells)
    return made
