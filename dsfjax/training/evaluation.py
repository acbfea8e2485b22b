"""A trained model on the held-out examples of any task that has its inputs and outputs."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array, PyTree

from dsfjax._util.ahead import quick_options
from dsfjax.nn import Model
from dsfjax.tasks import HELD_OUT, Task
from dsfjax.training.block import evaluate
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.program import Program, held_out_data


def score(
    model: Model,
    task: Task,
    params: PyTree,
    *,
    num_examples: int | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Evaluate a model on the first held-out examples of a task.

    Of the task that it was trained on this is the evaluation that training makes. Of the same task
    with other options it says how the model does there, as on the test split after a learning rate
    was chosen on the validation split.

    Args:
        model: The model.
        task: The task; its inputs and outputs are those of the model.
        params: Parameters of one member.
        num_examples: How many examples; all by default, which a task that makes its examples has
            no number of.
        batch_size: Examples at once.

    Returns:
        ``loss`` and the task's metrics.

    Raises:
        ValueError: If all examples are asked for and they never end.

    Example:
        >>> from dsfjax import nn, tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=64, seq_len=16)
        >>> config = nn.ModelConfig("ssd", task.vocab_size, d_model=4, num_layers=1)
        >>> model = nn.build(config)
        >>> found = score(model, task, model.init(jax.random.key(0)), num_examples=64)
        >>> 0 <= found["accuracy"] <= 1
        True
    """
    size = task.size(HELD_OUT)
    if num_examples is None and size is None:
        raise ValueError(
            "score: expected num_examples of a task that makes its examples, got None; say how many"
        )
    wanted = [count for count in (num_examples, size) if count is not None]
    program = Program(model, task, OptimizerConfig(), batch_size, 1, min(wanted))
    return scores(program, held_out_data(task), params)


def scores(
    program: Program, rows: PyTree, params: PyTree, states: PyTree | None = None
) -> dict[str, float]:
    """The evaluation of a program, by itself.

    Args:
        program: The program, for which it is compiled once.
        rows: The held-out data of its task.
        params: Parameters of one member.
        states: What the sequences continue, with a row per example; None for nothing.

    Returns:
        ``loss`` and the task's metrics.
    """
    found = _evaluate()(program, rows, params, states)
    return {name: float(value) for name, value in found.items()}


@functools.cache
def _evaluate() -> Any:
    # Made when it is first wanted, as options of the compiler depend on the devices. A program for
    # each length and split runs once or twice, often in less time than it takes to compile.
    def run(
        program: Program, rows: PyTree, params: PyTree, states: PyTree | None
    ) -> dict[str, Array]:
        return evaluate(program, rows, params, states=states)

    return jax.jit(run, static_argnums=0, compiler_options=quick_options(1))
