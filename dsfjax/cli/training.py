"""``dsfjax train`` and ``dsfjax compare``."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsfjax import systems
from dsfjax._util.limits import cores
from dsfjax._util.names import choose
from dsfjax.cli import analyze, options
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.cli.usage import usage_errors, writable
from dsfjax.report.table import render
from dsfjax.training import (
    MemoryShortage,
    Resources,
    RunError,
    TrainConfig,
    presets,
    run,
    sweep,
    to_json,
    train,
)
from dsfjax.training.comparison import row
from dsfjax.training.layout import reserve

TASKS = ("mqar",)
DECAY = ("all", "matrices")
"""What weight decay may shrink: every parameter, or those that a model labels "decay"."""


def main(command: options.Train | options.Compare) -> int:
    """Train, print the table, and write the report of a comparison.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the options do not fit each other, before anything is compiled.
    """
    with usage_errors(ValueError, TypeError):
        resources = resources_of(command)
        configs = plan(command)
        check(configs, resources)
        folder = writable(command.run_dir or folder_of(command, configs))
        if isinstance(command, options.Compare) and command.report is not None:
            writable(command.report)
    with usage_errors(RunError, MemoryShortage), progress(console()) as listener:
        if isinstance(command, options.Train):
            ((name, config),) = configs.items()
            result = train(config, folder, listener=listener, resources=resources)
            rows = [row(name, result)]
        else:
            rows = sweep(configs, folder, listener=listener, resources=resources)
    finish(rows, folder)
    if isinstance(command, options.Compare) and not command.no_report:
        analyze.report(folder, command.report)
    return 0


def plan(command: options.Train | options.Compare) -> dict[str, TrainConfig]:
    """The configs that a command line asks for.

    Args:
        command: The options.

    Returns:
        Mixer to config.

    Raises:
        ValueError: If a name is unknown or the options do not fit each other.
        TypeError: If a value has the wrong type.
    """
    choose("task", command.task, TASKS)
    preset = presets.get(command.preset)
    if isinstance(command, options.Train):
        if not command.mixer:
            raise ValueError(f"expected --mixer, one of {', '.join(systems.names())}")
        mixers: tuple[str, ...] = (command.mixer,)
        rates = preset.base.learning_rates[:1] if command.lr is None else (command.lr,)
        seeds: tuple[int, ...] = (command.seed,)
    else:
        mixers = command.mixers or preset.mixers
        rates = command.lrs or preset.base.learning_rates
        seeds = command.seeds or preset.base.seeds
    check_mixers(mixers)
    given = {k: v for k, v in dataclasses.asdict(command).items() if v is not None}
    given |= {"learning_rates": rates, "seeds": seeds}
    return {
        mixer: override(config, given) for mixer, config in presets.configs(preset, mixers).items()
    }


def check_mixers(mixers: Sequence[str]) -> None:
    """Refuse mixers that do not exist.

    Args:
        mixers: Names.

    Raises:
        ValueError: If there is such a one.
    """
    for mixer in mixers:
        choose("mixer", mixer, systems.names())


def override(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Replace what is given, wherever in the config a field has that name.

    Args:
        config: The config.
        given: Field to value; ``mixer`` is the config's own, ``decay`` ("all" or "matrices") says
            what ``decay_all`` is, and other names are passed over.

    Returns:
        The new config.

    Raises:
        ValueError: If the values do not fit together.
        TypeError: If one has the wrong type.
    """
    if "decay" in given:
        choose("decay", given["decay"], DECAY)
        given = {**given, "decay_all": given["decay"] == "all"}
    task = dataclasses.replace(config.task, **_fields_of(config.task, given))
    model_fields = _fields_of(config.model, {**given, "mixer": config.model.mixer})
    model = dataclasses.replace(config.model, **model_fields)
    if "max_length" not in given and config.model.max_length == config.task.seq_len:
        # Learned positions for the task's sequences, not for a length of their own.
        model = dataclasses.replace(model, max_length=task.seq_len)
    optimizer = dataclasses.replace(config.optimizer, **_fields_of(config.optimizer, given))
    top = _fields_of(config, given) | {"task": task, "model": model, "optimizer": optimizer}
    return dataclasses.replace(config, **top)


def _fields_of(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in dataclasses.fields(config) if f.name in given}


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
    return Resources(command.devices, memory)


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
        ValueError: If a model cannot be built, or there are too few devices.
        TypeError: If an option of an architecture has the wrong type.
    """
    resources.devices()
    for config in configs.values():
        run.program_of(config)


def finish(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print the table.

    Args:
        rows: The rows of ``compare.json``.
        folder: The run directory.
    """
    out = console()
    out.print(render(rows))
    out.print(f"run directory: {folder}", soft_wrap=True)


def folder_of(command: options.Training, configs: Mapping[str, TrainConfig]) -> Path:
    """The run directory of a command that names none: another for every other config.

    Args:
        command: The options.
        configs: The configs they ask for.

    Returns:
        A folder under ``runs``.
    """
    name = next(iter(configs)) if isinstance(command, options.Train) else command.preset
    return Path("runs") / f"{command.task}-{name}-{_digest(configs.values())}"


def _digest(configs: Iterable[TrainConfig]) -> str:
    text = "".join(to_json(config) for config in configs)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
