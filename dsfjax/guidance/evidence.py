"""Results as records: how one model did on one task.

Those of this project are in ``evidence.json`` next to this file, which ``python -m
experiments.page`` makes from the committed results; a user's own are read from folders of runs.
"""

import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from dsfjax import tasks
from dsfjax._util.words import count
from dsfjax.guidance.profile import kind_of_inputs
from dsfjax.tasks import ACCURACY, Metric, Task
from dsfjax.training import MemberResult, read_results
from dsfjax.training.storage import serial
from dsfjax.training.storage.folder import RunError, finished, read_config
from dsfjax.training.storage.record import mean_in, results, row

NAME = "evidence.json"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One model on one task, at its best learning rate.

    Attributes:
        task: Name of the task.
        options: Its options, without the length and those that have their defaults.
        demands: What it takes.
        length: L, steps of a sequence.
        vocab_size: Token ids, 0 for values.
        mixer: The architecture.
        setting: In what it differs from others of its kind, in words.
        mean: Mean of the final held-out score over seeds.
        std: Its standard deviation, n − 1.
        trivial: The score that takes no model; the worst there is if none is known.
        metric: What these are of.
        seeds: How many.
        steps: Training steps of the seed that took the most.
        tokens: Training tokens of that seed.
        num_params: Trained parameters.
        state_size: Numbers of state at the end of a sequence.
        source: Where the result is from: an experiment of this project, or a folder.
        scale: That of the experiment; "" for a folder of one's own.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    demands: tuple[str, ...]
    length: int
    vocab_size: int
    mixer: str
    setting: str = ""
    mean: float
    std: float
    trivial: float
    metric: Metric = ACCURACY
    seeds: int
    steps: int
    tokens: int
    num_params: int
    state_size: int
    source: str
    scale: str = ""

    @property
    def label(self) -> str:
        """The task in words; results with one label are of one task.

        Example:
            >>> one = shipped()[0]
            >>> one.label.startswith(one.task)
            True
        """
        own = [f", {name.replace('_', ' ')} {value}" for name, value in self.options.items()]
        return f"{self.task}, L = {count(self.length)}{''.join(own)}"

    @property
    def inputs(self) -> str:
        """The kind of its inputs: "token ids" or "values"."""
        return kind_of_inputs(self.vocab_size)

    @property
    def learnt(self) -> bool:
        """Whether it is clearly better than the trivial answer."""
        return self.metric.beats(self.mean, self.std, self.trivial)


def own_options(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task that tell it from others of its kind and length.

    Args:
        name: Its name.
        fields: Its fields.
    """
    defaults = {one.name: one.default for one in tasks.options(name).values()}
    return {
        key: value
        for key, value in fields.items()
        if key in defaults and key != "seq_len" and value != defaults[key]
    }


def to_lines(evidence: Iterable[Evidence]) -> str:
    """Records as a JSON list, a record per line.

    Args:
        evidence: The records. What they demand is left out: the classes of their tasks say it.
    """
    lines = []
    for one in evidence:
        data = {key: value for key, value in vars(one).items() if key not in ("demands", "metric")}
        if one.metric != ACCURACY:
            data["metric"] = one.metric._asdict()
        for name in ("mean", "trivial"):
            data[name] = _number(data[name])
        lines.append(json.dumps(data, allow_nan=False))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def from_lines(text: str) -> list[Evidence]:
    """The inverse of `to_lines`.

    Args:
        text: The JSON list.
    """
    found = []
    for data in json.loads(text):
        metric = Metric(**data.pop("metric")) if "metric" in data else ACCURACY
        own: dict[str, Any] = {name: metric.known(data.pop(name)) for name in ("mean", "trivial")}
        own |= {"metric": metric, "demands": tuple(tasks.kind(data["task"]).demands)}
        found.append(Evidence(**data, **own))
    return found


@functools.cache
def shipped() -> tuple[Evidence, ...]:
    """The results of this project that come with the package."""
    text = resources.files("dsfjax.guidance").joinpath(NAME).read_text(encoding="utf-8")
    return tuple(from_lines(text))


def of_folder(folder: Path | str, source: str = "") -> list[Evidence]:
    """The results in a folder of one's own.

    Args:
        folder: Of a sweep, a comparison or one run.
        source: What the folder is called in sentences; by default its name.

    Returns:
        A record per finished run.

    Raises:
        ValueError: If it has no results, or the task of a run is not registered here.
    """
    path = Path(folder)
    if (path / "result.json").exists():
        config = read_config(path)
        ended = finished(path, config)
        members = [] if ended is None else results(path.name, config, ended)
    else:
        members = read_results(path)
    members = [member for member in members if member.status != "failed"]
    if not members:
        raise ValueError(f"expected finished runs in {folder}, found none")
    runs = itertools.groupby(members, key=lambda member: member.run)
    return [_of_members(list(own), source or path.resolve().name) for _, own in runs]


def _of_members(members: Sequence[MemberResult], source: str) -> Evidence:
    """The record of a run, given all its members."""
    said, first = row(members), members[0]
    task = _task_of(first)
    metric, name = first.metric, tasks.name_of(task)
    best = [
        m for m in members if all(getattr(m.point, key) == x for key, x in said["best"].items())
    ]
    mean, std = mean_in(said, metric)
    steps = max(member.step or 0 for member in best)
    model = first.config["model"]
    sizes = {"d": model["d_model"], "n": model.get("d_state"), "layers": model.get("num_layers")}
    return Evidence(
        task=name,
        options=own_options(name, serial.to_dict(task)),
        demands=tuple(task.demands),
        length=task.seq_len,
        vocab_size=task.vocab_size,
        mixer=first.mixer,
        setting=", ".join(f"{key}={value}" for key, value in sizes.items() if value),
        mean=mean,
        std=std,
        trivial=_trivial(task),
        metric=metric,
        seeds=len(best),
        steps=steps,
        tokens=steps * first.config["batch_size"] * task.seq_len,
        num_params=first.num_params or 0,
        state_size=first.state_size or 0,
        source=source,
    )


def _task_of(member: MemberResult) -> Task:
    try:
        return serial.from_dict(Task, member.config["task"])  # type: ignore[type-abstract]
    except (ValueError, TypeError) as error:
        raise RunError(
            f"the task of the run {member.run} cannot be read here ({error}); import the module "
            "that registers it (--import)"
        ) from error


@functools.lru_cache(maxsize=64)
def _trivial(task: Task) -> float:
    """The trivial answer's score; the worst where its data are not on this machine."""
    try:
        return task.trivial().score
    except tasks.data.MissingDataError:
        return task.metric.worst


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
