"""Run directories read back into a `Comparison`."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsfjax import nn
from dsfjax._util.ahead import compiled
from dsfjax.analysis import cost, state_size
from dsfjax.aspects import Findings
from dsfjax.cost import PHASES
from dsfjax.guidance import Advice, of_folder, profile_of, recommend, shipped
from dsfjax.report.dynamics import read_dynamics
from dsfjax.report.entries import Comparison, Curve, Entry
from dsfjax.report.examine import Examination
from dsfjax.tasks import Task
from dsfjax.training import Loaded, MemberResult, RunError, TrainConfig, load
from dsfjax.training.runs import program_of
from dsfjax.training.storage.folder import read_config
from dsfjax.training.storage.record import mean_in, row
from dsfjax.training.storage.store import NAME as STORE


def read(
    run_dir: Path, names: Collection[str] | None = None, *, said: Callable[[str], Any] = str
) -> Comparison:
    """Read a comparison, or a single run as a comparison of one.

    Args:
        run_dir: Folder with ``compare.json`` and a run per row, or the folder of one run.
        names: The rows to read; all by default.
        said: Told of every stage, with its time.

    Returns:
        The comparison, with an analysis of each mixer's best seed.

    Raises:
        ValueError: If there is no finished run, or the runs are not of one task.
        RunError: If one is not of our architectures.
    """
    if (run_dir / "compare.json").exists():
        rows = json.loads((run_dir / "compare.json").read_text(encoding="utf-8"))
        rows = [row for row in rows if names is None or row["mixer"] in names]
        runs = [(row, load(run_dir / row["mixer"])) for row in rows]
    elif (run_dir / "result.json").exists():
        loaded = load(run_dir)
        runs = [(row(loaded.members), loaded)]
    else:
        raise ValueError(
            f"report: expected a finished run or comparison in {run_dir}, found neither "
            "compare.json nor result.json. Train one with `dsfjax compare` or `dsfjax train`."
        )
    for _, loaded in runs:
        if not isinstance(loaded.config.model, nn.ModelConfig):
            raise RunError(
                f"report: expected runs of our architectures in {run_dir}, got one of "
                f"{loaded.config.model.mixer}; dsfjax analyze looks into it with --text or --ids"
            )
    tasks = {loaded.config.task for _, loaded in runs}
    if len(tasks) != 1:
        raise ValueError(f"report: expected runs of one task in {run_dir}, got {len(tasks)} tasks.")
    labelled = labels([row["mixer"] for row, _ in runs])

    def lowered() -> Iterator[Examination | _Nothing]:
        for label, (own, loaded) in zip(labelled, runs, strict=True):
            began = time.perf_counter()
            found = _look(own, loaded)
            said(f"{label}: traced in {time.perf_counter() - began:.1f} s")
            yield found

    # Compilation is most of the work: the next models are compiled while one is read.
    entries, began = [], time.perf_counter()
    for label, run, look in zip(labelled, runs, compiled(lowered(), lead=2), strict=True):
        entries.append(_entry(label, *run, look()))
        done = f"{len(entries)} of {len(runs)}"
        said(f"{label}: read after {time.perf_counter() - began:.1f} s ({done})")
    (task,) = tasks
    metric = task.metric
    entries.sort(key=lambda e: (metric.order(e.score_mean), e.steps_to_90 or math.inf))
    baselines, trivial = task.baselines(), task.trivial()
    return Comparison(
        title=task.title,
        facts=_facts([loaded for _, loaded in runs]),
        chance=baselines["chance"].score if "chance" in baselines else None,
        unbound=trivial.score,
        trivial=trivial.about,
        linear=baselines.get("linear"),
        entries=tuple(entries),
        measured=task.measured(),
        advice=_advice(run_dir, task) if task.demands else None,
    )


def names_by_task(run_dir: Path) -> dict[Task, list[str]]:
    """Which runs of a comparison are of which task.

    Args:
        run_dir: Folder of a comparison; that of a single run has none.

    Returns:
        Task to the names of its rows, in their order.
    """
    tasks: dict[Task, list[str]] = {}
    if (run_dir / "compare.json").exists():
        for row in json.loads((run_dir / "compare.json").read_text(encoding="utf-8")):
            config = read_config(run_dir / row["mixer"])
            tasks.setdefault(config.task, []).append(row["mixer"])
    return tasks


def labels(names: Sequence[str]) -> list[str]:
    """Names of runs without what they all share, and without fingerprints.

    Args:
        names: Words joined by hyphens, the first one the architecture; distinct.

    Returns:
        Shorter names; the given ones where they would not be distinct.

    Example:
        >>> labels(["ssd-L32-d16-0123abcd", "ssd-L32-d64-4567abcd", "s6-L32-d64-89ababcd"])
        ['ssd-d16', 'ssd-d64', 's6-d64']
        >>> labels(["ssd-0123abcd", "ssd-4567abcd"])
        ['ssd-0123abcd', 'ssd-4567abcd']
    """
    words = [re.sub(r"-[0-9a-f]{8}$", "", name).split("-") for name in names]
    shared = set.intersection(*(set(own[1:]) for own in words)) if len(names) > 1 else set()
    short = ["-".join([own[0], *(w for w in own[1:] if w not in shared)]) for own in words]
    return short if len(set(short)) == len(short) else list(names)


def _advice(run_dir: Path, task: Task) -> Advice:
    """What the results of the folder and those of the package say; what it costs is in the page."""
    stored = any((run_dir / name).exists() for name in ("result.json", STORE))
    own = of_folder(run_dir, "the folder of this run") if stored else []
    return recommend(profile_of(task), [*own, *shipped()], priced=False)


class _Nothing:
    """In place of an `Examination` where there is no model to look at."""

    def compile(self) -> Callable[[], Findings | None]:
        return lambda: None


def _look(row: Mapping[str, Any], loaded: Loaded) -> Examination | _Nothing:
    """The examination of the best member at the best point that did not diverge."""
    whole = [member for member in _best(row, loaded) if member.status != "diverged"]
    if not whole:
        return _Nothing()
    index = min(whole, key=lambda member: member.metric.order(member.score)).member
    # As NumPy's: to take a row of an array of JAX is a program for every shape.
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[index], loaded.params)
    # What was trained in bfloat16 is looked at in full precision.
    exact = dataclasses.replace(loaded.config.architecture, precision="float32")
    config = dataclasses.replace(loaded.config, model=exact)
    return Examination(program_of(config).model, params, config.task)


def _best(row: Mapping[str, Any], loaded: Loaded) -> list[MemberResult]:
    """The members at the best point, one per seed."""
    best = row["best"].items()
    return [m for m in loaded.members if all(getattr(m.point, axis) == x for axis, x in best)]


def _entry(label: str, row: Mapping[str, Any], loaded: Loaded, found: Findings | None) -> Entry:
    config, best = loaded.config, _best(row, loaded)
    model, length = program_of(config).model, config.task.seq_len
    # What answers once, at the end, or reads both ways is not decoded.
    phases = PHASES if model.causal and not model.pooled else PHASES[:2]
    metric, *others = config.task.measured()
    mean, std = mean_in(row, metric)
    seen = [read_dynamics(loaded.metrics, member.member, metric) for member in best]
    copied = ("steps_to_90", "state_size", "num_params", "tokens_per_second")
    return Entry(
        mixer=label,
        run=row["mixer"],
        **{name: row[name] for name in copied},
        score_mean=mean,
        score_std=std,
        also={other.name: mean_in(row, other) for other in others},
        learning_rate=row["best_learning_rate"],
        grows=state_size(model, 2 * length) > state_size(model, length),
        bounds=_bounds(config),
        outcomes=loaded.members,
        curves=tuple(map(_curve, best)),
        cost=cost(model, length, phases=phases),
        findings=found,
        dynamics=next((dynamics for dynamics in seen if dynamics is not None), None),
    )


def _curve(member: MemberResult) -> Curve:
    metric, name = member.metric, f"eval_{member.metric.name}"
    score = np.array([metric.known(line[name]) for line in member.metrics])
    if member.status == "diverged":
        score[-1] = metric.worst  # as the comparison counts it
    steps = np.array([line["step"] for line in member.metrics])
    return Curve(member.point.seed, steps, score, member.status)


def _bounds(config: TrainConfig) -> str:
    names = dict.fromkeys(name for layer in config.architecture.layers for name in layer)
    bounds = {name: nn.architecture(config.architecture, name).traits.bounds for name in names}
    if len(bounds) == 1:
        return next(iter(bounds.values()))
    return "; ".join(f"{name} {text}" for name, text in bounds.items())


def _facts(runs: Sequence[Loaded]) -> dict[str, str]:
    """What the page says under its heading; of settings that differ between runs, all of them."""
    configs = [loaded.config for loaded in runs]

    def each(values: Sequence[Any]) -> str:
        return " | ".join(dict.fromkeys(str(value) for value in values))

    task, environment = configs[0].task, runs[0].environment
    versions = {
        name: version or "(not installed)" for name, version in environment["versions"].items()
    }
    git = environment["git"]
    commit = f", commit {git['commit'][:9]}{' + changes' if git['dirty'] else ''}" if git else ""
    both = any(config.architecture.bidirectional for config in configs)
    ways = "; two systems a layer, the second of the reversed sequence" if both else ""
    return {
        "Task": f"{task.title}: {task.describe()}",
        "Model": f"layers: {each([c.architecture.num_layers for c in configs])}, "
        f"d = {each([c.architecture.d_model for c in configs])}{ways}",
        "Training": f"at most {each([c.steps for c in configs])} steps of "
        f"{each([c.batch_size for c in configs])} examples, AdamW, learning rates "
        f"{each([', '.join(f'{r:g}' for r in c.learning_rates) for c in configs])}, "
        f"{each([len(c.seeds) for c in configs])} seeds",
        "Device": each(
            [
                f"{r.environment['device_count']} × {r.environment['device_kind']} "
                f"({r.environment['cpu_count']} CPU cores)"
                for r in runs
            ]
        ),
        "Versions": f"dsfjax {versions['dsfjax']}{commit}, jax {versions['jax']}, "
        f"flax {versions['flax']}, Python {environment['python']}",
    }
