"""``dsfjax selfcheck``."""

import json
import math
import time
from collections.abc import Sequence

import jax
from rich import box
from rich.table import Table

from dsfjax._util.errors import BOUNDS, lacks
from dsfjax._util.names import choose
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.usage import UsageError, usage_errors
from dsfjax.selfcheck import Check, selfcheck

DEFAULT = ("float32", "bfloat16", "tf32")


def main(command: options.Selfcheck) -> int:
    """Check every engine on every structure, and every op, and print what was found.

    Args:
        command: The options.

    Returns:
        The exit code: 0, or 1 if an engine or op is off.

    Raises:
        UsageError: For an unknown precision, or if this device has none of those that are given.
    """
    asked = command.precision or DEFAULT
    with usage_errors(ValueError):
        for name in asked:
            choose("precision", name, BOUNDS)
    missing = {name: reason for name in asked if (reason := lacks(name))}
    precisions = [name for name in asked if name not in missing]
    if not precisions:
        raise UsageError(f"nothing to check in {', '.join(asked)}: {missing[asked[0]]}")
    screen, began, checks = console(), time.monotonic(), []
    with screen.status("checking engines and ops") as status:
        for check in selfcheck(precisions):
            checks.append(check)
            status.update(f"{check.structure}, {check.method}, {check.precision}")
    seconds = time.monotonic() - began
    if command.json:
        print(json.dumps(as_json(precisions, missing, checks), indent=1))
        return 0 if all(check.ok for check in checks) else 1
    screen.print(_table(precisions, checks))
    lines = [f"{name}: {reason}" for name, reason in missing.items()]
    lines += [_complaint(check) for check in checks if not check.ok]
    for line in (*lines, f"jax {jax.__version__}, {seconds:.0f} s"):
        screen.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0 if all(check.ok for check in checks) else 1


def as_json(
    precisions: Sequence[str], missing: dict[str, str], checks: Sequence[Check]
) -> dict[str, object]:
    """What was found, as data of JSON; an infinite error is null.

    Args:
        precisions: Those that were checked.
        missing: Those that this device does not have, and why.
        checks: What was checked.

    Returns:
        ``device``, ``precisions`` with the two bounds of each, ``missing``, ``ok`` and the list
        ``checks``.
    """
    rows = [check._asdict() | {"ok": check.ok} for check in checks]
    for row in rows:
        row |= {k: None for k, x in row.items() if isinstance(x, float) and math.isinf(x)}
    return {
        "device": jax.devices()[0].device_kind,
        "precisions": {name: BOUNDS[name] for name in precisions},
        "missing": missing,
        "ok": all(check.ok for check in checks),
        "checks": rows,
    }


def _complaint(check: Check) -> str:
    """What is off about a check."""
    where = f"{check.structure}, {check.method}, {check.precision}"
    if check.failure is not None:
        return f"{where}: {check.failure}"
    if not check.value_error <= check.value_bound:
        return f"{where}: value error {check.value_error:.1e}, allowed {check.value_bound:.1e}"
    error, most = check.gradient_error, check.gradient_bound
    return f"{where}: error of the gradient to {check.worst} {error:.1e}, allowed {most:.1e}"


def _table(precisions: Sequence[str], checks: Sequence[Check]) -> Table:
    """A row per structure and engine, and per op, with the errors in every precision."""
    off = sum(not check.ok for check in checks)
    verdict = f"{off} of {len(checks)} off" if off else f"all {len(checks)} within"
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="normwise errors of values and gradients against float64, on "
        f"{jax.devices()[0].device_kind}: {verdict}",
        title_justify="left",
    )
    for head in ("structure or op", "engine"):
        table.add_column(head, no_wrap=True)
    for name in precisions:
        table.add_column(f"{name}\nvalue", justify="right", no_wrap=True)
        table.add_column("\ngradient", justify="right", no_wrap=True)
    table.add_column("ok", no_wrap=True)
    bounds = [f"{bound:.1e}" for name in precisions for bound in BOUNDS[name]]
    table.add_row("allowed", "", *bounds, "", end_section=True)
    rows: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        rows.setdefault((check.structure, check.method), []).append(check)
    above = ""
    for (structure, method), found in rows.items():
        errors = [
            "failed" if check.failure else f"{error:.1e}"
            for check in found
            for error in (check.value_error, check.gradient_error)
        ]
        ok = "yes" if all(check.ok for check in found) else "[bold red]no[/bold red]"
        table.add_row("" if structure == above else structure, method, *errors, ok)
        above = structure
    return table
