"""The comparison as a table in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from dsfjax.report import words


def render(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of a comparison as a table, best accuracy first and what failed last.

    Args:
        rows: One mapping per mixer, as :func:`dsfjax.training.compare` returns and writes them.

    Returns:
        The table; plain text where it is printed into a pipe.

    Example:
        >>> row = {"mixer": "ssd", "accuracy_mean": 0.987, "accuracy_std": 0.012,
        ...        "best_learning_rate": 0.003, "steps_to_90": 450.0, "state_size": 4096,
        ...        "num_params": 51234, "tokens_per_second": 98765.4}
        >>> table = render([row])
        >>> [list(column.cells)[0] for column in table.columns][:5]
        ['ssd', '98.7 ± 1.2 %', '0.003', '450', '4\u202f096']
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("mixer", no_wrap=True)
    for head in ("accuracy", "best lr", "steps to\n90 %", "N", "params", "tokens/s"):
        table.add_column(head, justify="right", no_wrap=True)
    finished = [row for row in rows if row.get("status") != "failed"]
    for row in sorted(finished, key=lambda row: -row["accuracy_mean"]):
        table.add_row(
            row["mixer"],
            words.accuracy(row["accuracy_mean"], row["accuracy_std"]),
            words.rate(row["best_learning_rate"]),
            words.count(row["steps_to_90"]),
            words.count(row["state_size"]),
            words.count(row["num_params"]),
            words.count(row["tokens_per_second"]),
        )
    for row in rows:
        if row.get("status") == "failed":
            table.add_row(row["mixer"], "failed", *["–"] * 5)
    return table
