"""``dsfjax selfcheck``."""

import json
import math
from collections.abc import Sequence

import jax
from rich import box
from rich.table import Table

from dsfjax._util.names import choose
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.usage import usage_errors
from dsfjax.selfcheck import BOUNDS, Check, selfcheck


def main(command: options.Selfcheck) -> int:
    """Check every engine on every structure and print what was found.

    Args:
        command: The options.

    Returns:
        The exit code: 0, or 1 if an engine is off.

    Raises:
        UsageError: For another precision.
    """
    with usage_errors(ValueError):
        choose("precision", command.precision, BOUNDS)
    screen = console()
    checks = []
    with screen.status("checking the engines") as status:
        for check in selfcheck(command.precision):
            checks.append(check)
            status.update(f"{check.structure}, {check.method}")
    if command.json:
        print(json.dumps(as_json(command.precision, checks), indent=1))
    else:
        screen.print(_table(command.precision, checks))
        for check in checks:
            if check.failure is not None:
                screen.print(
                    f"{check.structure}, {check.method}: {check.failure}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
    return 0 if all(check.ok for check in checks) else 1


def as_json(dtype: str, checks: Sequence[Check]) -> dict[str, object]:
    """What was found, as data of JSON; an infinite error is null.

    Args:
        dtype: Precision of the inputs.
        checks: What was checked.

    Returns:
        ``device``, ``dtype``, ``ok`` and the list ``checks``.
    """
    rows = [check._asdict() | {"ok": check.ok} for check in checks]
    for row in rows:
        row |= {k: None for k, x in row.items() if isinstance(x, float) and math.isinf(x)}
    return {
        "device": jax.devices()[0].device_kind,
        "dtype": dtype,
        "ok": all(check.ok for check in checks),
        "checks": rows,
    }


def _table(dtype: str, checks: Sequence[Check]) -> Table:
    value, gradient = BOUNDS[dtype]
    off = sum(not check.ok for check in checks)
    verdict = f"{off} of {len(checks)} off" if off else f"all {len(checks)} within"
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"engines in {dtype} on {jax.devices()[0].device_kind} against float64: {verdict}",
        title_justify="left",
    )
    for head in ("structure", "method"):
        table.add_column(head, no_wrap=True)
    for head in ("value error", "gradient error", "bounds"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("worst gradient", no_wrap=True)
    table.add_column("ok", no_wrap=True)
    for check in checks:
        errors = (f"{check.value_error:.1e}", f"{check.gradient_error:.1e}")
        if check.failure is not None:
            errors = ("failed", "failed")
        bounds = f"{value:.0e}, {gradient:.0e}"
        ok = "yes" if check.ok else "[bold red]no[/bold red]"
        table.add_row(check.structure, check.method, *errors, bounds, check.worst, ok)
    return table
