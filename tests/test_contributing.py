"""Every block of CONTRIBUTING.md runs as it is printed, and what it defines works."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax import tasks
from dsfjax.aspects import aspect as aspects
from dsfjax.cli import options, parse, training
from dsfjax.tasks import catalogue

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def defined() -> Any:
    """What the page defines, its registrations taken back afterwards."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 4
    known_tasks, known_aspects = dict(catalogue._REGISTRY), dict(aspects._ASPECTS)
    names: dict[str, Any] = {"__name__": "contributing"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    catalogue._REGISTRY.clear()
    catalogue._REGISTRY.update(known_tasks)
    aspects._ASPECTS.clear()
    aspects._ASPECTS.update(known_aspects)


def test_transition(defined: dict[str, Any]) -> None:
    angle = np.array([[0.3], [0.5], [-0.2], [1.0]])
    e = jnp.array([[[1.0, 0.0]]])
    system = dsfjax.System(
        defined["Rotation"](jnp.asarray(angle)),
        dsfjax.OuterInput(e),
        dsfjax.InnerOutput(e),
        state_shape=(1, 2, 1),
    )
    phi = np.asarray(dsfjax.materialize(system)[0])
    total = np.cumsum(angle[:, 0])
    np.testing.assert_allclose(phi, np.tril(np.cos(total[:, None] - total)), atol=1e-12)


def test_engine(defined: dict[str, Any]) -> None:
    A = dsfjax.Scalar(jnp.log(jnp.full((1, 1), 0.5)))
    ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
    y, _ = dsfjax.scan(ema, jnp.ones((5, 1)), method=defined["Unrolled"]())
    np.testing.assert_allclose(y[:, 0], [1.0, 1.5, 1.75, 1.875, 1.9375], rtol=1e-12)


def test_the_command_of_the_page(
    defined: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (words,) = re.findall(r"`dsfjax (train [^`]*)`", text)
    # A module of this name that knows nothing: `defined` has registered what the page defines.
    (tmp_path / "mine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    command = parse.parse(words.split())
    assert isinstance(command, options.Train) and command.imports == ("mine",)
    (config,) = training.plan(command).values()
    assert isinstance(config.task, defined["FirstToken"])


def test_task(defined: dict[str, Any]) -> None:
    task = tasks.get("first_token", seq_len=4)
    assert dataclasses.is_dataclass(task) and type(task) is defined["FirstToken"]
    example = task.example(jax.random.key(0), task.arrays(tasks.TRAIN))
    assert example.inputs.shape == (4,) and int(example.targets[0]) == int(example.inputs[0])
    assert task.trivial().score == 1 / 8


def test_aspect(defined: dict[str, Any]) -> None:
    (own,) = [aspect for aspect in aspects.registered() if aspect.name == "largest_output"]
    assert own.measure is not None and own.rows is not None and own.draw is not None
    layer = own.summarise(np.asarray(own.measure(None, None, jnp.array([[1.0, -3.0]])))[None])
    assert list(own.rows(layer)) == [{"largest": 3.0}]
    assert own.draw("mixer", [layer], "black").axes
