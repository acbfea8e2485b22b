"""``dsfjax train`` and ``dsfjax compare``."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsfjax import report, systems
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.cli.usage import usage_errors
from dsfjax.report.table import render
from dsfjax.training import RunError, TrainConfig, presets, run, to_json, train
from dsfjax.training.choice import choose
from dsfjax.training.comparison import compare, row

TASKS = ("mqar",)


def main(command: options.Train | options.Compare) -> int:
    """Train, print the table, and write the report if one is wanted.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the options do not fit each other, before anything is compiled.
    """
    out = console()
    with usage_errors(ValueError, TypeError):
        configs = plan(command)
        for config in configs.values():
            run.program_of(config)
    folder = command.run_dir or folder_of(command, configs)
    with usage_errors(RunError), progress(out) as listener:
        if isinstance(command, options.Train):
            ((name, config),) = configs.items()
            rows = [row(name, train(config, folder, listener=listener))]
        else:
            rows = compare(configs, folder, listener=listener)
    out.print(render(rows))
    out.print(f"run directory: {folder}", soft_wrap=True)
    if isinstance(command, options.Compare) and command.report is not None:
        page = report.write(folder, command.report)
        out.print(f"report: {page}", soft_wrap=True)
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
    for mixer in mixers:
        choose("mixer", mixer, systems.names())
    if len(set(mixers)) != len(mixers):
        raise ValueError(f"expected distinct mixers, got {', '.join(mixers)}")
    return {
        mixer: _override(config, command, rates, seeds)
        for mixer, config in presets.configs(preset, mixers).items()
    }


def _override(
    config: TrainConfig,
    command: options.Training,
    rates: tuple[float, ...],
    seeds: tuple[int, ...],
) -> TrainConfig:
    """Replace what the command line gives, wherever in the config a field has that name."""
    given = {k: v for k, v in dataclasses.asdict(command).items() if v is not None}
    given |= {"learning_rates": rates, "seeds": seeds}
    task = dataclasses.replace(config.task, **_fields_of(config.task, given))
    model_fields = _fields_of(config.model, given | {"mixer": config.model.mixer})
    model = dataclasses.replace(config.model, **model_fields)
    if model.max_length == config.task.seq_len:
        # Learned positions for the task's sequences, not for a length of their own.
        model = dataclasses.replace(model, max_length=task.seq_len)
    optimizer = dataclasses.replace(config.optimizer, **_fields_of(config.optimizer, given))
    top = _fields_of(config, given) | {"task": task, "model": model, "optimizer": optimizer}
    return dataclasses.replace(config, **top)


def _fields_of(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in dataclasses.fields(config) if f.name in given}


def folder_of(command: options.Training, configs: Mapping[str, TrainConfig]) -> Path:
    """The run directory of a command that names none: another for every other config.

    Args:
        command: The options.
        configs: The configs they ask for.

    Returns:
        A folder under ``runs``.
    """
    text = "".join(to_json(config) for config in configs.values())
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = next(iter(configs)) if isinstance(command, options.Train) else command.preset
    return Path("runs") / f"{command.task}-{name}-{digest}"
