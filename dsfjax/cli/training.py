"""``dsfjax train`` and ``dsfjax compare``."""

import hashlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from dsfjax import systems, tasks
from dsfjax._util import words
from dsfjax._util.limits import cores
from dsfjax.cli import analyze, options
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.cli.settings import from_file, given_by, mixer_options
from dsfjax.cli.usage import usage_errors, writable
from dsfjax.cost import num_parameters
from dsfjax.nn import pattern
from dsfjax.report import read_joint, render, render_joint
from dsfjax.training import (
    Listener,
    MemoryShortage,
    Resources,
    RunError,
    TrainConfig,
    compilation,
    presets,
    sweep,
    to_json,
    train,
)
from dsfjax.training.config import AXES
from dsfjax.training.devices import STEPS, layout, reserve
from dsfjax.training.meter import operations_per_token
from dsfjax.training.runs import program_of
from dsfjax.training.storage import record
from dsfjax.training.storage.record import row
from dsfjax.training.trackers import EventFiles, Together, WeightsAndBiases


def main(command: options.Train | options.Compare) -> int:
    """Train, print the table, and write the report of a comparison.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the options do not fit each other, before anything is compiled.
    """
    with usage_errors(ValueError, TypeError, ModuleNotFoundError):
        resources = resources_of(command)
        configs = plan(command)
        check(configs, resources)
        if command.estimate:
            console().print(estimates(configs, resources))
            return 0
        folder = writable(command.run_dir or folder_of(command, configs))
        if isinstance(command, options.Compare) and command.report is not None:
            writable(command.report)
        trackers = trackers_of(command, folder)
    with usage_errors(RunError, MemoryShortage), progress(console()) as shown:
        listener = Together(shown, *trackers)
        if isinstance(command, options.Train):
            ((name, config),) = configs.items()
            result = train(config, folder, listener=listener, resources=resources)
            rows = [row(record.results(name, config, result))]
        else:
            retry = command.retry_failed
            rows = sweep(
                configs, folder, listener=listener, resources=resources, retry_failed=retry
            )
    finish(rows, folder, command)
    if isinstance(command, options.Compare):
        return conclude(rows, folder, command)
    return 0


def plan(command: options.Train | options.Compare) -> dict[str, TrainConfig]:
    """The configs that a command line asks for.

    Args:
        command: The options.

    Returns:
        Mixer to config; mixer-task to config, if there are several tasks.

    Raises:
        ValueError: If a name is unknown or the options do not fit each other.
        TypeError: If a value has the wrong type.
    """
    if isinstance(command, options.Train):
        written = from_file(command, command.task)
        if command.mixer and command.layers:
            raise ValueError("expected --mixer or --layers, got both")
        mixer = command.mixer or "+".join(command.layers) or written.get("mixer", "")
        if not mixer:
            raise ValueError(f"expected --mixer, one of {', '.join(systems.names())}")
        mixer = pattern.canonical(mixer)
        own = mixer_options([mixer], command.mixer_option, written)
        preset = presets.get(command.preset, command.task)
        # A preset's grid of several values is for comparisons.
        first = {axis.field: preset.settings.get(axis.field, ())[:1] for axis in AXES}
        first = {name: values for name, values in first.items() if values}
        given = first | written | given_by(command)
        return presets.configs(command.preset, command.task, [mixer], given, own)
    if not command.task:
        raise ValueError(f"expected TASK, one or more of {', '.join(tasks.names())}")
    several, found = len(command.task) > 1, {}
    for task in command.task:
        written, mixers = from_file(command, task), command.mixers
        mixers = mixers or tuple(x for x in (written.get("mixer"),) if x)
        mixers = [pattern.canonical(x) for x in mixers or presets.get(command.preset, task).mixers]
        own = mixer_options(mixers, command.mixer_option, written)
        given = written | given_by(command)
        for mixer, config in presets.configs(command.preset, task, mixers, given, own).items():
            found[f"{mixer}-{task}" if several else mixer] = config
    return found


def resources_of(command: options.Training) -> Resources:
    """What a command may use; the first use of JAX, which then counts its devices.

    Args:
        command: The options.

    Returns:
        The resources.

    Raises:
        ValueError: If that is nothing.
    """
    reserve_devices(command.devices)
    if command.memory is not None and command.memory <= 0:
        raise ValueError(f"expected --memory > 0 GiB, got {command.memory:g}")
    memory = None if command.memory is None else math.ceil(command.memory * 2**30)
    return Resources(
        command.devices,
        memory,
        quick_compile=command.quick_compile,
        mfu=command.mfu,
        sequence_shards=command.sequence_shards,
    )


def estimates(configs: Mapping[str, TrainConfig], resources: Resources) -> Table:
    """What the programs will take, from their shapes alone.

    Args:
        configs: Name to config.
        resources: What they may use.

    Returns:
        A table with a row per program. Its memory is that of all members at once.
    """
    devices, shards = resources.devices(), resources.sequence_shards
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("program", no_wrap=True)
    for head in ("parameters", "flop per token", "members", "memory of a device"):
        table.add_column(head, justify="right")
    for name, config in configs.items():
        plan, members = program_of(config), len(config.members)
        where = layout(members, devices, batch_size=plan.part_size, shards=shards)
        table.add_row(
            name,
            words.count(num_parameters(plan.model)),
            words.count(operations_per_token(config.model, config.task)),
            str(members),
            words.binary(compilation.estimate(plan, where).total),
        )
    most = resources.memory or compilation.budget(devices)
    table.caption = f"{words.binary(most)} of a device may be used; more members take turns"
    return table


def trackers_of(command: options.Tracked, folder: Path) -> list[Listener]:
    """Who else is told of the evaluations.

    Args:
        command: The options.
        folder: The run directory.

    Returns:
        The listeners of ``--tensorboard`` and ``--wandb``.

    Raises:
        ModuleNotFoundError: If what they need is not installed.
    """
    found: list[Listener] = []
    if command.tensorboard:
        found.append(EventFiles(folder / "tensorboard"))
    if command.wandb is not None:
        found.append(WeightsAndBiases(command.wandb, folder))
    return found


def reserve_devices(number: int | None) -> None:
    """Let a CPU count as so many devices, before JAX is first used.

    Args:
        number: How many; None for one per core.

    Raises:
        ValueError: If it is less than one.
    """
    if number is not None and number < 1:
        raise ValueError(f"expected --devices >= 1, got {number}")
    reserve(cores() if number is None else number)


def check(configs: Mapping[str, TrainConfig], resources: Resources) -> None:
    """Refuse what cannot be run, before anything is compiled or written.

    Args:
        configs: The configs.
        resources: What they may use.

    Raises:
        ValueError: If a model cannot be built, there are too few devices, or they cannot divide
            a sequence.
        TypeError: If an option of an architecture has the wrong type.
    """
    used, shards = resources.devices(), resources.sequence_shards
    layout(1, used, shards=shards)
    for task in dict.fromkeys(config.task for config in configs.values()):
        for split in (tasks.TRAIN, tasks.HELD_OUT):
            task.arrays(split)  # a data set that is not there, or damaged, says so
        if task.seq_len % shards:
            near = [n for n in range(1, len(used) + 1) if task.seq_len % n == 0]
            raise ValueError(
                f"expected --sequence-shards to divide the {task.seq_len} steps of a sequence of "
                f"{task.title or type(task).__name__}, got {shards}; use one of {near}"
            )
    for config in configs.values():
        plan = program_of(config)
        if shards > 1:
            plan.model.over(STEPS)


def finish(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    command: options.Train | options.Compare | options.Sweep,
) -> None:
    """Print the table, unless it is the one over several tasks with which a report ends.

    Args:
        rows: A row per program.
        folder: The run directory.
        command: The options.
    """
    out = console()
    # Accuracies on different tasks are not to be sorted among each other.
    joint = read_joint(folder) if isinstance(command, options.Compare) else []
    if len(joint) < 2:
        out.print(render(rows))
    elif isinstance(command, options.Compare) and command.no_report:
        out.print(render_joint(joint))
    out.print(f"run directory: {folder}", soft_wrap=True)


def conclude(
    rows: Sequence[Mapping[str, Any]], folder: Path, command: options.Compare | options.Sweep
) -> int:
    """Write the report of what is finished, and say what is not.

    Args:
        rows: A row per program.
        folder: The run directory.
        command: The options.

    Returns:
        The exit code: 1 if a program failed.
    """
    failed = {one["mixer"]: one["reason"] for one in rows if one["status"] == "failed"}
    if not command.no_report and len(failed) < len(rows):
        analyze.report(folder, command.report)
    for name, reason in failed.items():
        print(f"dsfjax: {name} failed: {reason}; --retry-failed runs it again", file=sys.stderr)
    return 1 if failed else 0


def folder_of(command: options.Training, configs: Mapping[str, TrainConfig]) -> Path:
    """The run directory of a command that names none: another for every other config.

    Args:
        command: The options.
        configs: The configs they ask for.

    Returns:
        A folder under ``runs``.
    """
    name = next(iter(configs)) if isinstance(command, options.Train) else command.preset
    task = "-".join(command.task) if isinstance(command, options.Compare) else command.task
    return Path("runs") / f"{task}-{name}-{_digest(configs.values())}"


def _digest(configs: Iterable[TrainConfig]) -> str:
    text = "".join(to_json(config) for config in configs)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
