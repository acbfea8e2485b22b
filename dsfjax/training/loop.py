"""The one training loop: a program, a block at a time.

``jax.vmap`` runs all members of a program in one compiled computation, and a single run is a
program with one member. Learning rates, seeds and the length of the schedule are arguments of it,
so other values of them compile nothing.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dsfjax.training.block import start, train_block
from dsfjax.training.program import NOT_YET, BlockMetrics, Carry, Members, Program, members


class Block(NamedTuple):
    """A finished block, on the host.

    Attributes:
        step: Steps of the program so far.
        seconds: Wall time of the block, compilation not included.
        metrics: Numbers per member, as NumPy arrays.
        solved_at: As in :class:`Carry`, NumPy.
        diverged_at: As in :class:`Carry`, NumPy.
        carry: The state after the block, on the device. The next block reuses its memory: save
            what is needed before asking for another block.
    """

    step: int
    seconds: float
    metrics: BlockMetrics
    solved_at: np.ndarray
    diverged_at: np.ndarray
    carry: Carry


class Compiled(NamedTuple):
    """The two computations of a program, compiled for a number of members.

    Attributes:
        start: ``start(members) -> carry``.
        block: ``block(carry, members, total_steps) -> (carry, metrics)``; it consumes the carry.
        seconds: Wall time of the compilation.
    """

    start: Callable[[Members], Carry]
    block: Callable[[Carry, Members, Array], tuple[Carry, BlockMetrics]]
    seconds: float


@functools.lru_cache(maxsize=32)
def compile_program(program: Program, num_members: int) -> Compiled:
    """Compile a program, once per process for equal arguments.

    Args:
        program: What to compile.
        num_members: How many members it trains.

    Returns:
        The compiled computations. Their memory is that of one carry: a block consumes its input.
    """
    began = time.perf_counter()
    shapes = _shapes(num_members)
    total_steps = jax.ShapeDtypeStruct((), jnp.int32)
    first = jax.jit(functools.partial(start, program)).lower(shapes).compile()
    block = jax.jit(functools.partial(train_block, program), donate_argnums=0)
    block = block.lower(template(program, num_members), shapes, total_steps).compile()
    return Compiled(first, block, time.perf_counter() - began)


def template(program: Program, num_members: int) -> Carry:
    """The shapes and dtypes of a program's carry; nothing is compiled or allocated.

    Args:
        program: The program.
        num_members: How many members it trains.

    Returns:
        A carry of ``jax.ShapeDtypeStruct``.
    """
    return jax.eval_shape(functools.partial(start, program), _shapes(num_members))


def run(
    program: Program,
    which: Members,
    steps: int,
    carry: Carry | None = None,
) -> Iterator[Block]:
    """Train until ``steps`` are taken or no member is left to train, a block at a time.

    Args:
        program: What to run.
        which: Its members.
        steps: Length of the run, a multiple of ``program.block_steps``; the schedule ends there.
        carry: Where to go on from (it is consumed); None starts afresh.

    Yields:
        Each block when it is done.

    Raises:
        ValueError: If ``steps`` is no positive multiple of ``program.block_steps``.

    Examples:
        >>> from dsfjax.nn import ModelConfig, build
        >>> from dsfjax.tasks import mqar
        >>> from dsfjax.training.optimizer import OptimizerConfig
        >>> task = mqar.MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4)
        >>> model = build(ModelConfig("linear_attention", vocab_size=64, d_model=4, num_layers=1))
        >>> program = Program(model, mqar.sample, task, OptimizerConfig(), 4, 2, 4)
        >>> [block.step for block in run(program, members([1e-3, 1e-2], [0]), steps=4)]
        [2, 4]
    """
    if steps < 1 or steps % program.block_steps:
        nearest = max(1, round(steps / program.block_steps)) * program.block_steps
        raise ValueError(
            f"expected steps to be a positive multiple of the {program.block_steps} steps of a "
            f"block, got {steps}; nearest: {nearest}"
        )
    compiled = compile_program(program, len(which.seed))
    if carry is None:
        carry = compiled.start(which)
    step = int(carry.step)
    frozen = np.asarray((carry.solved_at != NOT_YET) | (carry.diverged_at != NOT_YET))
    while step < steps and not frozen.all():
        began = time.perf_counter()
        carry, on_device = compiled.block(carry, which, jnp.asarray(steps, jnp.int32))
        metrics, solved_at, diverged_at = jax.device_get(
            (on_device, carry.solved_at, carry.diverged_at)
        )
        step += program.block_steps
        seconds = time.perf_counter() - began
        frozen = (solved_at != NOT_YET) | (diverged_at != NOT_YET)
        yield Block(step, seconds, metrics, solved_at, diverged_at, carry)


def _shapes(num_members: int) -> Members:
    return jax.eval_shape(lambda: members([0.0], range(num_members)))
