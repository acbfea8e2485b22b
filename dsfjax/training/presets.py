"""Sizes as data: what all tasks share here, and with each task its own.

"demo" and "smoke" are for every task. "paper" is a task's own (`dsfjax.tasks.published`).
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsfjax import tasks
from dsfjax._util.names import choose
from dsfjax.nn import ModelConfig, pattern
from dsfjax.tasks import Preset
from dsfjax.training.config import TrainConfig, fitted
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.storage import serial

TABLES = ("task", "model", "optimizer")
"""Parts of a `TrainConfig` that are tables of their own in a file."""
PAPER_MIXERS = (
    "softmax_attention",
    "linear_attention",
    "normalized_attention",
    "s6",
    "ssd",
    "qlstm",
    "qlstm_reversed",
    "rg_lru",
)

PRESETS = {
    "demo": Preset(
        about="the paper's mixers on small sizes: minutes on a laptop",
        mixers=PAPER_MIXERS,
        settings={
            # With the short convolutions of practice every mixer sees the token before, without
            # which the recall of a value takes many times as many steps to be found.
            "block": "mamba",
            "surroundings": "practice",
            "d_model": 32,
            # With the convolutions one layer is enough for recall, and compiles in half the time.
            "num_layers": 1,
            "schedule": "cosine",
            "warmup_steps": 50,
            "batch_size": 32,
            "steps": 400,
            "eval_every": 100,
            "eval_examples": 512,
            "seeds": (0, 1),
            "learning_rates": (2e-3, 5e-3),
            "stop_when": "one_rate",
        },
        # A state of the size of linear and normalized attention's, half of its own default.
        own={"ssd": {"d_state": 32}},
    ),
    "smoke": Preset(
        about="two tiny mixers for a few steps: seconds, and learns nothing",
        mixers=("linear_attention", "ssd"),
        settings={
            "block": "mamba",
            "d_model": 16,
            "num_layers": 1,
            "schedule": "cosine",
            "batch_size": 8,
            "steps": 24,
            "eval_every": 4,
            "eval_examples": 16,
            "seeds": (0, 1),
            "learning_rates": (1e-3, 1e-2),
            "checkpoint_every": 1,
        },
    ),
}
"""Name to what all tasks share; a task's own preset of that name has priority."""


def names(task: str) -> tuple[str, ...]:
    """Names of the presets of a task: those that all tasks share, and more of its own.

    Args:
        task: Name of the task.

    Examples:
        >>> names(tasks.names()[0])[:2]
        ('demo', 'smoke')
    """
    return tuple(dict.fromkeys((*PRESETS, *tasks.kind(task).presets)))


def get(name: str, task: str) -> Preset:
    """A preset of a task by name.

    Args:
        name: One of `names`.
        task: Name of the task.

    Returns:
        The preset, with the task's own settings in place of those that all tasks share.

    Raises:
        ValueError: If there is no preset or task of that name; the nearest is named.

    Examples:
        >>> get("smoke", tasks.names()[0]).mixers
        ('linear_attention', 'ssd')
    """
    choose("preset", name, names(task))
    shared = PRESETS.get(name, Preset())
    own = tasks.kind(task).presets.get(name, Preset())
    return Preset(
        own.about or shared.about,
        {**shared.settings, **own.settings},
        own.mixers or shared.mixers or PAPER_MIXERS,
        {**shared.own, **own.own},
    )


def configs(
    preset: str,
    task: str,
    mixers: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, TrainConfig]:
    """A config for each mixer of a preset.

    Args:
        preset: Name of the preset.
        task: Name of the task.
        mixers: The mixers to take, which need not be the preset's own; by default those.
        given: Further settings, which have priority.
        own: Mixer to the settings in which it differs, which have priority over these.

    Returns:
        Mixer to config, in the order given.

    Raises:
        ValueError: If a name is unknown, or the settings do not fit together.
        TypeError: If one has the wrong type.

    Examples:
        >>> list(configs("smoke", tasks.names()[0], ["s6"]))
        ['s6']
    """
    chosen, given, own = get(preset, task), given or {}, own or {}
    found = {}
    for mixer in mixers or chosen.mixers:
        settings = {**chosen.settings, **chosen.own.get(mixer, {})}
        # The depth of a preset is meant for one architecture; a pattern of layers has to fit in.
        depth = settings.get("num_layers", ModelConfig.num_layers)
        settings["num_layers"] = max(depth, len(pattern.layers_of(mixer)))
        settings |= {**given, **own.get(mixer, {})}
        found[mixer] = build(task, mixer, settings)
    return found


def build(task: str, mixer: str, settings: Mapping[str, Any]) -> TrainConfig:
    """A config from one flat mapping of settings.

    Args:
        task: Name of the task.
        mixer: The architecture.
        settings: Field of the task, the model, the optimiser or the run to its value; a name that
            several have is for all of them, one that none has is passed over.

    Returns:
        The config. The model has the inputs and outputs of the task.

    Raises:
        ValueError: If the values do not fit together.
        TypeError: If one has the wrong type.
    """
    made = tasks.get(task, **_fields_of(tasks.kind(task), settings))
    own = _fields_of(ModelConfig, settings) | {"mixer": mixer, "vocab_size": 1}
    return TrainConfig(
        **_fields_of(TrainConfig, settings)
        | {
            "task": made,
            "model": fitted(ModelConfig(**own), made),
            "optimizer": OptimizerConfig(**_fields_of(OptimizerConfig, settings)),
        }
    )


def read_file(path: Path) -> dict[str, Any]:
    """The content of a file of settings, as data.

    Args:
        path: A file of TOML (``.toml``) or JSON, such as the ``config.json`` of a run.

    Returns:
        Nested dicts and lists.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:  # both decoders raise ValueErrors
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"config file: expected TOML (.toml) or JSON in {path}, got an error ({reason})"
        ) from error
    for name in ("", *TABLES):
        if not isinstance(table := data.get(name, {}) if name else data, dict):
            raise ValueError(f"config file: expected a table {name!r} in {path}, got {table!r}")
    return data


def settings_of(data: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The settings that a file gives.

    Args:
        data: Its content: any of the fields of `TrainConfig`, with those of the task, the model and
            the optimiser in the tables ``task``, ``model`` and ``optimizer``.
        task: Name of the task.

    Returns:
        Setting to value, for `build`; ``mixer`` among them if the file names one.

    Raises:
        ValueError: If a key is unknown, with its nearest, or the file is of another task.
        TypeError: If a value has the wrong type.

    Examples:
        >>> settings_of({"steps": 40, "optimizer": {"clip": 1}}, tasks.names()[0])
        {'steps': 40, 'clip': 1.0}
    """
    tables = {name: dict(data.get(name, {})) for name in TABLES}
    if (whose := tables["task"].pop("name", task)) != task:
        raise ValueError(f"config file: expected the task of the command, {task!r}, got {whose!r}")
    if isinstance(options := tables["model"].get("options"), Mapping):
        tables["model"]["options"] = list(options.items())
    top = {name: value for name, value in data.items() if name not in TABLES}
    found = serial.values_of(TrainConfig, top, "config")
    kinds = (tasks.kind(task), ModelConfig, OptimizerConfig)
    for (name, table), kind in zip(tables.items(), kinds, strict=True):
        found |= serial.values_of(kind, table, f"config.{name}")
    return found


def _fields_of(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: settings[f.name] for f in dataclasses.fields(kind) if f.name in settings}
