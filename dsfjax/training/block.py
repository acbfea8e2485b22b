"""The computations of a program: the start, and a block of training steps with an evaluation.

Pure functions, compiled by :mod:`dsfjax.training.compilation`. Examples are made on the device
inside the scan, or gathered from data that stay there, so a block moves nothing between device and
host but its few metrics.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dsfjax.training import objective, optimizer
from dsfjax.training.objective import query_loss
from dsfjax.training.program import (
    NOT_YET,
    BlockMetrics,
    Carry,
    Data,
    Members,
    Program,
    numbers,
)
from dsfjax.training.step import DATA, HELD_OUT, TrainState, init_state, train_step


def start(program: Program, which: Members) -> Carry:
    """Every member before its first step.

    Args:
        program: The program.
        which: Its members.

    Returns:
        The state before the first block.
    """

    def one(member: Members) -> TrainState:
        # No value of the optimiser's state depends on the schedule's length.
        adamw = optimizer.build(
            program.optimizer, member.learning_rate, total_steps=1, labels=program.model.labels
        )
        averaged = program.optimizer.average is not None
        key = jax.random.key(member.seed)
        state = init_state(program.model, adamw, key, averaged=averaged)
        params = _scale(program, state.params, member.init_scale)
        return state._replace(params=params, average=params if averaged else None)

    not_yet = jnp.full(len(which.seed), NOT_YET, jnp.int32)
    never = jnp.full(len(which.seed), jnp.inf, float)
    zero = jnp.zeros((), jnp.int32)
    return Carry(_each(one, which), zero, never, not_yet, not_yet, not_yet, not_yet)


def _scale(program: Program, params: PyTree, factor: Float[Array, ""]) -> PyTree:
    def scale(label: str, leaf: Array) -> Array:
        return leaf * factor.astype(leaf.dtype) if label == "decay" else leaf

    return jax.tree.map(scale, program.model.labels(params), params)


def train_block(
    program: Program,
    data: Data,
    carry: Carry,
    which: Members,
    total_steps: Int[Array, ""],
    *,
    axis_name: str | None = None,
) -> tuple[Carry, BlockMetrics]:
    """Train every member for a block of steps, then evaluate it.

    Where none of the members trains any more, nothing is computed. A member that has stopped while
    others train is computed like them and put back to what it was: a program has one shape.

    Args:
        program: The program.
        data: The task's.
        carry: The state before.
        which: The members.
        total_steps: Length of the schedule.
        axis_name: Axis of the devices that a batch is divided over, if it is.

    Returns:
        The state after, and the metrics; NaN where nothing was computed.
    """
    active = jnp.asarray(carry.active)

    def step(states: TrainState, index: Array) -> tuple[TrainState, dict[str, Array]]:
        # All members that train are at the program's step: shared batches are drawn once for all.
        now = carry.step + index
        draw = functools.partial(_draw, program, data.train, axis_name=axis_name)
        shared = draw(jax.random.key(0), now) if program.shared_data else None

        def one(state: TrainState, member: Members) -> tuple[TrainState, dict[str, Array]]:
            adamw = optimizer.build(
                program.optimizer,
                member.learning_rate,
                total_steps=total_steps,
                weight_decay=member.weight_decay,
                labels=program.model.labels,
            )
            batch, weights = draw(state.key, now) if shared is None else shared
            return train_step(
                state,
                batch,
                model=program.model,
                optimizer=adamw,
                loss=functools.partial(
                    query_loss,
                    measure=program.task.measure,
                    dropout=member.dropout,
                    axis_name=axis_name,
                ),
                weights=weights,
                parts=program.accumulate,
                average=program.optimizer.average,
                axis_name=axis_name,
            )

        return _each(one, states, which)

    def keep_frozen(new: Array, old: Array) -> Array:
        return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    # That of every loss. It is not asked of `train` itself, which would be traced once more.
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(carry.states.params)), jnp.float32)

    def numbers_of(means: dict[str, Array]) -> dict[str, Array]:
        return {name: means[name].astype(dtype) for name in numbers(program.task)}

    def train(states: TrainState) -> tuple[TrainState, dict[str, Array], dict[str, Array]]:
        steps = jnp.arange(program.block_steps, dtype=jnp.int32)
        trained, of_training = jax.lax.scan(step, states, steps)
        states = jax.tree.map(keep_frozen, trained, states)
        judge = functools.partial(evaluate, program, data.held_out, axis_name=axis_name)
        of_training = jax.tree.map(lambda each: each.mean(axis=0), of_training)
        held_out = _each(judge, states.judged)
        return states, numbers_of(_of_means(program, of_training)), numbers_of(held_out)

    def rest(states: TrainState) -> tuple[TrainState, dict[str, Array], dict[str, Array]]:
        nothing = jnp.full(len(active), jnp.nan, dtype)
        each = dict.fromkeys(numbers(program.task), nothing)
        return states, each, each

    states, of_training, held_out = jax.lax.cond(active.any(), train, rest, carry.states)
    metrics = BlockMetrics(of_training, held_out, active)
    finite = jnp.isfinite(of_training["loss"]) & jnp.isfinite(held_out["loss"])
    return _judge(program, carry, states, metrics, finite), metrics


def _each(function: Callable[..., Any], *trees: PyTree) -> Any:
    """`jax.vmap`; but a single member needs no batch, whose matrix products are slower on CPUs."""
    if len(jax.tree.leaves(trees)[0]) > 1:
        return jax.vmap(function)(*trees)
    out = function(*jax.tree.map(lambda leaf: leaf[0], trees))
    return jax.tree.map(lambda leaf: leaf[None], out)


def _draw(
    program: Program,
    rows: PyTree,
    key: Array,
    step: Int[Array, ""],
    *,
    axis_name: str | None = None,
) -> tuple[PyTree, Float[Array, " b"] | None]:
    """The examples of a step, and their weights in its loss; None for the same for all.

    A fixed data set needs no memory: what was drawn at a step is drawn again an epoch later.
    """
    size, weights = program.batch_size, None
    if program.train_examples is not None:
        step = step % -(-program.train_examples // size)
        if program.train_examples % size:
            weights = (step * size + jnp.arange(size) < program.train_examples).astype(float)
            weights = objective.own(weights, axis_name)
    picks = program.task.picks(jax.random.fold_in(key, DATA), step, size)
    picks = objective.own(picks, axis_name)
    return jax.vmap(lambda pick: program.task.drawn(pick, rows))(picks), weights


def _judge(
    program: Program, carry: Carry, states: TrainState, metrics: BlockMetrics, finite: Array
) -> Carry:
    """The carry after a block: which members have been solved, diverged or stopped improving."""
    active, step = metrics.active, carry.step + program.block_steps
    loss = metrics.held_out["loss"].astype(carry.best_loss.dtype)
    better = active & finite & (loss < carry.best_loss)
    best_at = jnp.where(better, step, carry.best_at)
    solved_at, plateau_at = carry.solved_at, carry.plateau_at
    if program.stop_at is not None:
        metric, limit = program.task.metric, program.stop_at
        value = metrics.held_out[metric.name]
        enough = value >= limit if metric.higher_is_better else value <= limit
        solved = active & finite & enough
        solved_at = jnp.where(solved, step, solved_at)
    if program.patience is not None:
        stuck = active & finite & (step - best_at >= program.patience * program.block_steps)
        plateau_at = jnp.where(stuck & (solved_at == NOT_YET), step, plateau_at)
    return Carry(
        states,
        step,
        jnp.where(better, loss, carry.best_loss),
        best_at,
        solved_at,
        jnp.where(active & ~finite, step, carry.diverged_at),
        plateau_at,
    )


def evaluate(
    program: Program,
    rows: PyTree,
    params: PyTree,
    *,
    axis_name: str | None = None,
    states: PyTree | None = None,
) -> dict[str, Array]:
    """Loss and metrics on the held-out examples, which are the same for every member and time.

    Args:
        program: The program.
        rows: The held-out data of the task.
        params: Parameters of one member.
        axis_name: Axis of the devices that the examples are divided over, if they are.
        states: What the sequences continue, with a row per example; None for nothing.

    Returns:
        ``loss`` and the task's metrics, scalars. Every query has its weight, in whichever example
        it is, so an example of which all queries only fill up counts for nothing.
    """

    def one(index: Array) -> tuple[dict[str, Array], Array]:
        pick = program.task.held_out(jax.random.fold_in(jax.random.key(0), HELD_OUT), index)
        batch = jax.tree.map(lambda leaf: leaf[None], program.task.example(pick, rows))
        model = program.model
        if states is not None:
            own = jax.tree.map(lambda leaf: leaf[index], states)
            model = model._replace(features=functools.partial(model.features, state=own))
        means = query_loss(model, params, batch, measure=program.task.measure)[1]
        weight = jnp.ones(()) if batch.weights is None else batch.weights.astype(float).sum()
        return means, jnp.where(index < size, weight, 0)  # 0: it only fills up the last batch

    size, devices = program.eval_examples, 1 if axis_name is None else jax.lax.axis_size(axis_name)
    each = -(-size // devices)
    together = min(program.batch_size // devices, each)
    # Whole batches only: `jax.lax.map` would trace and compile what is left over once more.
    filled = -(-each // together) * together * devices
    indices = objective.own(jnp.arange(filled), axis_name)
    means, weights = jax.lax.map(one, indices, batch_size=together)
    weights = weights.astype(means["loss"].dtype)
    # The mean of an example without weight is NaN, which times 0 would not be 0.
    sums = {name: jnp.where(weights > 0, weights * x, 0).sum() for name, x in means.items()}
    # Every device that has a part of a sequence has a term of its means, and knows its weight.
    sums = objective.total(sums, program.model.shards.axis_name)
    sums, weight = objective.total((sums, weights.sum()), axis_name)
    return _of_means(program, {name: part / weight for name, part in sums.items()})


def _of_means(program: Program, means: dict[str, Array]) -> dict[str, Array]:
    """The metrics, given the means over queries of what the task measures."""
    known = {metric.name: metric for metric in program.task.measured()}
    return {name: known[name].of_mean(x) if name in known else x for name, x in means.items()}
