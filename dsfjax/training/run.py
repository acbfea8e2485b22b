r"""A run on disk: one program, its metrics, its checkpoints and its result in one folder.

::

    config.json        the TrainConfig; dsfjax.training.config.from_json reads it
    environment.json   versions, device, git state (dsfjax.training.environment)
    metrics.jsonl      one line per evaluation and member that was training, in that order
    checkpoints/       the newest two, with the metrics up to them (dsfjax.training.checkpoint)
    result.json        written last: a folder with it is finished
    failure.json       in its place in a sweep: why the run could not be finished

A run may be ended at any moment, by ``kill -9`` too: the same call goes on from the last checkpoint
and ends with the same numbers. One process at a time has the folder. A result or checkpoint that
was cut short is set aside (:mod:`dsfjax.training.files`). What is whole and does not belong to the
config, and a config that cannot be read, are errors, and nothing in the folder is changed.

A line of ``metrics.jsonl`` is an object with ``step``, ``member`` (index), ``learning_rate``,
``seed``, ``train_loss`` and ``train_accuracy`` (means over the steps since the line before),
``eval_loss``, ``eval_accuracy``, ``seconds`` (wall time of these steps and the evaluation, all
members together, compilation and probes not included) and ``tokens_per_second`` (training tokens
of the members that trained, over it). With ``probe_every`` some have ``probe``
(:mod:`dsfjax.training.probes`). A member that has stopped writes no further lines.

``result.json`` has ``format``, ``members``, ``steps`` (taken by the program), ``num_params``,
``state_size`` (numbers that all layers carry at the end of a sequence), ``train_seconds``,
``tokens_per_second`` (of the steps that the members took, over ``train_seconds``),
``compile_seconds``, ``devices``, ``members_at_once``, ``checkpoint`` (path of the final one,
relative to the folder), and ``config`` (the fingerprint of the TrainConfig). Each of ``members``
has ``member``, the fields of :class:`~dsfjax.training.program.Member`, ``status``, ``step`` (its
last), ``train_loss``,
``train_accuracy``, ``eval_loss`` and ``eval_accuracy`` there, and ``steps_to_90``: the first
evaluated step with at least 90 % held-out accuracy, or null. The status is "solved" (it reached
``stop_at``), "diverged" (a loss was not finite), "plateau" (``patience`` evaluations without a
lower held-out loss), "finished" (it took all steps), or "stopped" (it was still training when the
run ended because another point of the grid had all its seeds solved). Numbers that are not finite
are null, in both files.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from dsfjax import nn
from dsfjax.training import checkpoint, environment, files, hosts, loop, probes, program, record
from dsfjax.training import folder as run_folder
from dsfjax.training.compilation import begin, compile_program, template
from dsfjax.training.config import TrainConfig
from dsfjax.training.folder import RunError, read_metrics
from dsfjax.training.layout import Device, Layout, layout
from dsfjax.training.memory import budget, fit

# One Model per config, as programs are told apart by the functions of their model.
_model = functools.lru_cache(maxsize=32)(nn.build)


class Listener:
    """Is told how a run goes on, on the thread that trains; this one does nothing with it."""

    def started(self, name: str, config: TrainConfig) -> None:
        """Hear that a run begins: it compiles, then trains."""

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
    """

    num_devices: int | None = None
    memory: int | None = None
    at_most: int | None = None
    quick_compile: bool = False

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
        params: Final parameters, every leaf with a leading member axis.
    """

    config: TrainConfig
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    params: PyTree


def train(
    config: TrainConfig,
    run_dir: Path | str,
    *,
    name: str = "",
    listener: Listener | None = None,
    resources: Resources = EVERYTHING,
) -> dict[str, Any]:
    """Train a config in a folder, going on from its last checkpoint if it has one.

    While another process trains in the folder, this one waits for it.

    Args:
        config: What to train.
        run_dir: Its folder; created if need be. A finished run is not run again.
        name: What to call it towards the listener; the mixer by default.
        listener: Is told of the progress.
        resources: What it may use.

    Returns:
        The result, as in ``result.json``.

    Raises:
        RunError: If the folder belongs to another config.
        ValueError: If the model cannot be built.
        MemoryShortage: If not one member fits into memory.
    """
    result = attempt(config, run_dir, name=name, listener=listener, resources=resources, wait=True)
    assert result is not None
    return result


def attempt(
    config: TrainConfig,
    run_dir: Path | str,
    *,
    name: str = "",
    listener: Listener | None = None,
    resources: Resources = EVERYTHING,
    wait: bool = False,
) -> dict[str, Any] | None:
    """:func:`train`, unless another process is training in the folder.

    Args:
        config: What to train.
        run_dir: Its folder.
        name: What to call it towards the listener; the mixer by default.
        listener: Is told of the progress.
        resources: What it may use.
        wait: Whether to wait for the other process.

    Returns:
        The result, or None if another process has the folder.

    Raises:
        RunError: If the folder belongs to another config.
        ValueError: If the model cannot be built.
        MemoryShortage: If not one member fits into memory.
    """
    folder, name = Path(run_dir), name or config.model.mixer
    listener = listener or Listener()
    plan = program_of(config)  # fails on a model that cannot be built before anything is written
    with contextlib.ExitStack() as stack:
        taken = run_folder.take(folder, config, wait=wait)
        if not hosts.agree(lambda: stack.enter_context(taken)):
            return None
        result = hosts.agree(lambda: run_folder.finished(folder, config))
        listener.started(name, config)
        if result is None:
            result = _run(config, plan, folder, name, listener, resources)
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
        )
        begin(plan, where, dropout=bool(config.dropouts))


def _run(
    config: TrainConfig,
    plan: program.Program,
    folder: Path,
    name: str,
    listener: Listener,
    resources: Resources,
) -> dict[str, Any]:
    size, dropout = len(config.members), bool(config.dropouts)
    shapes = template(plan, size, dropout=dropout)
    lines, carry = _resume(folder, config, shapes)
    devices = resources.devices()
    memory = hosts.agree(lambda: resources.memory or budget(devices))
    where = fit(
        plan,
        size,
        devices,
        memory=memory,
        at_most=resources.at_most,
        dropout=dropout,
        quick=resources.quick_compile,
    )
    listener.compiled(name, where)
    progress = None if carry is None else carry._replace(states=None)  # type: ignore[arg-type]
    blocks = loop.run(plan, program.members(config.members), config.steps, carry, where=where)
    while progress is None or not record.over(config, progress):
        block = next(blocks)
        progress = block.progress
        new = record.lines(config, block)
        if config.probe_every and block.step % config.probe_every == 0:
            _probe(config, block, new)
        lines += new
        if hosts.is_primary():
            files.append_lines(folder / "metrics.jsonl", new)
        due = (block.step // config.eval_every) % config.checkpoint_every == 0
        if due or record.over(config, progress):
            carry = block.carry()
            if hosts.is_primary():
                place, owner = folder / "checkpoints", config.fingerprint
                checkpoint.save(place, block.step, carry, owner=owner, notes=lines)
        listener.evaluated(name, new)
    seconds = compile_program(plan, where, dropout=dropout).seconds
    # Each process has times of its own.
    result = hosts.agree(lambda: record.result(config, progress, lines, where, seconds))
    if hosts.is_primary():
        files.write_json(folder / "result.json", result)
        (folder / "failure.json").unlink(missing_ok=True)  # of an earlier attempt
    return result


def _probe(config: TrainConfig, block: loop.Block, lines: list[dict[str, Any]]) -> None:
    """Put what a look inside the models finds into the lines of the probed members."""
    params = block.carry().states.params
    for line in lines if hosts.is_primary() else ():
        if line["member"] in probes.probed(config):
            own = jax.tree.map(lambda leaf, i=line["member"]: leaf[i], params)
            line["probe"] = probes.probe(config, own)


def _resume(folder: Path, config: TrainConfig, template: program.Carry) -> run_folder.Progress:
    """How far a run has come, in every process; the primary reads it from the folder."""
    found = []

    def read() -> dict[str, Any]:
        found.append(run_folder.progress(folder, config, template))
        files.write_json(folder / "environment.json", environment.describe())
        return {"lines": found[0].lines, "restored": found[0].carry is not None}

    told = hosts.agree(read)
    carry = found[0].carry if found else None
    if told["restored"]:
        carry = hosts.share(carry, template)
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
    dropout = bool(config.dropouts)
    shapes = template(program_of(config), len(config.members), dropout=dropout)
    path = folder / result["checkpoint"]
    try:
        carry = checkpoint.read(path, shapes, owner=config.fingerprint).tree
    except checkpoint.CheckpointError as error:
        raise RunError(f"checkpoint {path}: {error}") from error
    return Loaded(
        config,
        files.read_json(folder / "environment.json"),
        read_metrics(folder),
        result,
        carry.states.params,
    )


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
    )
