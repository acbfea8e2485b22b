"""One training step as a pure function of its state.

Every random number of a run comes from one root key, the *stream* it is for and the step it is
used at, never from a key that is split and carried along. So a run that is stopped and resumed at
step t draws what it would have drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dsfjax.nn import Model
from dsfjax.training.objective import query_loss, total

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
    """

    params: PyTree
    opt_state: Any
    step: Int[Array, ""]
    key: PRNGKeyArray


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
    model: Model, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> TrainState:
    """The state before the first step.

    Args:
        model: The model.
        optimizer: The optimiser.
        key: Root PRNG key of the run.

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
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Loss = query_loss,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One gradient step on one batch.

    Args:
        state: The state before.
        batch: What ``loss`` reads.
        model: The model.
        optimizer: The optimiser that ``state.opt_state`` belongs to.
        loss: ``loss(model, params, batch, key) -> (loss, metrics)``.
        axis_name: Axis of the devices that the batch is divided over; ``loss`` is then this
            device's term of the whole batch's loss. The state is the same on all of them.

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

    def objective(params: PyTree) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        return loss(model, params, batch, stream(state.key, DROPOUT, state.step))

    (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    metrics, gradient = total((metrics, gradient), axis_name)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1, state.key), metrics
