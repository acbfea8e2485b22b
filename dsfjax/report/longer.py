"""Trained models on sequences longer than they were trained on: a figure and a file."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from dsfjax.aspects.style import DASHED, DOTTED, LINES, MUTED, SETTINGS, colors, turn
from dsfjax.report.read import labels, names_by_task
from dsfjax.tasks import ACCURACY, Generated
from dsfjax.training import load
from dsfjax.training.generalisation import FACTORS, STARTS, score_lengths
from dsfjax.training.runs import program_of
from dsfjax.training.storage.files import write_text
from dsfjax.training.storage.record import row

SAYING = {
    "empty": "from an empty state",
    "carried": "after another sequence",
    "random": "from a random state",
}
"""Start of a sequence to the title of its panel."""


def write_lengths(
    run_dir: Path | str,
    out_dir: Path | str,
    *,
    factors: Sequence[int] = FACTORS,
    starts: Sequence[str] = STARTS,
    num_examples: int | None = None,
    said: Callable[[str], Any] = str,
) -> list[dict[str, Any]]:
    """Evaluate the models of a run, comparison or sweep on longer and longer sequences.

    Of each run all seeds at its best point are evaluated, but those that diverged. Lengths that a
    task or a model does not have are left out, and said.

    Args:
        run_dir: Folder of a run, comparison or sweep.
        out_dir: Where ``lengths.csv`` and ``lengths.png`` are written; made if it does not exist.
        factors: Lengths over the training length.
        starts: Where sequences begin (`dsfjax.training.generalisation.STARTS`).
        num_examples: Examples at each length; by default as many as training was evaluated on.
        said: Told of every model, and of what is left out.

    Returns:
        The rows of the file: ``run``, ``seed``, ``start``, ``factor``, ``length``, ``score``,
        ``loss``, ``trivial``, the score that needs no memory at this length, and ``metric``, the
        name of what both are of.

    Raises:
        ValueError: If there is no finished run, or none of a generated task.
    """
    folder, out = Path(run_dir), Path(out_dir)
    names = [name for own in names_by_task(folder).values() for name in own]
    places = {label: folder / name for label, name in zip(labels(names), names, strict=True)}
    rows = []
    for label, place in (places or {"": folder}).items():
        rows += _rows_of(place, label, factors, starts, num_examples, said)
    if not rows:
        raise ValueError(
            f"lengths: expected a trained model of a generated task in {folder}, found none; what "
            "is read from a data set has no longer version."
        )
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "lengths.csv", text.getvalue())
    length_curves(rows).savefig(out / "lengths.png", dpi=120)
    return rows


def _rows_of(
    place: Path,
    label: str,
    factors: Sequence[int],
    starts: Sequence[str],
    num_examples: int | None,
    said: Callable[[str], Any],
) -> list[dict[str, Any]]:
    """The rows of one run."""
    loaded = load(place)
    config, label = loaded.config, label or loaded.config.model.mixer
    task, learned = config.task, config.model.max_length
    if not isinstance(task, Generated):
        said(f"{label}: left out, as its task is read from a data set")
        return []
    longer = {}
    for factor in factors:
        try:
            found = task.lengthened(factor)
            if learned and found.seq_len > learned:
                raise ValueError(f"the model has {learned} learned positions")
            longer[factor] = found
        except ValueError as error:
            said(f"{label}: {factor} times the length left out: {error}")
    best, model = row(loaded.members)["best"], program_of(config).model
    rows = []
    for member in loaded.members:
        own_best = all(getattr(member.point, axis) == value for axis, value in best.items())
        if not own_best or member.status == "diverged":
            continue
        params = jax.tree.map(lambda leaf, i=member.member: np.asarray(leaf)[i], loaded.params)
        for score in score_lengths(
            model,
            task,
            params,
            factors=list(longer),
            starts=starts,
            num_examples=num_examples or config.eval_examples,
            batch_size=config.batch_size,
        ):
            values = score._asdict() | {"trivial": longer[score.factor].trivial().score}
            values |= {"metric": task.metric.name}
            rows.append({"run": label, "seed": member.point.seed, **values})
        said(f"{label}: seed {member.point.seed} evaluated")
    return rows


def mean_scores(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """Mean over seeds of the score, for each run and start, by factor.

    Args:
        rows: As `write_lengths` gives them.

    Example:
        >>> common = {"run": "ssd", "start": "empty"}
        >>> mean_scores([{**common, "factor": 2, "score": x} for x in (0.5, 1.0)])
        {('ssd', 'empty'): {2: 0.75}}
    """
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in rows:
        own = found.setdefault((one["run"], one["start"]), {})
        own.setdefault(one["factor"], []).append(one["score"])
    return {
        line: {factor: float(np.mean(scores)) for factor, scores in own.items()}
        for line, own in found.items()
    }


def length_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Score against length: a line per run through the means over seeds, a panel per start.

    Args:
        rows: As `write_lengths` gives them.

    Returns:
        The figure: the dotted line is at the training length, the dashed one the score that needs
        no memory, where all runs have the same.
    """
    import matplotlib

    runs = list(dict.fromkeys(one["run"] for one in rows))
    starts = [start for start in STARTS if any(one["start"] == start for one in rows)]
    means, color = mean_scores(rows), colors(runs)
    page: dict[Any, Any] = {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "grid.color": "#dddddd",
    }
    with matplotlib.rc_context(SETTINGS | page):
        figure = Figure(figsize=(1.2 + 3.2 * len(starts), 3.6), layout="constrained")
        panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
        for ax, start in zip(panels, starts, strict=True):
            for run in runs:
                own = sorted(means.get((run, start), {}).items())
                if own:
                    line = LINES[turn(runs, run)]
                    label = run if start == starts[0] else None
                    factor, score = zip(*own, strict=True)
                    ax.plot(factor, score, "o", color=color[run], markersize=4)
                    ax.plot(factor, score, color=color[run], linestyle=line, label=label)
            trivial = {factor: set() for factor in sorted({one["factor"] for one in rows})}
            for one in rows:
                trivial[one["factor"]].add(one["trivial"])
            if all(len(values) == 1 for values in trivial.values()):
                lowest = [values.pop() for values in trivial.values()]
                ax.plot(list(trivial), lowest, color=MUTED, linewidth=1, linestyle=DASHED)
            ax.axvline(1, color=MUTED, linewidth=1, linestyle=DOTTED)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.set_title(SAYING[start])
            ax.set_xlabel("length / training length")
            ax.grid(axis="y")
        called = {one["metric"] for one in rows}
        name = called.pop().replace("_", " ") if len(called) == 1 else "score"
        panels[0].set_ylabel(f"{name} on held-out examples")
        if name == ACCURACY.name:
            panels[0].set_ylim(0, 1.02)
        figure.legend(loc="outside lower center", ncols=min(4, len(runs)))
    return figure
