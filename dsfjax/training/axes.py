"""The axes of a grid. Each is declared once, as a field of `TrainConfig` made by `axis`.

That declaration is the field of the config, its check, the value of a member (`Member` in
:mod:`dsfjax.training.config`), the column of ``results.sqlite``, of the metrics and of the tables,
and the option of the commands. What a value does is the one line of
:mod:`dsfjax.training.block` that reads it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Axis(NamedTuple):
    """One axis of a grid.

    Attributes:
        name: Name of one value: in a `Member`, a column, a line of the metrics.
        field: Field of `TrainConfig` that has the values.
        kind: ``int`` or ``float``.
        about: What it is, for the help of a command.
        flag: Option for several values, without dashes.
        one: Option for one value.
        expected: What a value has to be, in words.
        holds: Whether a value is that.
        absent: Field of `OptimizerConfig` that says the value where the config has none; "" for no
            such field.
        required: Whether the config must have a value. An axis that is neither required nor has an
            ``absent`` is None for all members of such a config.
    """

    name: str
    field: str
    kind: type
    about: str
    flag: str
    one: str
    expected: str
    holds: Callable[[Any], bool]
    absent: str = ""
    required: bool = False


def positive(value: float) -> bool:
    """Whether a number is finite and above 0."""
    return value > 0 and math.isfinite(value)


def at_least_0(value: float) -> bool:
    """Whether a number is finite and not negative."""
    return value >= 0 and math.isfinite(value)


def axis(
    name: str,
    about: str,
    *,
    kind: type,
    expected: str,
    holds: Callable[[Any], bool],
    default: tuple[Any, ...] = (),
    flag: str = "",
    one: str = "",
    absent: str = "",
    later: bool = False,
) -> Any:
    """Declare an axis: the value of a field of `TrainConfig`.

    Args:
        name: Name of one value.
        about: What it is, in a sentence for the help of a command.
        kind: ``int`` or ``float``.
        expected: What a value has to be, in words.
        holds: Whether a value is that.
        default: The values of a config that says none.
        flag: Option for several values; the name by default.
        one: Option for one value; ``flag`` by default.
        absent: Field of `OptimizerConfig` that has the value where there are none here.
        later: Whether configs of older runs lack it (`dsfjax.training.storage.serial.LATER`).

    Returns:
        A dataclass field.
    """
    flag = flag or name
    made = Axis(
        name, "", kind, about, flag, one or flag, expected, holds, absent, required=bool(default)
    )
    return dataclasses.field(default=default, metadata={"axis": made, "later": later})


def axes_of(config: type) -> tuple[Axis, ...]:
    """The axes that a config declares, in the order of a member's values: seeds are the last.

    Args:
        config: A dataclass.

    Returns:
        The axes. In a grid the last one runs fastest.
    """
    found = [
        field.metadata["axis"]._replace(field=field.name)
        for field in dataclasses.fields(config)
        if "axis" in field.metadata
    ]
    return tuple(sorted(found, key=lambda axis: axis.name == "seed"))


def check(axis: Axis, values: tuple[Any, ...]) -> None:
    """Refuse values that an axis cannot have.

    Args:
        axis: The axis.
        values: Its values.

    Raises:
        ValueError: If there are none and must be some, if one comes twice, or one does not fit.
    """
    if axis.required and not values:
        raise ValueError(f"expected distinct {axis.field}, at least one, got ()")
    if len(set(values)) != len(values):
        raise ValueError(f"expected distinct {axis.field}, got {values}")
    if not all(map(axis.holds, values)):
        raise ValueError(f"expected {axis.expected.format(axis.field)}, got {values}")
