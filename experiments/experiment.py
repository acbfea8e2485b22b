"""What every experiment does with its configs: train them, summarise, draw, write.

A *point* is one config, so one model on one task, trained with every learning rate and seed as one
program. Its result is the mean and the standard deviation (n − 1) over the seeds of the held-out
score at the end, such as the accuracy, at the learning rate with the best such mean: the rate is
chosen by the same score that is shown. Beside it stands the best score of any rate and seed, which
the paper plots. A diverged member counts as the worst score: 0 of an accuracy, ∞ of a loss.

Where a data set has a validation split, that one is held out and chooses the rate; shown is then
the test split at that rate (`experiments.after`).
"""

import csv
import dataclasses
import io
import math
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import tyro
from matplotlib.figure import Figure

from dsfjax._util.allocation import keep_freed_memory
from dsfjax._util.atomic import lock
from dsfjax._util.limits import cores
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.tasks import ACCURACY, Metric, Task, name_of
from dsfjax.tasks.data import reading
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import MemberResult, Resources, TrainConfig, read_results, sweep
from dsfjax.training.devices import reserve
from dsfjax.training.storage import environment, files
from dsfjax.training.storage.folder import finished
from dsfjax.training.storage.record import mean_in
from experiments import after, plots, points
from experiments.claims import Claim
from experiments.settings import Scale

LEVELS = (0.5, 0.9, 0.99)
"""Of accuracy: steps to each are counted."""
SHOWN = ("seq_len", "num_kv_pairs", "vocab_size")
"""Sizes of a task that a point has next to its other numbers, for figures."""


def rule(metric: Metric, tested: bool = False) -> str:
    """How the numbers of points were made.

    Args:
        metric: What they are of.
        tested: Whether some are of a test split, with the rate chosen on the validation split.
    """
    best = "highest" if metric.higher_is_better else "lowest"
    if tested:
        return (
            f"Mean and standard deviation (n - 1) over seeds of the {metric.called} at the end on "
            f"the test split (its first {after.TEST_EXAMPLES:,} examples at most), at the learning "
            f"rate whose mean on the validation split is the {best}; {points.extreme(metric)} is "
            f"the {best} of the seeds at that rate. Tasks without a validation split: held-out "
            "examples choose the rate and are shown."
        )
    return (
        f"Mean and standard deviation (n - 1) over seeds of the held-out {metric.called} at the "
        f"end, at the learning rate whose mean is the {best}; {points.extreme(metric)} is the "
        f"{best} of all rates and seeds."
    )


RULE = rule(ACCURACY)


class Experiment(NamedTuple):
    """An experiment as data.

    Attributes:
        name: Of its file and of what it writes.
        about: The docstring of its file.
        configs: ``configs(scale, faithful)``: name of a point to its config. The name begins with
            that of its series and a comma.
        figure: From the points, as :func:`summarize` makes them, to a figure.
        claims: What the paper says should be seen.
        note: What stands under the figure; by default `rule`.
        after: Whether trained models are looked into: their eigenvalues, and the test split where
            the validation split chose the rate.
        lengths: Lengths over the training length at which trained models are scored, too.
        compares: Whether architectures had the same training, so that it is evidence of which to
            take (`dsfjax.guidance`).
    """

    name: str
    about: str | None
    configs: Callable[[Scale, bool], dict[str, TrainConfig]]
    figure: Callable[[Sequence[Mapping[str, Any]]], Figure]
    claims: tuple[Claim, ...] = ()
    note: str = ""
    after: bool = False
    lengths: tuple[int, ...] = ()
    compares: bool = True


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of every experiment.

    Attributes:
        scale: "demo" takes a minute, "small" minutes on four cores, "paper" needs accelerators.
        faithful: Normalized attention and SSD as in the authors' code, where it differs from the
            paper; the results have a folder of their own. Figure 2 shows both ways without it.
        devices: Devices to cut the members over; by default all, on a CPU one per core.
        seeds: Only the first of the scale's seeds.
        only: Train only points in whose name this regular expression is found, as in
            ``--only '^lstm'``; the result also has those that are finished, and those that this or
            another experiment has left in the folder of results.
        run_dir: Where the runs are; those that are finished are not run again.
        out: Where results are written.
        data_dir: Folder of data sets, as for the commands (by default DSFJAX_DATA).
    """

    scale: Scale = "demo"
    faithful: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    devices: int | None = None
    seeds: int | None = None
    only: str = ""
    run_dir: Path | None = None
    out: Path | None = None
    data_dir: Path | None = None


def main(experiment: Experiment, words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run an experiment from the command line; the same command goes on where it was ended.

    Args:
        experiment: The experiment.
        words: The words after its name; by default those of this process.

    Returns:
        What it wrote as JSON.
    """
    prog = f"python -m experiments.{experiment.name}"
    words = sys.argv[1:] if words is None else words
    options = tyro.cli(Options, prog=prog, description=experiment.about, args=words)
    if options.data_dir is not None:
        reading.use(options.data_dir)
    keep_freed_memory()
    # Members run one after another on a device of a CPU, so it has one for every core.
    reserve(cores() if options.devices is None else options.devices)
    return run(experiment, options, f"{prog} {shlex.join(words)}".rstrip())


def run(experiment: Experiment, options: Options, command: str = "") -> dict[str, Any]:
    """Train all points of an experiment and write its JSON, PNG and PDF.

    Args:
        experiment: The experiment.
        options: Its options.
        command: What is said to have started it.

    Returns:
        What it wrote as JSON.

    Raises:
        ValueError: If ``only`` leaves no point.
        RuntimeError: If points failed; the others have been written then.
    """
    configs = experiment.configs(options.scale, options.faithful)
    try:
        wanted = {name for name in configs if re.search(options.only, name)}
    except re.error as error:
        raise ValueError(
            f"expected --only to be a regular expression, got {options.only!r}: {error}"
        ) from error
    if not wanted:
        raise ValueError(
            f"expected --only to be found in the name of a point, got {options.only!r}; "
            f"they are {', '.join(map(repr, configs))}"
        )
    if options.seeds is not None:
        configs = {
            name: dataclasses.replace(each, seeds=each.seeds[: options.seeds])
            for name, each in configs.items()
        }
    folder = options.run_dir or Path("runs") / f"experiments-{options.scale}"
    kind = f"{options.scale}-faithful" if options.faithful else options.scale
    out = options.out or Path("experiments") / "results" / kind
    # Points of earlier calls stay in the result, or a later one with --only would lose them.
    known = {run_name(each): (name, each.task) for name, each in configs.items()}
    order = list(configs)
    configs = {
        name: each
        for name, each in configs.items()
        if name in wanted or finished(folder / run_name(each), each)
    }
    with progress(console()) as listener:
        rows = sweep(
            {run_name(each): each for each in configs.values()},
            folder,
            listener=listener,
            resources=Resources(options.devices),
        )
    (metric,) = {each.task.metric for each in configs.values()}
    members: dict[str, list[MemberResult]] = {}
    for member in read_results(folder):
        members.setdefault(member.run, []).append(member)
    failed = {row["mixer"]: row["reason"] for row in rows if row["status"] == "failed"}
    configs = {name: each for name, each in configs.items() if run_name(each) not in failed}
    chosen = {row["mixer"]: row for row in rows}
    made = [
        summarize(
            name,
            each,
            chosen[run_name(each)],
            members[run_name(each)],
            folder / run_name(each) if experiment.after else None,
            experiment.lengths,
        )
        for name, each in configs.items()
    ]
    # Calls for other points may end at the same time: none may lose what another has written.
    with lock(out):
        made += _earlier(out, experiment, known, {point["run"] for point in made})
        result = {
            "experiment": experiment.name,
            "scale": options.scale,
            "faithful": options.faithful,
            "command": command,
            "rule": rule(metric, any(after.test_task(each.task) for each in configs.values())),
            "environment": environment.describe(),
            "points": sorted(made, key=lambda point: order.index(point["name"])),
        }
        if configs:
            write(experiment, result, out)
    if failed:
        reasons = "; ".join(dict.fromkeys(failed.values()))
        raise RuntimeError(f"{len(failed)} points failed ({', '.join(failed)}): {reasons}")
    return result


def _earlier(
    out: Path, experiment: Experiment, known: Mapping[str, tuple[str, Task]], new: Collection[str]
) -> list[dict[str, Any]]:
    """Points of results whose runs are no longer here; the name of a run stands for its config.

    Those of another experiment that shares the run are taken where they say as much. Points from
    before tasks had names get their task, as only those with equal ones are compared.
    """
    own = out / f"{experiment.name}.json"
    asked = {"spectra"} if experiment.after else set()
    asked |= {"lengths"} if experiment.lengths else set()
    found: dict[str, dict[str, Any]] = {}
    for path in (own, *sorted(set(out.glob("*.json")) - {own})):
        for point in files.read_json(path).get("points", ()) if path.exists() else ():
            run = point["run"]
            told = path == own or asked <= point.keys()
            if run in known and run not in new and run not in found and told:
                name, task = known[run]
                missing = {"task": _fields(task), "trivial": task.trivial().score}
                found[run] = missing | point | {"name": name, "series": name.split(",")[0]}
    return list(found.values())


def run_name(config: TrainConfig) -> str:
    """The folder of a point's run: experiments that share a point share its run."""
    model, task = config.architecture, config.task
    state = "" if model.d_state is None else f"-n{model.d_state}"
    recall = isinstance(task, MQARConfig)
    which = f"L{task.seq_len}-kv{task.num_kv_pairs}" if recall else name_of(task)
    return f"{model.mixer}-{which}-d{model.d_model}{state}-{config.fingerprint}"


def summarize(
    name: str,
    config: TrainConfig,
    row: Mapping[str, Any],
    members: Sequence[MemberResult],
    folder: Path | None = None,
    factors: Sequence[int] = (),
) -> dict[str, Any]:
    """The result of a point.

    Args:
        name: Its name.
        config: Its config.
        row: Of the sweep, as :func:`dsfjax.training.storage.record.row` makes it.
        members: How its members ended.
        folder: Of the run, if the models are to be looked into.
        factors: Lengths over the training length at which they are to be scored then.

    Returns:
        JSON data: what was run, ``learning_rate`` (the chosen), ``mean``, ``std``, ``max`` (of what
        is better the lower it is, ``min``), ``trivial`` (the score that takes no model),
        ``steps_to`` (level of accuracy to the mean over seeds at that rate; None unless all got
        there), ``diverged`` (how many members), the ``members``, wall times and the environment.
        Of another metric than the accuracy ``measured`` says what it is; further ones have mean and
        standard deviation under their names. With ``folder`` there are ``spectra``
        and, with ``factors``, ``lengths`` (`experiments.after.look`). Where the validation split
        was held out, all scores but those of ``members`` are then of the test split, and those of
        validation are in ``validation``. `experiments.points` reads them.
    """
    model, task, metric = config.architecture, config.task, config.task.metric
    levels = LEVELS if metric == ACCURACY else ()
    each = [
        {
            "learning_rate": member.point.learning_rate,
            "seed": member.point.seed,
            metric.name: _number(member.score),
            "status": member.status,
            "step": member.step,
            "steps_to": {f"{level:.0%}": member.steps_to(level) for level in levels},
        }
        for member in members
    ]
    best = min((member.score for member in members), key=metric.order)
    rate = row["best_learning_rate"]
    at_best = [member["steps_to"] for member in each if member["learning_rate"] == rate]
    judged, scores = task, _scores(row, task, best)
    if folder is not None:
        found = after.look(config, folder, rate, factors)
        scores |= {"spectra": found["spectra"]}
        scores |= {"lengths": found["lengths"]} if found["lengths"] else {}
        if (tested := after.test_task(task)) is not None:
            judged, validation = tested, {"mean": scores["mean"], "std": scores["std"]}
            scores |= _test_scores(found["test"], config) | {"validation": validation}
    baselines = {name: each.score for name, each in judged.baselines().items()}
    return {
        "name": name,
        "series": name.split(",")[0],
        "mixer": model.mixer,
        "task": _fields(task),
        **{size: getattr(task, size) for size in SHOWN if hasattr(task, size)},
        **({} if metric == ACCURACY else {"measured": row["measured"]}),
        "d_model": model.d_model,
        "d_state": model.d_state,
        "state_size": row["state_size"],
        "num_params": row["num_params"],
        "steps": config.steps,
        "batch_size": config.batch_size,
        "learning_rate": rate,
        **scores,
        "trivial": judged.trivial().score,
        **({"linear": baselines["linear"]} if "linear" in baselines else {}),
        "steps_to": {level: _mean([steps[level] for steps in at_best]) for level in at_best[0]},
        "diverged": sum(member["status"] == "diverged" for member in each),
        "members": each,
        "train_seconds": row["train_seconds"],
        "compile_seconds": row["compile_seconds"],
        "tokens_per_second": row["tokens_per_second"],
        "run": run_name(config),
        "environment": members[0].environment,
    }


def _fields(task: Task) -> dict[str, Any]:
    return {"name": name_of(task), **dataclasses.asdict(cast(Any, task))}


def _scores(row: Mapping[str, Any], task: Task, best: float) -> dict[str, Any]:
    """What the row of a run says: mean, standard deviation and best, and further metrics."""
    return {
        "mean": row[f"{task.metric.name}_mean"],
        "std": row[f"{task.metric.name}_std"],
        points.extreme(task.metric): _number(best),
        **{other.name: mean_in(row, other) for other in task.also},
    }


def _test_scores(test: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """The same of the test split."""
    metric = config.task.metric

    def spread(metric: Metric) -> tuple[float | None, float | None]:
        values = after.seeds_of(test, metric, config.seeds)
        mean, many = float(values.mean()), len(values) > 1
        return _number(mean), float(values.std(ddof=1)) if many and math.isfinite(mean) else 0.0

    mean, std = spread(metric)
    best = min(after.seeds_of(test, metric, config.seeds).tolist(), key=metric.order)
    return {
        "mean": mean,
        "std": std,
        points.extreme(metric): _number(best),
        **{other.name: spread(other) for other in config.task.also},
    }


def write(experiment: Experiment, result: Mapping[str, Any], folder: Path) -> None:
    """Write ``<name>.json``, ``.png``, ``.pdf`` and of lengths ``.csv``, each whole or not at all.

    Args:
        experiment: The experiment.
        result: The content of the JSON file.
        folder: Made if need be.
    """
    with plots.style():
        figure = experiment.figure(result["points"])
        note = experiment.note or result["rule"]
        plots.caption(figure, f"Scale: {result['scale']}. {note}")
        if any("lengths" in point for point in result["points"]):
            files.write_text(folder / f"{experiment.name}.csv", _lengths(result["points"]))
        for kind in ("png", "pdf"):
            files.write_bytes(folder / f"{experiment.name}.{kind}", plots.rendered(figure, kind))
    files.write_json(folder / f"{experiment.name}.json", result)


def _lengths(found: Sequence[Mapping[str, Any]]) -> str:
    """A row per model, start and length, as CSV."""
    text = io.StringIO(newline="")
    names = ("series", "where", "start", "factor", "length", "mean", "std", "seeds", "trivial")
    writer = csv.writer(text)
    writer.writerow(names)
    for point in found:
        for one in point.get("lengths", ()):
            scores = one["scores"]
            std = statistics.stdev(scores) if len(scores) > 1 else 0.0
            own = (point["series"], points.where(point), one["start"], one["factor"], one["length"])
            writer.writerow((*own, statistics.fmean(scores), std, len(scores), one["trivial"]))
    return text.getvalue()


def _number(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def _mean(steps: Sequence[int | None]) -> float | None:
    known = [step for step in steps if step is not None]
    return sum(known) / len(known) if len(known) == len(steps) else None
