"""Settings of config.json that are wrong: each is refused by the names of its file and field."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsfjax.interop import published
from dsfjax.interop.published import opening
from dsfjax.interop.published.layerwise import Checked, check
from dsfjax.interop.published.naming import REGISTRY, Definition
from dsfjax.interop.published.tensor_files import Config
from tests.opened import FAMILIES, FOLDER

# Of every type that JSON has, within and beyond what numbers can be.
VALUES = (
    *(None, True, False, "", "x", [], [0], ["x"], {}, {"x": 1}, 0, 7, -1, 0.5),
    *(1e300, (1 << 31) - 1, 1 << 62, 10**400, float("nan"), float("-inf")),
)


def places(values: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every setting, also of those within objects and lists."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield (*path, key)
            yield from places(value, (*path, key))


def replaced(values: Any, path: tuple, value: Any) -> tuple[Any, Any]:
    """A copy with another value at a path; and what was there."""
    found = copy.deepcopy(values)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    before, inner[path[-1]] = inner[path[-1]], value
    return found, before


def kind(value: Any) -> type:
    """Of a setting; a number is one kind, whole or not."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def complaint(folder: Path, values: Any, path: tuple, value: Any) -> str | None:
    """What is wrong with how a setting is refused; None if it is taken or refused by its name.

    A value of the right kind may instead disagree with the tensors, which are then named.
    """
    changed, before = replaced(values, path, value)
    (folder / "config.json").write_text(json.dumps(changed))
    name = next(key for key in reversed(path) if isinstance(key, str))
    try:
        published.inspect(folder)
    except ValueError as error:
        text = str(error)
        named = name in text and "config.json" in text
        entries = before if isinstance(before, list) else []
        may_disagree = None in (value, before) or kind(value) in map(kind, [before, *entries])
        return None if named or (may_disagree and "tensor" in text) else text
    except Exception as error:  # any other kind is what this test is for
        return f"{type(error).__name__}: {error}"
    return None


def checked_once(definition: Definition, shapes: dict, held: tuple[int, ...]) -> Checked:
    """`check`, which traces a model that has been traced before no second time."""
    known = _CHECKED.get((definition, held))
    if known is None:
        known = _CHECKED[definition, held] = check(definition, shapes, held)
    return known


_CHECKED: dict[tuple[Definition, tuple[int, ...]], Checked] = {}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_setting_is_refused_by_its_name(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "check", checked_once)
    folder = Path(shutil.copytree(FOLDER / family, tmp_path / family))
    values = json.loads((folder / "config.json").read_text())
    wrong = {
        f"{path} = {str(value)[:20]}": text
        for path in places(values)
        for value in VALUES
        if (text := complaint(folder, values, path, value)) is not None
    }
    assert not wrong, "\n".join(f"{place}: {text[:200]}" for place, text in wrong.items())


WITHOUT_FILES = {
    "delta_net": {"expand_k": 1.0, "expand_v": 1.0, "qk_norm": "l2", "qk_activation": "silu"},
    "hgrn2": {"expand_ratio": 8, "use_lower_bound": True},
    "retnet": {"num_kv_heads": 2, "feature_map": None, "use_output_gate": True},
}
ATTENTION = {"layers": [1], "num_heads": 2, "num_kv_heads": 1, "rope_theta": 1e4, "window_size": 8}
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "num_heads": 4}
COMMON |= {"hidden_ratio": 4, "norm_eps": 1e-6, "attn": ATTENTION}


@pytest.mark.parametrize("family", WITHOUT_FILES)
def test_a_definition_refuses_by_name(family: str) -> None:
    """The same of families of which there is no small file, before tensors are looked at."""
    values = {**COMMON, **WITHOUT_FILES[family]}
    for path in places(values):
        for value in VALUES:
            changed, _ = replaced(values, path, value)
            name = next(key for key in reversed(path) if isinstance(key, str))
            try:
                REGISTRY[family](Config(changed), {})
            except ValueError as error:
                assert name in str(error), (path, value)


READERS: dict[str, Callable[[Config], Any]] = {
    "size": lambda c: c.size("field"),
    "count": lambda c: c.count("field", least=0),
    "part": lambda c: c.part("field", "other", 8),
    "divisor": lambda c: c.divisor("field", "other", 21),
    "multiple": lambda c: c.multiple("field", "other", 7),
    "number": lambda c: c.number("field"),
    "positive": lambda c: c.positive("field", most=2),
    "scaled": lambda c: c.scaled("field", "other", 64),
    "flag": lambda c: c.flag("field"),
    "word": lambda c: c.word("field", ("x",)),
    "words": lambda c: c.words("field", ("x",), 1),
    "numbers": lambda c: c.numbers("field", 1),
    "interval": lambda c: c.interval("field", (0.0, 1.0)),
    "places": lambda c: c.places("field", 3),
    "section": lambda c: c.section("field").values,
}


@pytest.mark.parametrize(
    ("reader", "taken"),
    [
        ("size", [7, (1 << 31) - 1]),
        ("count", [0, 7]),
        ("part", [7]),
        ("divisor", [7]),
        ("multiple", [7]),
        ("number", [0.0, 7.0, -1.0, 0.5, 2.0**31 - 1, 2.0**62]),
        ("positive", [0.5]),
        ("scaled", [448, 32.0]),
        ("flag", [True, False]),
        ("word", ["x"]),
        ("words", [("x",)]),
        ("numbers", [(1.0,), (0.0,)]),
        ("interval", [(0.0, 1.0)]),
        ("places", [(), (), (0,)]),
        ("section", [{}, {}, {"x": 1}]),
    ],
)
def test_every_reader_takes_or_refuses_by_name(reader: str, taken: list) -> None:
    """Null is absence, for which some readers have an answer."""
    found = []
    for value in VALUES:
        try:
            found.append(READERS[reader](Config({"field": value}, "a/config.json")))
        except ValueError as error:
            assert str(error).startswith("a/config.json: field"), error
    assert found == taken


def test_an_interval_may_be_open() -> None:
    for infinity in (math.inf, {"__float__": "Infinity"}):
        values = {"field": [0.25, infinity]}
        assert Config(values).interval("field", (0.0, 1.0)) == (0.25, math.inf)
