"""Programs compiled in other threads: in order, on the right thread, with their errors."""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dsfjax._util.ahead import ahead, compiled


class Program:
    """Records what happens to it, and where."""

    def __init__(self, name: int, said: list[Any], error: bool = False) -> None:
        self.name, self.said, self.error = name, said, error

    def compile(self) -> int:
        assert threading.current_thread() is not threading.main_thread()
        if self.error:
            raise RuntimeError(f"program {self.name}")
        return self.name


def test_programs_come_in_order_and_are_lowered_when_their_turn_is_near() -> None:
    said: list[str] = []

    def lower():
        for name in range(5):
            assert threading.current_thread() is threading.main_thread()
            said.append(f"lower {name}")
            yield Program(name, said)

    for name in compiled(lower(), lead=2):
        said.append(f"run {name}")
    assert said[:4] == ["lower 0", "lower 1", "lower 2", "run 0"]
    assert [x for x in said if x.startswith("run")] == [f"run {name}" for name in range(5)]
    assert said.index("lower 4") > said.index("run 1")


def test_an_error_comes_where_the_program_is_asked_for() -> None:
    found = compiled([Program(0, []), Program(1, [], error=True), Program(2, [])])
    assert next(found) == 0
    with pytest.raises(RuntimeError, match="program 1"):
        next(found)


@pytest.mark.parametrize("wide", [False, True])
def test_the_precision_is_that_of_the_lowering(wide: bool) -> None:
    # Settings of JAX belong to a thread; those of the lowering must hold for the program.
    with jax.enable_x64(wide):
        x = jnp.asarray(1 / 3, float)
        run = ahead(
            jax.jit(lambda x: (jnp.cumsum(jnp.ones(3, float) * x), x * 3)).lower(x)
        ).result()
        y, one = run(x)
        assert y.dtype == one.dtype == (jnp.float64 if wide else jnp.float32)
        assert abs(float(y[2]) - 1) < (1e-15 if wide else 1e-6)
