"""``dsfjax bench``."""

import json

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from dsfjax.cli import options
from dsfjax.cli.usage import UsageError
from dsfjax.engines import benchmark


def main(command: options.Bench) -> int:
    """Time the engines and print the table.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If there is nothing to repeat.
    """
    if command.repeats < 1:
        raise UsageError(f"expected --repeats >= 1, got {command.repeats}")
    device = jax.devices()[0].device_kind
    table = Table(
        box=box.SIMPLE_HEAD, title=f"medians of {command.repeats} runs, {device}, float32"
    )
    for head in ("structure", "B", "L", "(H, n, p)", "method"):
        table.add_column(head, no_wrap=True)
    for head in ("forward ms", "gradient ms", "temporary MiB", "compile s"):
        table.add_column(head, justify="right")
    rows = []
    for timing in benchmark.measure(repeats=command.repeats):
        case = timing.case
        method = f"{timing.method} (auto)" if timing.chosen else timing.method
        numbers = (f"{x:.1f}" for x in timing[3:])
        table.add_row(
            case.name, str(case.batch), str(case.length), str(case.state_shape), method, *numbers
        )
        rows.append(
            {**case._asdict(), **{k: v for k, v in timing._asdict().items() if k != "case"}}
        )
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    if command.json is not None:
        command.json.parent.mkdir(parents=True, exist_ok=True)
        command.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")
    return 0
