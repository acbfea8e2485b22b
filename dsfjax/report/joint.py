"""Several tasks in one table: a row per mixer and per baseline, a column per task.

It is made from the results of training alone, so that no model has to be analysed for it.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsfjax._util.words import capitalized
from dsfjax.report.read import labels, names_by_task
from dsfjax.tasks import ACCURACY, Baseline, Metric, Task, name_of
from dsfjax.training.storage.record import mean_in


@dataclass(frozen=True)
class Score:
    """One mixer on one task, at its best learning rate.

    Attributes:
        mean: Mean over seeds of the final score, such as the accuracy in [0, 1].
        std: Standard deviation over seeds.
        learning_rate: The best learning rate.
        state_size: Numbers of state in all layers after the last token of a sequence.
        num_params: Number of trained parameters.
    """

    mean: float
    std: float
    learning_rate: float
    state_size: int
    num_params: int


@dataclass(frozen=True)
class TaskScores:
    """One task of a comparison: a column of the table.

    Attributes:
        name: Short, and different for every task; the folder of its report has this name, too.
        title: Heading of the report of the task.
        sizes: Its sizes in words.
        trivial: The best answer that takes no model.
        linear: A linear model of the whole input; None where the task has no such baseline.
        scores: Mixer to its score, in the order of the comparison.
        metric: What the scores are of.
    """

    name: str
    title: str
    sizes: str
    trivial: Baseline
    linear: Baseline | None
    scores: Mapping[str, Score]
    metric: Metric = ACCURACY

    def learnt(self, mixer: str) -> bool:
        """Whether a mixer is clearly better than the trivial answer.

        Args:
            mixer: One of `scores`.
        """
        score = self.scores[mixer]
        return self.metric.beats(score.mean, score.std, self.trivial.score)


def read_joint(run_dir: Path) -> list[TaskScores]:
    """The columns of a comparison.

    Args:
        run_dir: Its folder; one without ``compare.json`` has no columns.

    Returns:
        One per task, in the order of the rows.
    """
    tasks = names_by_task(run_dir)
    if not tasks:
        return []
    rows = json.loads((run_dir / "compare.json").read_text(encoding="utf-8"))
    by_name = {row["mixer"]: row for row in rows}
    return [
        _scores(short, task, [by_name[name] for name in tasks[task]])
        for task, short in short_names(list(tasks)).items()
    ]


def short_names(tasks: Sequence[Task]) -> dict[Task, str]:
    """The names that tasks are registered under, with their sizes where one occurs twice.

    Args:
        tasks: Distinct tasks.

    Returns:
        Task to name, all different.

    Example:
        >>> from dsfjax import tasks
        >>> name = tasks.names()[0]
        >>> short, long = (tasks.get(name, seq_len=steps) for steps in (32, 64))
        >>> short_names([short])[short] == name
        True
        >>> len(set(short_names([short, long]).values()))
        2
    """
    names = {task: name_of(task) for task in tasks}
    often = Counter(names.values())
    return {
        task: name if often[name] == 1 else f"{name}-{task.slug()}" for task, name in names.items()
    }


def mixers(joint: Sequence[TaskScores]) -> list[str]:
    """All mixers of some tasks, the best on the first task first.

    Args:
        joint: The columns.

    Returns:
        Every mixer once. Those that were not trained on the first task follow, ordered by the next
        task.
    """
    found: dict[str, None] = {}
    for task in joint:
        order = sorted(task.scores, key=lambda m: task.metric.order(task.scores[m].mean))
        found |= dict.fromkeys(order)
    return list(found)


def baselines(joint: Sequence[TaskScores]) -> str:
    """What the baselines of all tasks are, in words.

    Args:
        joint: The columns.

    Returns:
        One or two sentences.
    """
    known = {
        "Trivial answer": [(task.name, task.trivial.about) for task in joint if task.trivial.about],
        "Linear model of the whole input": [(t.name, t.linear.about) for t in joint if t.linear],
    }
    said = {what: "; ".join(map(", ".join, each)) for what, each in known.items()}
    return " ".join(f"{what}: {text}." for what, text in said.items() if text)


def known_baselines(joint: Sequence[TaskScores]) -> dict[str, list[Baseline | None]]:
    """The baselines as rows of the table.

    Args:
        joint: The columns.

    Returns:
        Name of a row to a baseline per task, None where the task has none; no row of Nones.
    """
    rows = {
        "trivial answer": [t.trivial if t.trivial.about else None for t in joint],
        "linear model": [t.linear for t in joint],
    }
    return {name: known for name, known in rows.items() if any(known)}


def scores_called(joint: Sequence[TaskScores]) -> str:
    """What the numbers of the table are, as the beginning of a sentence.

    Args:
        joint: The columns.
    """
    called = list(dict.fromkeys(task.metric.called for task in joint))
    return capitalized(called[0] if len(called) == 1 else "score")


def better(joint: Sequence[TaskScores]) -> str:
    """Where the better numbers are: "above" a number, "below" it, or, if tasks differ, neither.

    Args:
        joint: The columns.
    """
    words = {task.metric.better for task in joint}
    return words.pop() if len(words) == 1 else "better than"


def write_joint(joint: Sequence[TaskScores], path: Path) -> None:
    """Write the table as CSV, a row per task and mixer, in full precision.

    A column has the numbers of one metric; it is empty in the rows of tasks with another.

    Args:
        joint: The columns.
        path: The file.
    """
    rows = list(_rows(joint))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def _rows(joint: Sequence[TaskScores]) -> Iterable[dict[str, Any]]:
    for task in joint:
        name = task.metric.name
        for mixer, score in task.scores.items():
            own = dict(vars(score))
            yield {
                "task": task.name,
                "mixer": mixer,
                f"{name}_mean": own.pop("mean"),
                f"{name}_std": own.pop("std"),
                **own,
                "learnt": int(task.learnt(mixer)),
                f"trivial_{name}": task.trivial.score,
                f"linear_{name}": None if task.linear is None else task.linear.score,
            }


def _scores(name: str, task: Task, rows: Sequence[Mapping[str, Any]]) -> TaskScores:
    found = labels([row["mixer"] for row in rows])
    if len(found) == 1:  # nothing tells which words of its name are the task's
        found = [found[0].partition("-")[0]]
    scores = {
        label: Score(
            *mean_in(row, task.metric),
            row["best_learning_rate"],
            row["state_size"],
            row["num_params"],
        )
        for label, row in zip(found, rows, strict=True)
    }
    linear = task.baselines().get("linear")
    return TaskScores(
        name, task.title, task.describe(), task.trivial(), linear, scores, task.metric
    )
