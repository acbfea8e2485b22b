"""``dsfjax sweep``."""

import functools
import itertools
from typing import Any

import jax

from dsfjax import tasks
from dsfjax._util.names import choose
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.cli.settings import from_file, given_by, mixer_options
from dsfjax.cli.training import (
    check,
    conclude,
    estimates,
    finish,
    folder_of,
    resources_of,
    trackers_of,
)
from dsfjax.cli.usage import usage_errors, writable
from dsfjax.nn import pattern
from dsfjax.training import Listener, MemoryShortage, RunError, TrainConfig, devices, presets, sweep
from dsfjax.training.sweeps import LAUNCHERS
from dsfjax.training.trackers import Together

SHAPES = (
    "d_model",
    "num_layers",
    "d_state",
    "num_heads",
)
"""Axes of every model that change a shape: another value is another program."""


def main(command: options.Sweep) -> int:
    """Run the sweep, print the table, and write the report.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the options do not fit each other, before anything is compiled.
    """
    with usage_errors(ValueError, TypeError):
        choose("launcher", command.launcher, (*LAUNCHERS, "hosts"))
        resources = resources_of(command)
        if command.launcher == "hosts":
            # Without arguments it asks the cluster: SLURM, Open MPI, Kubernetes, a TPU pod.
            address, num, index = command.process or (None, None, None)
            if address is not None and num is not None and index is not None:
                if not address.rpartition(":")[2].isdigit() or not 0 <= index < num:
                    raise ValueError(
                        "expected --process HOST:PORT NUM INDEX with INDEX below NUM, got "
                        f"{address} {num} {index}"
                    )
            jax.distributed.initialize(address, num, index)
        elif command.process is not None:
            raise ValueError("expected --process with --launcher hosts only")
        configs = plan(command)
        check(configs, resources)
        if command.estimate:
            if devices.is_primary():
                console().print(estimates(configs, resources))
            return 0
        folder = writable(command.run_dir or folder_of(command, configs))
        if command.report is not None:
            writable(command.report)
    launcher = LAUNCHERS["here" if command.launcher == "hosts" else command.launcher]
    with usage_errors(ModuleNotFoundError):
        trackers = trackers_of(command, folder) if devices.is_primary() else []
    run = functools.partial(
        sweep,
        configs,
        folder,
        resources=resources,
        launcher=launcher,
        retry_failed=command.retry_failed,
    )
    if not devices.is_primary():
        run(listener=Listener())
        return 0
    with (
        usage_errors(RunError, MemoryShortage, ModuleNotFoundError),
        progress(console()) as shown,
    ):
        rows = run(listener=Together(shown, *trackers))
    finish(rows, folder, command)
    return conclude(rows, folder, command)


def plan(command: options.Sweep) -> dict[str, TrainConfig]:
    """The configs that a command line asks for.

    Args:
        command: The options.

    Returns:
        Name to config. A name has the mixer, what varies, and the config's fingerprint, so that
        other sweeps can go into the same folder.

    Raises:
        ValueError: If a name is unknown or the options do not fit each other.
        TypeError: If a value has the wrong type.
    """
    preset = presets.get(command.preset, command.task)
    written = from_file(command, command.task)
    mixers = command.mixers or tuple(x for x in (written.get("mixer"),) if x) or preset.mixers
    mixers = [pattern.canonical(mixer) for mixer in mixers]
    options_of = mixer_options(mixers, command.mixer_option, written)
    given = given_by(command)
    # A task's whole numbers are the first axes, as they are the first that a name says.
    sizes = [name for name in tasks.options(command.task) if isinstance(given.get(name), tuple)]
    names = (*sizes, *(name for name in SHAPES if name not in sizes))
    axes: dict[str, tuple[Any, ...]] = {name: given.pop(name, (None,)) for name in names}
    for mixer, own in options_of.items():
        fixed = {path.rpartition(".")[2] for path, _ in own["options"]}
        if twice := [name for name in axes if len(axes[name]) > 1 and name in fixed]:
            raise ValueError(
                f"expected {twice[0]} of {mixer} from --{twice[0].replace('_', '-')} or from "
                "--mixer-option, got several values and one"
            )
    found = {}
    for mixer in mixers:
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            own = {name: value for name, value in point.items() if value is not None}
            varying = [f"{name}{value}" for name, value in own.items() if len(axes[name]) > 1]
            settings = written | given | own
            (new,) = presets.configs(
                command.preset, command.task, [mixer], settings, options_of
            ).values()
            found["-".join([mixer, *varying, new.fingerprint])] = new
    return found
