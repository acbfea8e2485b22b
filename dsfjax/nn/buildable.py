"""Models of other kinds than `ModelConfig`, that training runs know by name."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dsfjax._util.names import choose
from dsfjax.nn.model_config import ModelConfig

if TYPE_CHECKING:
    from dsfjax.nn.functional import Model


class Buildable(abc.ABC):
    """The config of a model that is made in another way than by `ModelConfig`.

    You write a frozen dataclass below this, with ``mixer``, ``vocab_size`` and ``build``, and
    `register` it. You get it as the ``model`` of a `dsfjax.training.TrainConfig`: trained, stored,
    resumed and loaded like any other.

    Attributes:
        mixer: What it is called in tables.
        vocab_size: Token ids that it reads, those of its task.
    """

    mixer: str
    vocab_size: int
    channels: int = 0
    num_classes: int = 0
    num_outputs: int = 0
    num_documents: int = 1
    num_decoded: int = 0
    max_length: int = 0
    embed_dropout: float = 0.0
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0
    precision: str = "float32"

    @abc.abstractmethod
    def build(self) -> Model:
        """The model as pure functions. Equal configs may share it."""


T = TypeVar("T", bound=type[Buildable])
_KINDS: dict[str, type[Buildable]] = {}


def register(kind: T) -> T:
    """Make a class of configs known by its name, to read the configs of runs.

    Args:
        kind: A frozen dataclass.

    Returns:
        The class: this is a decorator.

    Raises:
        TypeError: If it is not a frozen dataclass below `Buildable`.
    """
    frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore
    if not frozen or not issubclass(kind, Buildable):
        raise TypeError(f"register: expected a frozen dataclass below Buildable, got {kind!r}.")
    _KINDS[kind.__name__] = kind
    return kind


def named(config: Any) -> dict[str, str]:
    """What the JSON form of a config says first: its kind, if it is not a `ModelConfig`."""
    return {"kind": type(config).__name__} if isinstance(config, Buildable) else {}


def kind_in(data: Mapping[str, Any]) -> type[ModelConfig] | type[Buildable]:
    """The class of the config that JSON data are of.

    Raises:
        ValueError: If it is not known, with the nearest one.
    """
    if "kind" not in data:
        return ModelConfig
    return _KINDS[choose("kind of model", str(data["kind"]), _KINDS)]
