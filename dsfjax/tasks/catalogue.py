"""Tasks by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dsfjax._util.names import choose, unknown
from dsfjax.tasks.automata import RandomAutomata
from dsfjax.tasks.copying import Copying
from dsfjax.tasks.digits import Digits
from dsfjax.tasks.image import Cifar10, Mnist, PermutedMnist
from dsfjax.tasks.language_modelling import Language
from dsfjax.tasks.listops import ListOps
from dsfjax.tasks.mad import (
    BlankCopying,
    Compression,
    FuzzyRecall,
    InContextRecall,
    Memorization,
    NoisyRecall,
)
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.tasks.pathfinder import Pathfinder
from dsfjax.tasks.protocol import DEMANDS, Task
from dsfjax.tasks.retrieval import Aan, ImdbSameFilm
from dsfjax.tasks.selective_copying import SelectiveCopying
from dsfjax.tasks.speech import SpokenDigits
from dsfjax.tasks.state_tracking import ModularArithmetic, Parity, WordProblem
from dsfjax.tasks.text import Imdb, ImdbBytes
from dsfjax.tasks.time_series import Forecast

_REGISTRY: dict[str, type[Task]] = {
    "mqar": MQARConfig,
    "selective_copying": SelectiveCopying,
    "digits": Digits,
    "cifar10": Cifar10,
    "mnist": Mnist,
    "permuted_mnist": PermutedMnist,
    "imdb": Imdb,
    "imdb_bytes": ImdbBytes,
    "aan": Aan,
    "imdb_same_film": ImdbSameFilm,
    "spoken_digits": SpokenDigits,
    "parity": Parity,
    "modular_arithmetic": ModularArithmetic,
    "word_problem": WordProblem,
    "copying": Copying,
    "random_automata": RandomAutomata,
    "mad_in_context_recall": InContextRecall,
    "mad_fuzzy_recall": FuzzyRecall,
    "mad_noisy_recall": NoisyRecall,
    "mad_selective_copying": BlankCopying,
    "mad_compression": Compression,
    "mad_memorization": Memorization,
    "listops": ListOps,
    "pathfinder": Pathfinder,
    "forecast": Forecast,
    "language": Language,
}

# Configs of runs that were made before tasks had names say nothing of this one; and their
# fingerprints are made of what they say.
_UNNAMED = "mqar"


def names() -> tuple[str, ...]:
    """Names of all tasks.

    Example:
        >>> names()[0]
        'mqar'
    """
    return tuple(_REGISTRY)


def register(name: str, task: type[Task]) -> None:
    """Make a task known by name in this process: to `get`, commands, configs and reports.

    Args:
        name: Its name, a word for the command line.
        task: A frozen dataclass below `Task`, all of whose fields have defaults. Registering a
            class of the same module and name again replaces it, so a notebook's cell runs twice.

    Raises:
        ValueError: If the name is taken by another class.
        TypeError: If it is not such a dataclass.
    """
    if not (isinstance(task, type) and issubclass(task, Task) and dataclasses.is_dataclass(task)):
        raise TypeError(f"register: expected a dataclass below Task as {name!r}, got {task!r}.")
    if not task.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"register: expected a frozen dataclass as {name!r}; use frozen=True.")
    known = _REGISTRY.get(name)
    if known is not None and _qualified(known) != _qualified(task):
        raise ValueError(f"register: {name!r} is taken by {_qualified(known)}; use another name.")
    _REGISTRY[name] = task


def kind(name: str) -> type[Task]:
    """The class of a task: its fields are the options of `get`.

    Args:
        name: One of `names`.

    Raises:
        ValueError: For an unknown name, with the nearest one.
    """
    return _REGISTRY[choose("task", name, _REGISTRY)]


def get(name: str, **own: Any) -> Task:
    """A task by name.

    Args:
        name: One of `names`.
        **own: Its options: the fields of its class.

    Returns:
        The `Task`.

    Raises:
        ValueError: For an unknown name, with the nearest one, or options that do not fit together.
        TypeError: For an option that the task does not have.

    Example:
        >>> get("mqar", seq_len=32, num_kv_pairs=2).describe()
        'L = 32, 2 key–value pairs, vocabulary 8192'
    """
    known = options(name)
    for keyword in own:
        if keyword not in known:
            raise TypeError(unknown(f"{name} has no option", keyword, known))
    return kind(name)(**own)


def options(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The options of a task, by name.

    Args:
        name: One of `names`.
    """
    return {field.name: field for field in dataclasses.fields(kind(name))}  # type: ignore[arg-type]


def demands() -> tuple[str, ...]:
    """What tasks demand: the words of `DEMANDS`, and those that only registered tasks have.

    Example:
        >>> "recall" in demands()
        True
    """
    own = (word for kind in _REGISTRY.values() for word in kind.demands)
    return tuple(dict.fromkeys((*DEMANDS, *own)))


def name_of(task: Task) -> str:
    """The name under which the class of a task is registered.

    Args:
        task: A task.

    Raises:
        ValueError: If it is not registered.

    Example:
        >>> name_of(get("mqar"))
        'mqar'
    """
    for name, known in _REGISTRY.items():
        if known is type(task):
            return name
    raise ValueError(
        f"task {type(task).__name__} is not registered; call dsfjax.tasks.register(name, "
        f"{type(task).__name__}) where it is defined."
    )


def name_in(data: Mapping[str, Any]) -> str:
    """The name of the task that a config's JSON data are of.

    Args:
        data: The task's part of a config; without "name" it is of a time when there was one task.
    """
    return data.get("name", _UNNAMED)


def named(task: Task) -> dict[str, str]:
    """What a config says of the task apart from its options: ``{"name": …}``, or nothing.

    Args:
        task: The task.
    """
    name = name_of(task)
    return {} if name == _UNNAMED else {"name": name}


def _qualified(task: type[Task]) -> str:
    return f"{task.__module__}.{task.__qualname__}"
