r"""A run on disk: one program, its metrics, its checkpoints and its result in one folder.

::

    config.json        the TrainConfig; dsfjax.training.config.from_json reads it
    environment.json   versions, device, git state (storage/environment.py)
    metrics.jsonl      one line per evaluation and member that was training, in that order
    checkpoints/       the newest two, with the metrics up to them (storage/checkpoint.py)
    result.json        written last: a folder with it is finished
    failure.json       in its place in a sweep: why the run could not be finished

A run may be ended at any moment, by ``kill -9`` too: the same call continues from the last
checkpoint and ends with the same numbers. One process at a time has the folder. A result or
checkpoint that was cut short is set aside (:mod:`dsfjax.training.storage.files`). What is whole and
does not belong to the config, and a config that cannot be read, are errors, and nothing in the
folder is changed.

A line of ``metrics.jsonl`` is an object with ``step``, ``member`` (index), a value of each axis
(:data:`~dsfjax.training.config.AXES`; only two of them in older runs), ``train_loss`` and
``train_accuracy`` (means over the steps since the line before), ``eval_loss``, ``eval_accuracy``
(with the names of the task's metrics in place of the accuracy's, where it has others),
``seconds`` (wall time of these steps and the evaluation, all members together, compilation and
probes not included), ``tokens_per_second`` (training tokens of the members that trained, over
it), and, not in older runs, ``memory_bytes`` of a device and, where its peak is known, ``mfu``
(:mod:`dsfjax.training.meter`). With ``probe_every`` some have ``probe``
(:mod:`dsfjax.training.probes`). A member that has stopped writes no further lines.

``result.json`` has ``format``, ``members``, ``steps`` (taken by the program), ``num_params``,
``state_size`` (numbers that all layers carry at the end of a sequence), ``train_seconds``,
``tokens_per_second`` (of the steps that the members took, over ``train_seconds``),
``memory_bytes`` and ``mfu`` as in the lines,
``compile_seconds``, ``devices``, ``members_at_once``, ``checkpoint`` (path of the final one,
relative to the folder), and ``config`` (the fingerprint of the TrainConfig). Each of ``members``
has ``member``, the fields of :data:`~dsfjax.training.config.AXES`, ``status``, ``step`` (its
last), ``train_loss``,
``train_accuracy``, ``eval_loss`` and ``eval_accuracy`` there (or other metrics), and
``steps_to_90``: the first evaluated step with at least 90 % held-out accuracy, or null. The status
is "solved" (it reached ``stop_at``), "diverged" (a loss was not finite), "plateau" (``patience``
evaluations without a lower held-out loss), "finished" (it took all steps), or "stopped" (it was
still training when the run ended because another point of the grid had all its seeds solved).
Numbers that are not finite are null, in both files.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dsfjax import nn
from dsfjax.analysis import num_parameters, state_size
from dsfjax.tasks import ACCURACY
from dsfjax.training import devices, loop, probes, program
from dsfjax.training.compilation import budget, compiling, fit, template
from dsfjax.training.config import TrainConfig
from dsfjax.training.devices import Device, Layout, layout
from dsfjax.training.meter import Meter, meter
from dsfjax.training.program import NOT_YET, Carry
from dsfjax.training.storage import checkpoint, environment, files, record
from dsfjax.training.storage import folder as run_folder
from dsfjax.training.storage.folder import RunError, read_metrics
from dsfjax.training.storage.record import FORMAT, first_step, tokens_per_second

# One Model per config, as programs are told apart by the functions of their model.
_model = functools.lru_cache(maxsize=32)(nn.build)


class Listener:
    """Methods that the training thread calls as a run goes on; by default they do nothing."""

    def started(self, name: str, config: TrainConfig) -> None:
        """Hear of a run, which may have been finished before."""

    def compiling(self, name: str) -> None:
        """Hear that the program of a run is being compiled, after which it trains."""

    def restored(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Hear what a run has done before: it goes on after these lines, or is finished."""

    def compiled(self, name: str, where: Layout) -> None:
        """Hear that a run is compiled, and how its members are laid out."""

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Hear of a block that is done; ``lines`` are those of ``metrics.jsonl``."""

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Hear of a run that is complete, now or since before; ``result`` is ``result.json``."""

    def failed(self, name: str, reason: str) -> None:
        """Hear of a run of a sweep that could not be finished, now or before."""


class Resources(NamedTuple):
    """What a run may use. It decides how it is computed, not what: that is the config.

    Attributes:
        num_devices: How many devices of each process; None for all that JAX has.
        memory: Bytes on each device; None for 80 % of what it has.
        at_most: Members computed at once, at most; None for all that fit.
        quick_compile: Compile with few optimisations: for runs of seconds.
        sequence_shards: Devices that the steps of each sequence are cut over, a divisor of its
            length; each has the activations of its own steps alone.
        mfu: Measure the peak of devices of which none is declared, as of CPUs, to say which part of
            it the model uses; where it is declared that is said anyway.
    """

    num_devices: int | None = None
    memory: int | None = None
    at_most: int | None = None
    quick_compile: bool = False
    sequence_shards: int = 1
    mfu: bool = False

    def devices(self) -> Sequence[Device]:
        """The devices.

        Raises:
            ValueError: If there are fewer than asked for.
        """
        most = jax.local_device_count()
        if self.num_devices is not None and not 1 <= self.num_devices <= most:
            raise ValueError(f"expected 1 to {most} devices, got {self.num_devices}")
        of_process: dict[int, list[Device]] = {}
        for device in jax.devices():
            of_process.setdefault(device.process_index, []).append(device)
        return [device for own in of_process.values() for device in own[: self.num_devices]]


EVERYTHING = Resources()
"""All devices, and most of their memory."""


class Loaded(NamedTuple):
    """A finished run, read back.

    Attributes:
        config: Its config.
        environment: What it ran on.
        metrics: The lines of ``metrics.jsonl``.
        result: ``result.json``.
        members: How each member ended, from the three above.
        params: Final parameters, every leaf with a leading member axis.
    """

    config: TrainConfig
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    members: tuple[record.MemberResult, ...]
    params: PyTree


class Busy(Exception):
    """Another process is training in the folder of a run."""


def train(
    config: TrainConfig,
    run_dir: Path | str,
    *,
    name: str = "",
    listener: Listener | None = None,
    resources: Resources = EVERYTHING,
    wait: bool = True,
) -> dict[str, Any]:
    """Train a config in a folder, going on from its last checkpoint if it has one.

    Args:
        config: What to train.
        run_dir: Its folder; created if need be. A finished run is not run again.
        name: What to call it towards the listener; the mixer by default.
        listener: Is told of the progress.
        resources: What it may use.
        wait: Whether to wait while another process trains in the folder.

    Returns:
        The result, as in ``result.json``.

    Raises:
        Busy: If another process trains in the folder, and this one is not to wait.
        RunError: If the folder belongs to another config.
        ValueError: If the model cannot be built.
        MemoryShortage: If not one member fits into memory.
    """
    folder, name = Path(run_dir), name or config.model.mixer
    listener = listener or Listener()
    plan = program_of(config)  # fails on a model that cannot be built before anything is written
    with contextlib.ExitStack() as stack:
        taken = run_folder.take(folder, config, wait=wait)
        if not devices.agree(lambda: stack.enter_context(taken)):
            raise Busy(f"expected {folder} to be free, but another process is training in it")
        result = devices.agree(lambda: run_folder.finished(folder, config))
        listener.started(name, config)
        if result is None:
            listener.compiling(name)
            result = _run(config, plan, folder, name, listener, resources)
        elif devices.is_primary():
            listener.restored(name, read_metrics(folder))
        listener.finished(name, result)
        return result


def prepare(config: TrainConfig, run_dir: Path | str, resources: Resources = EVERYTHING) -> None:
    """Begin to compile what a run will need, unless it is finished; other threads go on with it.

    Args:
        config: What will be trained.
        run_dir: Its folder.
        resources: What it may use.
    """
    if not (Path(run_dir) / "result.json").exists():
        plan, devices = program_of(config), resources.devices()
        at_most, size = resources.at_most, config.batch_size
        where = layout(
            len(config.members),
            devices,
            at_most=at_most,
            batch_size=size,
            quick=resources.quick_compile,
            shards=resources.sequence_shards,
        )
        compiling(plan, where)


def _run(
    config: TrainConfig,
    plan: program.Program,
    folder: Path,
    name: str,
    listener: Listener,
    resources: Resources,
) -> dict[str, Any]:
    size = len(config.members)
    shapes = template(plan, size)
    lines, carry = _resume(folder, config, shapes)
    if lines:
        listener.restored(name, list(lines))
    used = resources.devices()
    memory = devices.agree(lambda: resources.memory or budget(used))
    where = fit(
        plan,
        size,
        used,
        memory=memory,
        at_most=resources.at_most,
        quick=resources.quick_compile,
        shards=resources.sequence_shards,
    )
    listener.compiled(name, where)
    compiled = compiling(plan, where).result()
    reading = meter(config, where, compiled.bytes, measure=resources.mfu)
    progress = None if carry is None else carry._replace(states=None)  # type: ignore[arg-type]
    blocks = loop.run(plan, program.members(config.members), config.steps, carry, where=where)
    while progress is None or not over(config, progress):
        block = next(blocks)
        progress = block.progress
        new = lines_of(config, block, reading)
        if config.probe_every and block.step % config.probe_every == 0:
            _probe(config, block, new)
        lines += new
        if devices.is_primary():
            files.append_lines(folder / "metrics.jsonl", new)
        due = (block.step // config.eval_every) % config.checkpoint_every == 0
        if due or over(config, progress):
            carry = block.carry()
            if devices.is_primary():
                place, owner = folder / "checkpoints", config.fingerprint
                checkpoint.save(place, block.step, carry, owner=owner, notes=lines)
        listener.evaluated(name, new)
    # Each process has times of its own.
    result = devices.agree(
        lambda: result_of(config, progress, lines, where, compiled.seconds, reading)
    )
    if devices.is_primary():
        files.write_json(folder / "result.json", result)
        (folder / "failure.json").unlink(missing_ok=True)  # of an earlier try
    return result


def _probe(config: TrainConfig, block: loop.Block, lines: list[dict[str, Any]]) -> None:
    """Put what a look inside the models finds into the lines of the probed members."""
    params = block.carry().states.judged
    for line in lines if devices.is_primary() else ():
        if line["member"] in probes.probed(config):
            own = jax.tree.map(lambda leaf, i=line["member"]: leaf[i], params)
            line["probe"] = probes.probe(config, own)


def _resume(folder: Path, config: TrainConfig, template: Carry) -> run_folder.Progress:
    """How far a run has come, in every process; the primary reads it from the folder."""
    found = []

    def read() -> dict[str, Any]:
        found.append(run_folder.progress(folder, config, template))
        about = environment.describe() | {"data": config.task.provenance()}
        files.write_json(folder / "environment.json", about)
        return {"lines": found[0].lines, "restored": found[0].carry is not None}

    told = devices.agree(read)
    carry = found[0].carry if found else None
    if told["restored"]:
        carry = devices.share(carry, template)
    return run_folder.Progress(told["lines"], carry)


def load(run_dir: Path | str) -> Loaded:
    """Read a finished run back.

    Args:
        run_dir: Its folder.

    Returns:
        Config, environment, metrics, result and final parameters.

    Raises:
        RunError: If the run is not finished, or its final checkpoint is damaged.
    """
    folder = Path(run_dir)
    if not (folder / "result.json").exists():
        raise RunError(f"expected a finished run in {folder}, found no result.json; train it")
    config = run_folder.read_config(folder)
    result = run_folder.finished(folder, config)
    if result is None:
        raise RunError(f"expected a finished run in {folder}, its result.json is damaged; train it")
    shapes = template(program_of(config), len(config.members))
    path = folder / result["checkpoint"]
    try:
        carry = checkpoint.read(path, shapes, owner=config.fingerprint).tree
    except checkpoint.CheckpointError as error:
        raise RunError(f"checkpoint {path}: {error}") from error
    about, metrics = files.read_json(folder / "environment.json"), read_metrics(folder)
    name = config.model.mixer
    members = record.results(name, config, result, metrics=metrics, environment=about)
    return Loaded(config, about, metrics, result, tuple(members), carry.states.judged)


def program_of(config: TrainConfig) -> program.Program:
    """The program that a config describes.

    Args:
        config: The config.

    Returns:
        A program; equal configs give programs that share a compilation.

    Raises:
        ValueError: If the model cannot be built.
    """
    return program.Program(
        model=_model(config.model),
        task=config.task,
        # Weight decay is a member's: configs that differ in it share a compilation.
        optimizer=dataclasses.replace(config.optimizer, weight_decay=0.0),
        batch_size=config.batch_size,
        block_steps=config.eval_every,
        eval_examples=config.eval_examples,
        stop_at=config.stop_at,
        patience=config.patience,
        shared_data=config.shared_data,
        train_examples=config.train_examples,
        accumulate=config.accumulate,
        own=program.own(config.members[0]),
    )


def over(config: TrainConfig, progress: Carry) -> bool:
    """Whether a run has nothing left to do.

    Args:
        config: The run's config.
        progress: Its state after a block, on the host.

    Returns:
        True once all steps are taken, all members have stopped, or (``stop_when="one_rate"``) all
        seeds of a point of the other axes are solved.
    """
    solved = np.asarray(progress.solved_at != NOT_YET).reshape(-1, len(config.seeds))
    one_rate = config.stop_when == "one_rate" and solved.all(axis=1).any()
    return bool(progress.step >= config.steps or not progress.active.any() or one_rate)


def lines_of(config: TrainConfig, block: loop.Block, reading: Meter) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` for a block.

    Args:
        config: The run's config.
        block: The block.
        reading: The meter of its devices.

    Returns:
        A line per member that trained in it.
    """
    active = np.flatnonzero(block.metrics.active).tolist()
    tokens = len(active) * config.eval_every * config.batch_size * config.task.seq_len
    rate = tokens / block.seconds
    read = reading.read(rate)
    return [
        {
            "step": block.step,
            "member": index,
            **config.members[index]._asdict(),
            **_numbers(block.metrics.train, "train", config, index),
            **_numbers(block.metrics.held_out, "eval", config, index),
            "seconds": block.seconds,
            "tokens_per_second": rate,
            **read,
        }
        for index in active
    ]


def result_of(
    config: TrainConfig,
    progress: Carry,
    lines: Sequence[Mapping[str, Any]],
    where: Layout,
    compile_seconds: float,
    reading: Meter,
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        config: The run's config.
        progress: Its final state, on the host.
        lines: All its metrics.
        where: On how many devices and how many members at once it was computed.
        compile_seconds: Wall time of the compilation.
        reading: The meter of its devices.

    Returns:
        JSON data.
    """
    model = _model(config.model)
    seconds = sum({line["step"]: line["seconds"] for line in lines}.values())
    steps = int(progress.step)
    metric = config.task.metric
    known = [(split, name) for split in ("train", "eval") for name in program.numbers(config.task)]
    members = []
    for index, point in enumerate(config.members):
        own = [line for line in lines if line["member"] == index]
        members.append(
            {
                "member": index,
                **point._asdict(),
                "status": _status(config, progress, index),
                "step": own[-1]["step"],
                **{f"{split}_{name}": own[-1][f"{split}_{name}"] for split, name in known},
                "steps_to_90": first_step(own, 0.9, metric) if metric == ACCURACY else None,
            }
        )
    rate = tokens_per_second(config, [member["step"] for member in members], seconds)
    return {
        "format": FORMAT,
        "config": config.fingerprint,
        "steps": steps,
        "num_params": num_parameters(model),
        "state_size": state_size(model, config.task.seq_len),
        "tokens_per_second": rate,
        **reading.read(rate),
        "train_seconds": seconds,
        "compile_seconds": compile_seconds,
        "devices": len(where.devices),
        "members_at_once": min(where.slice_size, where.num_members),
        "checkpoint": f"checkpoints/step_{steps:08d}",
        "members": members,
    }


def _status(config: TrainConfig, progress: Carry, index: int) -> str:
    for name in ("solved", "diverged", "plateau"):
        if getattr(progress, f"{name}_at")[index] != NOT_YET:
            return name
    return "finished" if progress.step >= config.steps else "stopped"


def _numbers(
    found: Mapping[str, Any], split: str, config: TrainConfig, index: int
) -> dict[str, float | None]:
    """The numbers of a member, None where one is not finite."""
    values = {name: float(found[name][index]) for name in program.numbers(config.task)}
    return {f"{split}_{k}": x if math.isfinite(x) else None for k, x in values.items()}
