"""``dsfjax results``."""

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from dsfjax._util import words
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.usage import usage_errors
from dsfjax.tasks import ACCURACY
from dsfjax.training import MemberResult, read_results
from dsfjax.training.config import AXES
from dsfjax.training.storage.record import in_result


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


def as_object(result: MemberResult, *, timing: bool = True) -> dict[str, Any]:
    """A result as the object that is printed.

    Args:
        result: How a member ended.
        timing: Whether to include ``timing``: wall times and timestamps, which are all that
            differs between two runs of one sweep on one machine.

    Returns:
        JSON data: ``run``, ``member``, ``config``, ``final``, ``num_params``, ``state_size``,
        ``environment``, and ``timing`` if wanted. ``final`` has a ``reason`` where the status is
        "failed".
    """
    made = {
        "run": result.run,
        "member": result.member,
        "config": {**result.config, **result.point._asdict()},
        "final": in_result(result) | ({"reason": result.reason} if result.reason else {}),
        "num_params": result.num_params,
        "state_size": result.state_size,
        "environment": result.environment,
    }
    return made | ({"timing": result.timing} if timing else {})


def table(results: Sequence[MemberResult]) -> Table:
    """Results as a table.

    Args:
        results: How members ended.

    Returns:
        The table: the axes that vary, and how each member ended.
    """
    points = [result.point._asdict() for result in results]
    varying = [axis.name for axis in AXES if len({point[axis.name] for point in points}) > 1]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    made.add_column("run", no_wrap=True)
    metrics = {result.metric for result in results}
    one = metrics.pop() if len(metrics) == 1 else None
    timed = one is None or one == ACCURACY
    heads = [*varying, one.heading if one else "score", "loss"]
    for head in (*heads, *(["steps to 90 %"] if timed else []), "status"):
        made.add_column(head.replace("_", " "), justify="right", no_wrap=True)
    for result, point in zip(results, points, strict=True):
        score, loss, metric = result.eval_score, result.eval_loss, result.metric
        which = "" if one else f"{metric.called} "
        made.add_row(
            result.run,
            *("–" if point[name] is None else f"{point[name]:g}" for name in varying),
            "–" if score is None else f"{which}{metric.plain(score)}{metric.unit}",
            "–" if loss is None else f"{loss:.4f}",
            *([words.count(result.steps_to_90)] if timed else []),
            result.status,
        )
    reasons = {result.run: result.reason for result in results if result.reason}
    if reasons:
        made.caption = "\n".join(f"{run} failed: {reason}" for run, reason in reasons.items())
        made.caption_justify = "left"
    return made
