"""The comparison as a table in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dsfjax._util import words
from dsfjax.report.joint import (
    TaskScores,
    baselines,
    better,
    known_baselines,
    mixers,
    scores_called,
)
from dsfjax.tasks import ACCURACY
from dsfjax.training.storage.record import mean_in, measured_in


def render(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of a comparison as a table, the best score first and what failed last.

    Args:
        rows: One mapping per mixer, all of one task, as :func:`dsfjax.training.sweep` returns and
            writes them.

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
    finished = [row for row in rows if row.get("status") != "failed"]
    measured = measured_in(finished[0] if finished else {})
    metric = measured[0]
    timed = ["steps to\n90 %"] if metric == ACCURACY else []
    heads = [*(each.heading for each in measured), "best lr", *timed, "N", "params", "tokens/s"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in sorted(finished, key=lambda row: metric.order(mean_in(row, metric)[0])):
        table.add_row(
            row["mixer"],
            *[each.spread(*mean_in(row, each)) for each in measured],
            words.rate(row["best_learning_rate"]),
            *[words.count(row["steps_to_90"]) for _ in timed],
            words.count(row["state_size"]),
            words.count(row["num_params"]),
            words.count(row["tokens_per_second"]),
        )
    for row in rows:
        if row.get("status") == "failed":
            table.add_row(row["mixer"], "failed", *["–"] * (len(heads) - 1))
    return table


def render_joint(joint: Sequence[TaskScores]) -> Table:
    """Several tasks as one table: the score at the best learning rate, a column per task.

    Args:
        joint: The columns.

    Returns:
        The table. The last rows are what the baselines of the tasks reach; a star marks a score
        that is not clearly better than the trivial answer, and a note below says so.
    """
    note = (
        f"{scores_called(joint)} at the best learning rate, mean ± standard deviation over seeds. "
        f"* not learnt: not clearly {better(joint)} the trivial answer. "
        f"{baselines(joint)} N and params: by task, where they differ."
    )
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=Text(note),
        caption_justify="left",
    )
    table.add_column("mixer", no_wrap=True)
    # The unit is in the heads: a table of two tasks fits a narrow terminal.
    for task in joint:
        unit = "%" if task.metric == ACCURACY else task.metric.heading
        table.add_column(f"{task.name}, {unit}", justify="right", no_wrap=True)
    for head in ("N", "params"):
        table.add_column(head, justify="right")
    for mixer in mixers(joint):
        scores = [task.scores.get(mixer) for task in joint]
        table.add_row(
            mixer,
            *[_score(task, mixer) for task in joint],
            _by_task([None if score is None else score.state_size for score in scores]),
            _by_task([None if score is None else score.num_params for score in scores]),
        )
    table.add_section()
    for name, known in known_baselines(joint).items():
        shown = [
            "–" if each is None else task.metric.plain(each.score)
            for task, each in zip(joint, known, strict=True)
        ]
        table.add_row(name, *shown)
    return table


def _score(task: TaskScores, mixer: str) -> Text | str:
    if (score := task.scores.get(mixer)) is None:
        return "–"
    shown = task.metric.spread(score.mean, score.std).removesuffix(task.metric.unit)
    return shown if task.learnt(mixer) else Text(f"* {shown}", style="dim")


def _by_task(values: Sequence[int | None]) -> str:
    """One number where all tasks have the same, else one per task."""
    distinct = values if len(set(values)) > 1 else values[:1]
    return "/".join(words.count(value) for value in distinct)
