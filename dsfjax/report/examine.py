"""A trained model looked into: all registered aspects, on a few held-out sequences."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dsfjax import aspects
from dsfjax._util.ahead import quick_options
from dsfjax.nn import Model
from dsfjax.tasks import Example, Task
from dsfjax.training.probes import asked_of, held_out, stacks_of

# Held-out sequences that are looked at.
NUM_EXAMPLES = 8


def examine(
    model: Model,
    params: PyTree,
    task: Task,
    *,
    count: int = NUM_EXAMPLES,
    looks: Sequence[aspects.Aspect] | None = None,
) -> aspects.Findings:
    """Run a model on held-out sequences and read its systems.

    Args:
        model: The model.
        params: Parameters of one member.
        task: The task it was trained on.
        count: Number of sequences, the first that training is evaluated on.
        looks: The aspects; all that are registered by default.

    Returns:
        What every aspect found.

    Numerics:
        Sequences and layers go by one after the other, in one program that is compiled once for a
        model, its length and a list of aspects.
    """
    return Examination(model, params, task, count=count, looks=looks).compile()()


class Examination:
    """`examine` in three steps, so that the programs of several models can be compiled at once.

    Making one traces and lowers the program, ``compile`` compiles it, and what that returns
    executes it. Only ``compile`` may run on another thread (see `dsfjax._util.ahead`).

    Args:
        model: The model.
        params: Parameters of one member.
        task: The task it was trained on.
        count: Number of sequences.
        looks: The aspects; all that are registered by default.
    """

    def __init__(
        self,
        model: Model,
        params: PyTree,
        task: Task,
        *,
        count: int = NUM_EXAMPLES,
        looks: Sequence[aspects.Aspect] | None = None,
    ) -> None:
        self._inputs = params, held_out(task, count)
        leaves, structure = jax.tree.flatten(self._inputs)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        self._aspects = aspects.registered() if looks is None else tuple(looks)
        self._program = _program(model, task, self._aspects, structure, shapes)

    def compile(self) -> Callable[[], aspects.Findings]:
        """Compile the program, unless an equal one has been compiled.

        Returns:
            A function that runs it and gives what it found.
        """
        run = self._program.run
        return lambda: aspects.summarise(
            self._aspects, jax.tree.map(np.asarray, run(*self._inputs))
        )


class _Program:
    """A lowered program that is compiled when it is first asked for."""

    def __init__(self, lowered: jax.stages.Lowered) -> None:
        self._lowered = lowered

    @functools.cached_property
    def run(self) -> Callable[..., tuple[aspects.Measured, ...]]:
        return self._lowered.compile(compiler_options=quick_options())


@functools.lru_cache(maxsize=32)
def _program(
    model: Model, task: Task, looks: tuple[aspects.Aspect, ...], structure: Any, shapes: Any
) -> _Program:
    @jax.jit
    def run(params: PyTree, batch: Example) -> tuple[aspects.Measured, ...]:
        # Systems are small next to what is made of them, so those of all sequences are kept.
        layers = jax.lax.map(functools.partial(stacks_of, model, task, params), batch)
        asked = jax.vmap(functools.partial(asked_of, task))(batch)
        return aspects.measure(looks, layers, asked)

    return _Program(run.lower(*jax.tree.unflatten(structure, shapes)))
