"""Frozen dataclasses to and from JSON, with every unknown key refused."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from dsfjax import tasks
from dsfjax._util.fields import convert
from dsfjax._util.names import choose
from dsfjax.nn import ModelConfig, buildable

T = TypeVar("T")

LATER: Mapping[str, Any] = types.MappingProxyType({"later": True})
"""Metadata of a field that a dataclass got later: it is not written where it has its default.

So what is written of a config stays what it was, and with it the names made of that.
"""


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON data; tuples become lists.

    Args:
        config: A dataclass instance, of dataclasses, tuples, numbers, strings and None.

    Returns:
        Nested dicts and lists, without the fields marked :data:`LATER` that have their defaults.
        A task says its name first, a model of another kind than `ModelConfig` its kind.

    Examples:
        >>> from dsfjax.nn import ModelConfig
        >>> to_dict(ModelConfig("ssd", vocab_size=64))["d_model"]
        64
    """
    return _plain(config)


def from_dict(kind: type[T], data: Any, *, where: str = "config") -> T:
    """Build a config from JSON data.

    Args:
        kind: The dataclass to build.
        data: Its fields; those with a default may be absent.
        where: What ``data`` is, for messages.

    Returns:
        The config, validated by its own ``__post_init__``.

    Raises:
        ValueError: If a key is unknown (the nearest is named) or missing.
        TypeError: If a value is not of the field's type.

    Examples:
        >>> from dsfjax.training import OptimizerConfig
        >>> from_dict(OptimizerConfig, {"warm_steps": 64})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: unknown key of config 'warm_steps'; did you mean 'warmup_steps'? Known: ...
    """
    if kind is tasks.Task and isinstance(data, Mapping):
        data = dict(data)
        name = tasks.name_in(data)
        data.pop("name", None)
        return cast(T, from_dict(tasks.kind(name), data, where=where))
    if kind is ModelConfig and isinstance(data, Mapping) and "kind" in data:
        own = {name: value for name, value in data.items() if name != "kind"}
        return cast(T, from_dict(buildable.kind_in(data), own, where=where))
    if not isinstance(data, Mapping):
        raise TypeError(f"{where}: expected an object of {kind.__name__}, got {data!r}")
    values = values_of(kind, data, where)
    absent = dataclasses.MISSING
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is absent and field.default_factory is absent
        if required and field.name not in values:
            raise ValueError(f"{where}: expected the key {field.name!r}, which is missing")
    return kind(**values)  # type: ignore[abstract]  # a registered task is a class of its own


def values_of(kind: type, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of some fields of a config, typed.

    Args:
        kind: The dataclass that has the fields.
        data: JSON data of some of them.
        where: What ``data`` is, for messages.

    Returns:
        Field to value.

    Raises:
        ValueError: If a key is unknown; the nearest is named.
        TypeError: If a value is not of the field's type.
    """
    hints, known = typing.get_type_hints(kind), [field.name for field in dataclasses.fields(kind)]
    for name in data:
        choose(f"key of {where}", name, known)
    return {name: value_of(hints[name], value, f"{where}.{name}") for name, value in data.items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two configs in JSON form differ.

    Args:
        a: One.
        b: The other.
        prefix: Path of both, for nested calls.

    Returns:
        One line per difference, "path: a's value -> b's value".

    Examples:
        >>> differences({"task": {"seq_len": 32}}, {"task": {"seq_len": 64}})
        ['task.seq_len: 32 -> 64']
    """
    found = []
    for name in sorted(a.keys() | b.keys()):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found.append(f"{prefix}{name}: {left!r} -> {right!r}")
    return found


def strings(value: Any, where: str) -> tuple[str, ...]:
    """A list of strings in JSON data.

    Args:
        value: The data.
        where: What they are, for messages.

    Returns:
        The strings.

    Raises:
        TypeError: If it is anything else.
    """
    return value_of(tuple[str, ...], value, where)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if not _left_out(f, getattr(value, f.name))]
        name = tasks.named(value) if isinstance(value, tasks.Task) else buildable.named(value)
        return name | {f.name: _plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    return bool(field.metadata.get("later")) and value == field.default


def value_of(hint: Any, value: Any, where: str) -> Any:
    """A value of JSON data as an annotation says: `dsfjax._util.fields.convert`, and configs.

    Args:
        hint: The annotation.
        value: JSON data.
        where: What it is, for messages.

    Returns:
        The value.

    Raises:
        ValueError: If it is not one of the words of a ``Literal``; the nearest is named.
        TypeError: If it is not of that type.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        absent = value is None and type(None) in kinds
        config = kind is tasks.Task or (dataclasses.is_dataclass(kind) and isinstance(kind, type))
        if config and not absent:
            return from_dict(typing.cast(Any, kind), value, where=where)
        if typing.get_origin(kind) is typing.Literal:
            return choose(where, str(value), typing.get_args(kind))
    return convert(hint, value, where)
