"""One training step as a pure function of its state.

Every random number of a run comes from one root key, the *stream* it is for and the step it is
used at, never from a key that is split and carried along. So a run that is stopped and resumed at
step t draws what it would have drawn.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from dsfjax.nn import Model
from dsfjax.training.objective import keys_of, query_loss, total

PARAMS, DATA, DROPOUT, HELD_OUT = range(4)
"""The streams of a root key."""

Loss = Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


class TrainState(NamedTuple):
    """All that changes while a model trains.

    Attributes:
        params: Parameters of the model.
        opt_state: State of the optimiser.
        step: Steps taken, int32 scalar.
        key: Root PRNG key of the run; it does not change.
        average: Moving average of the parameters, or None.
    """

    params: PyTree
    opt_state: Any
    step: Int[Array, ""]
    key: PRNGKeyArray
    average: PyTree | None = None

    @property
    def judged(self) -> PyTree:
        """The parameters that the model is judged by: their average if there is one."""
        return self.params if self.average is None else self.average


def stream(key: PRNGKeyArray, which: int, step: Int[Array, ""] | int) -> PRNGKeyArray:
    """The key of one stream at one step.

    Args:
        key: Root PRNG key.
        which: ``PARAMS``, ``DATA``, ``DROPOUT`` or ``HELD_OUT``.
        step: The step, or the index of a held-out example.

    Returns:
        A PRNG key.

    Examples:
        >>> import jax
        >>> root = jax.random.key(0)
        >>> bool(stream(root, DATA, 3) == stream(root, DROPOUT, 3))
        False
    """
    return jax.random.fold_in(jax.random.fold_in(key, which), step)


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    averaged: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
        model: The model.
        optimizer: The optimiser.
        key: Root PRNG key of the run.
        averaged: Whether there is a moving average of the parameters, which starts as they do.

    Returns:
        Fresh parameters, fresh optimiser state, step 0 and the key.

    Examples:
        >>> import jax
        >>> from dsfjax.nn import ModelConfig, build
        >>> from dsfjax.training import optimizer
        >>> adamw = optimizer.build(optimizer.OptimizerConfig(schedule="constant"), 1e-3)
        >>> model = build(ModelConfig("linear_attention", vocab_size=64, d_model=4, num_layers=1))
        >>> start = jax.jit(lambda key: init_state(model, adamw, key))
        >>> int(start(jax.random.key(0)).step)
        0
    """
    params = model.init(stream(key, PARAMS, 0))
    average = params if averaged else None
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), key, average)


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Loss = query_loss,
    weights: Shaped[Array, " b"] | None = None,
    parts: int = 1,
    average: float | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One gradient step on one batch.

    Args:
        state: The state before.
        batch: What ``loss`` reads.
        model: The model.
        optimizer: The optimiser that ``state.opt_state`` belongs to.
        loss: ``loss(model, params, batch, key, weights=weights) -> (loss, metrics)``, a mean over
            what its batch asks.
        weights: Weights of the sequences in that mean; None for the same weight for all.
        parts: Parts of the batch, of `Example`, that are computed one after the other, with the
            memory of one (gradient accumulation). The gradient differs from the whole batch's by
            rounding only, with dropout as well.
        average: Decay rate of the moving average of the parameters, if the state has one.
        axis_name: Axis of the devices that the batch is divided over; ``loss`` is then this
            device's term of the whole batch's loss. The state is the same on all of them, as on
            those that the sequences of the model are cut over.

    Returns:
        The state after, and the metrics of the batch before the step.

    Examples:
        >>> import jax
        >>> from dsfjax.nn import ModelConfig, build
        >>> from dsfjax.tasks import Example
        >>> from dsfjax.training import optimizer
        >>> batch = Example(jnp.array([[1, 7, 0, 1]]), jnp.array([[3]]), jnp.array([[7]]))
        >>> adamw = optimizer.build(optimizer.OptimizerConfig(schedule="constant"), 1e-3)
        >>> model = build(ModelConfig("linear_attention", vocab_size=8, d_model=4, num_layers=1))
        >>> state = jax.jit(lambda key: init_state(model, adamw, key))(jax.random.key(1))
        >>> step = jax.jit(lambda state: train_step(state, batch, model=model, optimizer=adamw))
        >>> state, metrics = step(state)
        >>> int(state.step), sorted(metrics)
        (1, ['accuracy', 'loss'])
    """
    key = stream(state.key, DROPOUT, state.step)
    own = functools.partial(loss, model)
    found = _gradient(own, state.params, batch, key, weights, parts, axis_name)
    metrics, gradient = total(found, axis_name, model.shards.axis_name)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    mean = state.average
    if mean is not None and average is not None:
        mean = jax.tree.map(lambda m, p: average * m + (1 - average) * p, mean, params)
    return TrainState(params, opt_state, state.step + 1, state.key, mean), metrics


def _gradient(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    key: PRNGKeyArray,
    weights: Shaped[Array, " b"] | None,
    parts: int,
    axis_name: str | None,
) -> tuple[dict[str, Float[Array, ""]], PyTree]:
    """Metrics and gradient of a batch, computed in so many parts."""
    differentiate = jax.value_and_grad(loss, has_aux=True)
    given = {} if weights is None else {"weights": weights}
    if parts == 1:
        (_, metrics), gradient = differentiate(params, batch, key, **given)
        return metrics, gradient

    def cut(leaf: Array) -> Array:
        return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])

    # Each example has the key that it would have in the whole batch.
    keys = keys_of(key, len(batch.inputs), axis_name)
    rows, keys, given = jax.tree.map(cut, (batch, keys, given))
    # A part's loss is a mean over its own queries, so it counts by what they weigh in the whole.
    each = jnp.ones(rows.query_positions.shape) if rows.weights is None else rows.weights
    each = each * given["weights"][..., None] if given else each
    weight = total(each.sum(axis=(1, 2)), axis_name)
    share = weight / weight.sum()

    def add(sums: PyTree, part: tuple[PyTree, Array, dict[str, Array], Array]) -> Any:
        rows, keys, given, share = part
        (_, metrics), gradient = differentiate(params, rows, keys, **given)
        # A part that only fills up has no mean: it is NaN, which times 0 would not be 0.
        terms = jax.tree.map(
            lambda x: jnp.where(share > 0, share.astype(x.dtype) * x, 0), (metrics, gradient)
        )
        return jax.tree.map(jnp.add, sums, terms), None

    first = jax.tree.map(lambda leaf: leaf[0], (rows, keys, given))
    (_, metrics), gradient = jax.eval_shape(
        lambda rows, keys, given: differentiate(params, rows, keys, **given), *first
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (metrics, gradient))
    return jax.lax.scan(add, zeros, (rows, keys, given, share))[0]
