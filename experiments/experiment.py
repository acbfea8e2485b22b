"""What every experiment does with its configs: train them, summarise, draw, write.

A *point* is one config, so one model on one task, trained with every learning rate and seed as one
program. Its result is the mean and the standard deviation (n − 1) over the seeds of the held-out
accuracy at the end, at the learning rate with the highest such mean: the rate is chosen by the same
accuracy that is shown. Beside it stands the largest accuracy of any rate and seed, which the paper
plots. A diverged member counts as accuracy 0.
"""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from matplotlib.figure import Figure

from dsfjax._util.limits import cores
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import MemberResult, Resources, TrainConfig, read_results, sweep
from dsfjax.training.devices import reserve
from dsfjax.training.storage import environment, files
from dsfjax.training.storage.folder import finished
from experiments import plots
from experiments.claims import Claim
from experiments.settings import Scale

LEVELS = (0.5, 0.9, 0.99)
RULE = (
    "Mean and standard deviation (n - 1) over seeds of the held-out accuracy at the end, at the "
    "learning rate whose mean is the highest; max is the highest of all rates and seeds."
)


class Experiment(NamedTuple):
    """An experiment as data.

    Attributes:
        name: Of its file and of what it writes.
        about: The docstring of its file.
        configs: ``configs(scale, faithful)``: name of a point to its config. The name begins with
            that of its series and a comma.
        figure: From the points, as :func:`summarize` makes them, to a figure.
        claims: What the paper says should be seen.
        note: What stands under the figure.
    """

    name: str
    about: str | None
    configs: Callable[[Scale, bool], dict[str, TrainConfig]]
    figure: Callable[[Sequence[Mapping[str, Any]]], Figure]
    claims: tuple[Claim, ...] = ()
    note: str = RULE


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of every experiment.

    Attributes:
        scale: "demo" takes a minute, "small" minutes on four cores, "paper" needs accelerators.
        faithful: Normalized attention and SSD as in the authors' code, where it differs from the
            paper; the results have a folder of their own. Figure 2 shows both ways without it.
        devices: Devices to cut the members over; by default all, on a CPU one per core.
        seeds: Only the first of the scale's seeds.
        only: Train only points whose name has this text; the result also has those that are
            finished.
        run_dir: Where the runs are; those that are finished are not run again.
        out: Where results are written.
        data_dir: Folder of data sets. No experiment reads any yet: recall is drawn on the device.
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
    if not any(options.only in name for name in configs):
        raise ValueError(f"expected --only to be part of a name of a point, got {options.only!r}")
    if options.seeds is not None:
        configs = {
            name: dataclasses.replace(each, seeds=each.seeds[: options.seeds])
            for name, each in configs.items()
        }
    folder = options.run_dir or Path("runs") / f"experiments-{options.scale}"
    # Points of earlier calls stay in the result, or a later one with --only would lose them.
    configs = {
        name: each
        for name, each in configs.items()
        if options.only in name or finished(folder / run_name(each), each)
    }
    with progress(console()) as listener:
        rows = sweep(
            {run_name(each): each for each in configs.values()},
            folder,
            listener=listener,
            resources=Resources(options.devices),
        )
    members: dict[str, list[MemberResult]] = {}
    for member in read_results(folder):
        members.setdefault(member.run, []).append(member)
    failed = {row["mixer"]: row["reason"] for row in rows if row["status"] == "failed"}
    configs = {name: each for name, each in configs.items() if run_name(each) not in failed}
    chosen = {row["mixer"]: row for row in rows}
    result = {
        "experiment": experiment.name,
        "scale": options.scale,
        "faithful": options.faithful,
        "command": command,
        "rule": RULE,
        "environment": environment.describe(),
        "points": [
            summarize(name, each, chosen[run_name(each)], members[run_name(each)])
            for name, each in configs.items()
        ],
    }
    kind = f"{options.scale}-faithful" if options.faithful else options.scale
    if configs:
        write(experiment, result, options.out or Path("experiments") / "results" / kind)
    if failed:
        raise RuntimeError(f"{experiment.name}: {len(failed)} points failed: {failed}")
    return result


def _recall(config: TrainConfig) -> MQARConfig:
    """The task of a point: the experiments of this folder are on recall."""
    assert isinstance(config.task, MQARConfig)
    return config.task


def run_name(config: TrainConfig) -> str:
    """The folder of a point's run: experiments that share a point share its run."""
    model, task = config.model, _recall(config)
    state = "" if model.d_state is None else f"-n{model.d_state}"
    sizes = f"L{task.seq_len}-kv{task.num_kv_pairs}-d{model.d_model}{state}"
    return f"{model.mixer}-{sizes}-{config.fingerprint}"


def summarize(
    name: str, config: TrainConfig, row: Mapping[str, Any], members: Sequence[MemberResult]
) -> dict[str, Any]:
    """The result of a point.

    Args:
        name: Its name.
        config: Its config.
        row: Of the sweep, as :func:`dsfjax.training.storage.record.row` makes it.
        members: How its members ended.

    Returns:
        JSON data: what was run, ``learning_rate`` (the chosen), ``mean``, ``std``, ``max``,
        ``steps_to`` (level to the mean over seeds at that rate; None unless all got there),
        ``diverged`` (how many members), the ``members``, wall times and the environment.
    """
    model, task = config.model, _recall(config)
    each = [
        {
            "learning_rate": member.point.learning_rate,
            "seed": member.point.seed,
            "accuracy": member.score,
            "status": member.status,
            "step": member.step,
            "steps_to": {f"{level:.0%}": member.steps_to(level) for level in LEVELS},
        }
        for member in members
    ]
    rate = row["best_learning_rate"]
    at_best = [member["steps_to"] for member in each if member["learning_rate"] == rate]
    return {
        "name": name,
        "series": name.split(",")[0],
        "mixer": model.mixer,
        "seq_len": task.seq_len,
        "num_kv_pairs": task.num_kv_pairs,
        "vocab_size": task.vocab_size,
        "d_model": model.d_model,
        "d_state": model.d_state,
        "state_size": row["state_size"],
        "num_params": row["num_params"],
        "steps": config.steps,
        "batch_size": config.batch_size,
        "learning_rate": rate,
        "mean": row["accuracy_mean"],
        "std": row["accuracy_std"],
        "max": max(member["accuracy"] for member in each),
        "steps_to": {level: _mean([steps[level] for steps in at_best]) for level in at_best[0]},
        "diverged": sum(member["status"] == "diverged" for member in each),
        "members": each,
        "train_seconds": row["train_seconds"],
        "compile_seconds": row["compile_seconds"],
        "tokens_per_second": row["tokens_per_second"],
        "run": run_name(config),
        "environment": members[0].environment,
    }


def write(experiment: Experiment, result: Mapping[str, Any], folder: Path) -> None:
    """Write ``<name>.json``, ``.png`` and ``.pdf``, each whole or not at all.

    Args:
        experiment: The experiment.
        result: The content of the JSON file.
        folder: Made if need be.
    """
    with plots.style():
        figure = experiment.figure(result["points"])
        plots.caption(figure, f"Scale: {result['scale']}. {experiment.note}")
        for kind in ("png", "pdf"):
            files.write_bytes(folder / f"{experiment.name}.{kind}", plots.rendered(figure, kind))
    files.write_json(folder / f"{experiment.name}.json", result)


def _mean(steps: Sequence[int | None]) -> float | None:
    known = [step for step in steps if step is not None]
    return sum(known) / len(known) if len(known) == len(steps) else None
