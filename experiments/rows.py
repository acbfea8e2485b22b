"""Tables: a row is a task, a column an architecture, and a point one of the other.

At scale ``small`` a row says how its models are trained, the same for all architectures but for
its ``own``; all see the same number of tokens. At scale ``paper`` it is the preset "paper"
of the task; a task for which nobody has published settings is trained as at ``small``, ten times as
long. ``demo`` is ``small`` for a few steps.

Tasks that have a validation split are trained with it held out; `experiments.after` scores the
chosen members on the test split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from dsfjax import tasks
from dsfjax.training import TrainConfig, presets
from experiments.settings import Scale

PAPER = ("softmax_attention", "linear_attention", "normalized_attention", "s6", "ssd")
"""The architectures of the paper's tables of the Long Range Arena and of WikiText."""

SMALL: Mapping[str, Any] = {
    "block": "mamba",
    "surroundings": "practice",
    "num_layers": 2,
    "d_model": 32,
    "d_state": 16,
    "schedule": "cosine",
    "warmup_steps": 50,
    "batch_size": 32,
    "eval_every": 100,
    "eval_examples": 1024,
    "seeds": (0, 1, 2),
    "stop_at": None,
    "checkpoint_every": 5,
}
"""What the rows of all tables share at scale small."""

DEMO: Mapping[str, Any] = {
    "d_model": 8,
    "num_layers": 1,
    "warmup_steps": 2,
    "batch_size": 4,
    "steps": 8,
    "eval_every": 4,
    "eval_examples": 16,
    "seeds": (0, 1),
}


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: What points and panels call it.
        task: Name of the task.
        options: Options of the task at every scale.
        small: Settings of the task, the model, the optimiser and the run at scale small.
        own: Architecture to the settings in which it differs at scale small.
    """

    name: str
    task: str
    options: Mapping[str, Any] = {}
    small: Mapping[str, Any] = {}
    own: Mapping[str, Mapping[str, Any]] = {}


Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name of a series to its architecture and the options in which it differs."""


def config(
    scale: Scale, row: Row, mixer: str, varied: Mapping[str, Any] | None = None
) -> TrainConfig:
    """One architecture on the task of a row.

    Args:
        scale: "demo", "small" or "paper".
        row: The row.
        mixer: The architecture.
        varied: Options of the architecture that are not its defaults.

    Returns:
        The config.
    """
    known = {each.name for each in fields(tasks.kind(row.task))}  # type: ignore[arg-type]
    options = {**({"judged_on": "validation"} if "judged_on" in known else {}), **row.options}
    if varied:
        options["options"] = tuple(varied.items())
    if scale == "paper" and "paper" in presets.names(row.task):
        return _published(row.task, mixer, options)
    settings = {**SMALL, **row.small, **row.own.get(mixer, {}), **options}
    if scale == "paper":
        settings["steps"] *= 10
    if scale == "demo":
        settings = {**settings, **DEMO, "learning_rates": settings["learning_rates"][:1]}
    return presets.build(row.task, mixer, settings)


def _published(task: str, mixer: str, options: Mapping[str, Any]) -> TrainConfig:
    """The preset "paper", evaluated on no more examples than the validation split has."""
    preset = presets.get("paper", task)
    settings = {**preset.settings, **preset.own.get(mixer, {}), **options}
    known = {each.name for each in fields(tasks.kind(task))}  # type: ignore[arg-type]
    size = tasks.get(task, **{name: settings[name] for name in known & settings.keys()}).size(
        tasks.HELD_OUT
    )
    if size is not None:
        settings["eval_examples"] = min(size, settings["eval_examples"])
    return presets.build(task, mixer, settings)


def configs(
    rows: Sequence[Row], mixers: Sequence[str] | Variants = PAPER
) -> Callable[[Scale, bool], dict[str, TrainConfig]]:
    """The points of a table, for an `experiments.experiment.Experiment`.

    Args:
        rows: Its rows.
        mixers: Its columns: architectures, or series that are variants of some.

    Returns:
        Function of scale and ``faithful``, which says nothing here.
    """
    series: Variants = (
        mixers if isinstance(mixers, Mapping) else {mixer: (mixer, {}) for mixer in mixers}
    )

    def made(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
        del faithful
        return {
            f"{name}, {row.name}": config(scale, row, mixer, varied)
            for row in rows
            for name, (mixer, varied) in series.items()
        }

    return made
