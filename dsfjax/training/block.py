"""The computations of a program: the start, and a block of training steps with an evaluation.

Pure functions, to be compiled by :mod:`dsfjax.training.loop`. The data are made on the device
inside the scan, so a block moves nothing between device and host but its few metrics.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dsfjax.training import optimizer
from dsfjax.training.objective import query_loss
from dsfjax.training.program import NOT_YET, BlockMetrics, Carry, Members, Program
from dsfjax.training.step import DATA, HELD_OUT, TrainState, init_state, stream, train_step


def start(program: Program, which: Members) -> Carry:
    """Every member before its first step.

    Args:
        program: The program.
        which: Its members.

    Returns:
        The state before the first block.
    """

    def one(learning_rate: Array, seed: Array) -> TrainState:
        # No value of the optimiser's state depends on the schedule's length.
        adamw = optimizer.build(
            program.optimizer, learning_rate, total_steps=1, labels=program.model.labels
        )
        return init_state(program.model, adamw, jax.random.key(seed))

    not_yet = jnp.full(len(which.seed), NOT_YET, jnp.int32)
    return Carry(jax.vmap(one)(*which), jnp.zeros((), jnp.int32), not_yet, not_yet)


def train_block(
    program: Program, carry: Carry, which: Members, total_steps: Int[Array, ""]
) -> tuple[Carry, BlockMetrics]:
    """Train every member for a block of steps, then evaluate it.

    A member that has stopped is computed like the others and put back to what it was: a program
    has one shape.

    Args:
        program: The program.
        carry: The state before.
        which: The members.
        total_steps: Length of the schedule.

    Returns:
        The state after, and the metrics.
    """
    active = (carry.solved_at == NOT_YET) & (carry.diverged_at == NOT_YET)

    def train(state: TrainState, learning_rate: Array) -> tuple[TrainState, dict[str, Array]]:
        adamw = optimizer.build(
            program.optimizer, learning_rate, total_steps=total_steps, labels=program.model.labels
        )
        data_key = jax.random.key(0) if program.shared_data else state.key

        def step(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
            keys = jax.random.split(stream(data_key, DATA, state.step), program.batch_size)
            batch = jax.vmap(lambda key: program.sample(key, program.task))(keys)
            return train_step(state, batch, model=program.model, optimizer=adamw)

        return jax.lax.scan(step, state, length=program.block_steps)

    def keep_frozen(new: Array, old: Array) -> Array:
        return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    trained, train_metrics = jax.vmap(train)(carry.states, which.learning_rate)
    states = jax.tree.map(keep_frozen, trained, carry.states)
    held_out = jax.vmap(functools.partial(evaluate, program))(states.params)

    step = carry.step + program.block_steps
    finite = jnp.isfinite(train_metrics["loss"]).all(axis=1) & jnp.isfinite(held_out["loss"])
    diverged_at = jnp.where(active & ~finite, step, carry.diverged_at)
    solved_at = carry.solved_at
    if program.stop_at is not None:
        solved = active & finite & (held_out["accuracy"] >= program.stop_at)
        solved_at = jnp.where(solved, step, solved_at)
    metrics = BlockMetrics(
        train_metrics["loss"].mean(axis=1),
        train_metrics["accuracy"].mean(axis=1),
        held_out["loss"],
        held_out["accuracy"],
        active,
    )
    return Carry(states, step, solved_at, diverged_at), metrics


def evaluate(program: Program, params: PyTree) -> dict[str, Array]:
    """Loss and accuracy on the held-out examples, which are the same for every member and time.

    Args:
        program: The program.
        params: Parameters of one member.

    Returns:
        ``{"loss", "accuracy"}``, scalars.
    """

    def one(index: Array) -> dict[str, Array]:
        example = program.sample(stream(jax.random.key(0), HELD_OUT, index), program.task)
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        return query_loss(program.model, params, batch)[1]

    metrics = jax.lax.map(one, jnp.arange(program.eval_examples), batch_size=program.batch_size)
    return jax.tree.map(jnp.mean, metrics)
