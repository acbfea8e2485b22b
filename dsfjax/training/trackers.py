"""Listeners that hand the evaluations of a run on to TensorBoard and to Weights & Biases.

Both write what ``metrics.jsonl`` has, which stays the truth. A run that is resumed goes back to its
last checkpoint, so some evaluations are made twice; `Listener.restored` says which lines are still
valid, and neither of the two writes a step twice:

* **TensorBoard**: the event files are made anew from these lines. So they are complete even where
  tracking was not asked for from the start, or where the run was finished before.
* **Weights & Biases** takes back nothing, so the last step that it was told is kept in the folder.
  What is computed again has the same bits and is not sent again.

Every member, so every learning rate and seed, is a run of its own there.
"""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsfjax.training.config import Member, TrainConfig
from dsfjax.training.devices import Layout
from dsfjax.training.optimizer import unit_schedule
from dsfjax.training.runs import Listener
from dsfjax.training.storage import files, serial
from dsfjax.training.storage.folder import by_step


class Together(Listener):
    """Tells several listeners, in order.

    Args:
        *listeners: The listeners.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def started(self, name: str, config: TrainConfig) -> None:
        """Tell all."""
        for one in self._listeners:
            one.started(name, config)

    def compiling(self, name: str) -> None:
        """Tell all."""
        for one in self._listeners:
            one.compiling(name)

    def restored(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Tell all."""
        for one in self._listeners:
            one.restored(name, lines)

    def compiled(self, name: str, where: Layout) -> None:
        """Tell all."""
        for one in self._listeners:
            one.compiled(name, where)

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Tell all."""
        for one in self._listeners:
            one.evaluated(name, lines)

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Tell all."""
        for one in self._listeners:
            one.finished(name, result)

    def failed(self, name: str, reason: str) -> None:
        """Tell all."""
        for one in self._listeners:
            one.failed(name, reason)


def scalars(config: TrainConfig, line: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation, under the names that they have in TensorBoard and W&B.

    Args:
        config: The config of the run.
        line: A line of ``metrics.jsonl``.

    Returns:
        ``train/loss``, ``eval/loss``, both for each metric, ``learning_rate`` (of the last step,
        so the schedule is in it), ``tokens_per_second``, and ``mfu`` and ``memory_bytes`` where the
        run knows them. Numbers that were not finite are absent.

    Examples:
        >>> from dsfjax import nn, tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=32, seq_len=16)
        >>> config = TrainConfig(task, nn.ModelConfig("ssd", vocab_size=32), steps=2, eval_every=1)
        >>> line = {"step": 1, "learning_rate": 0.5, "eval_loss": 2.0, "train_loss": None}
        >>> scalars(config, line)
        {'eval/loss': 2.0, 'learning_rate': 0.5}
    """
    found = {
        f"{split}/{name[len(split) + 1 :]}": value
        for split in ("train", "eval")
        for name, value in line.items()
        if name.startswith(f"{split}_")
    }
    schedule = unit_schedule(config.optimizer, config.steps)
    found["learning_rate"] = line["learning_rate"] * float(schedule(line["step"] - 1))
    found |= {name: line.get(name) for name in ("tokens_per_second", "mfu", "memory_bytes")}
    return {name: float(value) for name, value in found.items() if value is not None}


def label(config: TrainConfig, index: int) -> str:
    """What a member is called: its learning rate and seed, and what else is varied.

    Args:
        config: The config of the run.
        index: Index of the member.

    Returns:
        A name for a person, which is also that of a folder.

    Examples:
        >>> from dsfjax import nn, tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=32, seq_len=16)
        >>> model = nn.ModelConfig("ssd", vocab_size=32)
        >>> label(TrainConfig(task, model, seeds=(3,), learning_rates=(1e-3,)), 0)
        'learning_rate=0.001,seed=3'
    """
    point, always = config.members[index]._asdict(), ("learning_rate", "seed")
    varied = {
        name
        for name in Member._fields
        if len({getattr(member, name) for member in config.members}) > 1
    }
    return ",".join(f"{k}={v:g}" for k, v in point.items() if k in always or k in varied)


class EventFiles(Listener):
    """Writes TensorBoard's event files, a folder per run and member.

    A file is complete after every evaluation, also where the process is killed after it.

    Args:
        folder: Where they go: ``folder/NAME OF THE RUN/MEMBER``. ``tensorboard --logdir`` reads it.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_missing("TensorBoard")) from error
        self._record: Any = RecordWriter
        self._event: Any = event_pb2
        self._summary: Any = summary_pb2.Summary  # type: ignore[attr-defined]
        self._folder = Path(folder)
        self._configs: dict[str, TrainConfig] = {}
        self._paths: dict[str, list[Path]] = {}
        self._clocks: dict[str, float] = {}

    def started(self, name: str, config: TrainConfig) -> None:
        """Begin the files of a run; older ones of it are removed."""
        self._configs[name], now = config, time.time()
        self._paths[name], self._clocks[name] = [], now
        for index in range(len(config.members)):
            place = self._folder / name / label(config, index)
            place.mkdir(parents=True, exist_ok=True)
            for old in place.glob("events.out.tfevents.*"):
                old.unlink()
            path = place / f"events.out.tfevents.{time.time_ns()}.dsfjax"
            self._paths[name].append(path)
            self._append(path, self._event.Event(wall_time=now, file_version="brain.Event:2"))
            # A TensorBoard that is running forgets what it has read of the older ones.
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._append(path, self._event.Event(wall_time=now, session_log=start))

    def restored(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Write what the run has done before."""
        # The files' clock is that of training: an older part lies as far back as it took.
        seconds = {line["step"]: line["seconds"] for line in lines}
        self._clocks[name] = time.time() - sum(seconds.values())
        for block in by_step(lines):
            self.evaluated(name, block)

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Write an evaluation."""
        self._clocks[name] += lines[0]["seconds"]
        for line in lines:
            found = scalars(self._configs[name], line)
            values = [self._summary.Value(tag=tag, simple_value=x) for tag, x in found.items()]
            event = self._event.Event(
                wall_time=self._clocks[name], step=line["step"], summary=self._summary(value=values)
            )
            self._append(self._paths[name][line["member"]], event)

    def _append(self, path: Path, event: Any) -> None:
        with path.open("ab") as file:
            self._record(file).write(event.SerializeToString())


class WeightsAndBiases(Listener):
    """Sends evaluations to Weights & Biases: a W&B run per member, the members of a run a group.

    With ``WANDB_MODE=offline`` W&B writes them into the folder, for ``wandb sync``.

    Args:
        project: The project's name.
        folder: Where W&B writes, and where it is kept which steps it has.

    Raises:
        ModuleNotFoundError: If ``wandb`` is not installed.
    """

    def __init__(self, project: str, folder: Path | str) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_missing("Weights & Biases")) from error
        self._init: Callable[..., Any] = wandb.init
        self._project, self._folder = project, Path(folder)
        self._configs: dict[str, TrainConfig] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, list[Any]] = {}

    def started(self, name: str, config: TrainConfig) -> None:
        """Remember the config, and find out what W&B has of the run."""
        self._configs[name] = config
        try:
            told = files.read_json(self._state(name))
        except (OSError, ValueError):
            told = None
        if not told or told["config"] != config.fingerprint:
            told = {"config": config.fingerprint, "id": uuid.uuid4().hex[:8], "step": 0}
        self._told[name] = told

    def restored(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Send what the run has done before and W&B does not have."""
        for block in by_step(lines):
            self.evaluated(name, block)

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Send an evaluation, unless W&B has it."""
        told, step = self._told[name], lines[0]["step"]
        if step <= told["step"]:
            return
        if name not in self._runs:  # not earlier: a finished run has nothing to say
            self._runs[name] = self._begin(name)
        for line in lines:
            self._runs[name][line["member"]].log(scalars(self._configs[name], line), step=step)
        told["step"] = step
        files.write_json(self._state(name), told)

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """End the runs, with how each member ended."""
        for run, member in zip(self._runs.pop(name, ()), result["members"], strict=False):
            run.summary.update(member)
            run.finish()

    def failed(self, name: str, reason: str) -> None:
        """End the runs as failed."""
        for run in self._runs.pop(name, ()):
            run.summary.update({"status": "failed", "reason": reason})
            run.finish(exit_code=1)

    def _begin(self, name: str) -> list[Any]:
        config, found = self._configs[name], []
        whole = serial.to_dict(config)
        for index, point in enumerate(config.members):
            one = self._init(
                project=self._project,
                group=name,
                name=f"{name} {label(config, index)}",
                id=f"{self._told[name]['id']}-{index}",
                config=whole | point._asdict(),
                dir=str(self._folder),
                resume="allow",
                reinit="create_new",
            )
            found.append(one)
        return found

    def _state(self, name: str) -> Path:
        place = self._folder / "wandb"
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{name}.json"


def _missing(what: str) -> str:
    return f"expected {what}, which is not installed: pip install 'dsfjax[tracking]'"
