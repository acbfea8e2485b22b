"""Values made what the fields of a configuration are declared to be, or refused.

A configuration is written to disk after the training that it describes. A NumPy integer, a range or
an array in it would fail only then, so every configuration converts its fields when it is made.
"""

import dataclasses
import functools
import json
import math
import operator
import types
import typing
from collections.abc import Iterable, Mapping, Set
from typing import Any

from dsfjax._util.names import choose


def convert_fields(config: Any) -> None:
    """Convert every field of a frozen dataclass in place; call it first in ``__post_init__``.

    Args:
        config: An instance, in the making.

    Raises:
        TypeError: If a value is not of its field's type and does not stand for one.
        ValueError: If a number is not finite.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     steps: int = 10
        ...     rates: tuple[float, ...] = (0.1,)
        ...
        ...     def __post_init__(self):
        ...         convert_fields(self)
        >>> import numpy as np
        >>> Config(np.int64(20), np.array([1, 2]))
        Config(steps=20, rates=(1.0, 2.0))
        >>> Config(steps=20.0)
        Traceback (most recent call last):
            ...
        TypeError: Config.steps: expected an integer, got 20.0; write 20
    """
    kind = type(config)
    for name, hint in _hints(kind).items():
        value = convert(hint, getattr(config, name), f"{kind.__name__}.{name}")
        object.__setattr__(config, name, value)


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value as its annotation says.

    Args:
        hint: The annotation: a number, string or bool, a tuple of them, ``Any`` for JSON data, or
            one of these or None. Values of other annotations are returned as they are.
        value: The value. Whole numbers stand for floats, and any sequence or array for a tuple.
        where: What it is, for messages.

    Returns:
        The value, of Python's own types.

    Raises:
        TypeError: If the value does not stand for one of that type.
        ValueError: If a number is not finite, or a tuple has another length.

    Examples:
        >>> convert(tuple[int, ...], range(3), "seeds")
        (0, 1, 2)
        >>> convert(float | None, None, "clip")
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        some = [arg for arg in args if arg is not type(None)]
        return convert(some[0], value, where) if len(some) == 1 else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _converted(value, where)
    if origin is tuple:
        items = _items(value, where)
        kinds = args[:1] * len(items) if args[-1] is Ellipsis else args
        if len(kinds) != len(items):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {value!r}")
        pairs = zip(kinds, items, strict=True)
        return tuple(convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))
    make = {bool: _bool, int: _int, float: _float, str: _str, Any: _json}.get(hint)
    return value if make is None else make(value, where)


def parse(hint: Any, text: str, where: str) -> Any:
    """A value that was written as text, as its annotation says.

    Args:
        hint: As for `convert`, or a ``Literal`` of strings. For ``Any`` the text is read as JSON if
            it is that, and stays text if not.
        text: The value: a number, ``true`` or ``false``, ``none``, or a word.
        where: What it is, for messages.

    Returns:
        The value.

    Raises:
        TypeError: If the text does not stand for a value of that type.
        ValueError: If it is not one of the words of a ``Literal``; the nearest is named.

    Examples:
        >>> parse(int | None, "4", "dt_rank"), parse(bool, "true", "coupled")
        (4, True)
        >>> parse(bool, "yes", "coupled")
        Traceback (most recent call last):
            ...
        TypeError: coupled: expected true or false, got 'yes'
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return choose(where, text, args)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() == "none":
            return None
        some = [arg for arg in args if arg is not type(None)]
        return parse(some[0], text, where) if len(some) == 1 else text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise TypeError(f"{where}: expected true or false, got {text!r}")
        return text.lower() == "true"
    if hint is str:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return convert(hint, value, where)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _converted(config: Any, where: str) -> Any:
    """A dataclass in a dataclass, made anew if it had to be converted."""
    changed = {}
    for name, hint in _hints(type(config)).items():
        old = getattr(config, name)
        new = convert(hint, old, f"{where}.{name}")
        if new is not old:
            changed[name] = new
    return dataclasses.replace(config, **changed) if changed else config


def _items(value: Any, where: str) -> list[Any]:
    if hasattr(value, "tolist"):  # an array, of NumPy or JAX: its items as Python's numbers
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
        raise TypeError(f"{where}: expected a list, got {value!r}")
    return list(value)


def _bool(value: Any, where: str) -> bool:
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{where}: expected True or False, got {value!r}")
    return plain


def _int(value: Any, where: str) -> int:
    plain = _plain(value)
    if isinstance(plain, float):
        remedy = f"; write {plain:.0f}" if plain.is_integer() else ""
        raise TypeError(f"{where}: expected an integer, got {value!r}{remedy}")
    try:
        if isinstance(plain, bool):
            raise TypeError
        return operator.index(plain)
    except TypeError:
        raise TypeError(f"{where}: expected an integer, got {value!r}") from None


def _float(value: Any, where: str) -> float:
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise TypeError(f"{where}: expected a number, got {value!r}")
    if not math.isfinite(plain):
        raise ValueError(f"{where}: expected a finite number, got {value!r}")
    return float(plain)


def _str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{where}: expected a string, got {value!r}")
    return str(value)


def _json(value: Any, where: str) -> Any:
    plain = _plain(value)
    if plain is None or isinstance(plain, (bool, int, str)):
        return plain
    if isinstance(plain, float):
        return _float(plain, where)
    return tuple(_json(item, f"{where}[{i}]") for i, item in enumerate(_items(value, where)))


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX as Python's own."""
    return value.item() if getattr(value, "ndim", None) == 0 else value
