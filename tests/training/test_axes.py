"""An axis of a grid is declared once: all that has to know it does."""

import dataclasses
from typing import Any

import pytest

from dsfjax.cli import options
from dsfjax.training.axes import axes_of, axis, positive
from dsfjax.training.config import AXES, Member, TrainConfig, grid
from dsfjax.training.program import Members
from dsfjax.training.storage.store import COLUMNS


@pytest.mark.parametrize("one", AXES, ids=lambda one: one.name)
def test_every_axis_is_a_field_a_value_a_column_and_an_option(one: Any) -> None:
    assert one.field in {field.name for field in dataclasses.fields(TrainConfig)}
    assert one.name in Member._fields and one.name in Members._fields
    assert COLUMNS[one.name] == {int: "INTEGER", float: "REAL"}[one.kind]
    flags = {
        command: {field.name for field in dataclasses.fields(options.completed(command, {}, AXES))}
        for command in (options.Train, options.Compare, options.Sweep)
    }
    assert one.one in flags[options.Train]
    assert one.flag in flags[options.Compare] & flags[options.Sweep]


def test_seeds_run_fastest_wherever_they_are_declared() -> None:
    @dataclasses.dataclass
    class Config:
        seeds: tuple[int, ...] = axis(
            "seed", "A seed.", kind=int, default=(0,), expected="{} >= 0", holds=lambda s: s >= 0
        )
        clips: tuple[float, ...] = axis(
            "clip", "Clip.", kind=float, expected="positive {}", holds=positive, later=True
        )

    clip, seed = axes_of(Config)
    assert (clip.name, clip.field, clip.flag, clip.required) == ("clip", "clips", "clip", False)
    assert (seed.name, seed.field, seed.required) == ("seed", "seeds", True)
    assert Config() == Config((0,), ())


def test_an_axis_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown axis 'lrs'"):
        grid(lrs=[0.1])
