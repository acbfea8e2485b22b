"""One step: it learns, and what it draws depends on the root key and the step alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsfjax.training import init_state, optimizer, query_loss, train_step
from dsfjax.training.step import DATA, DROPOUT, HELD_OUT, PARAMS, stream
from tests.training.toy import TOY, echo_batch

CONFIG = optimizer.OptimizerConfig(schedule="constant", weight_decay=0.0)


def test_overfits_one_batch() -> None:
    batch = echo_batch(0, 8)
    # Targets that say nothing of the inputs: to be learnt by heart.
    batch = batch._replace(targets=(batch.targets * 3 + jnp.arange(8)[:, None]) % 8)
    adamw = optimizer.build(CONFIG, 0.03)
    state = init_state(TOY, adamw, jax.random.key(0))
    step = jax.jit(lambda state: train_step(state, batch, model=TOY, optimizer=adamw))
    first = float(step(state)[1]["loss"])
    for _ in range(300):
        state, _ = step(state)
    loss, metrics = query_loss(TOY, state.params, batch)
    assert first > 1.5
    assert float(loss) < 0.1
    assert float(metrics["accuracy"]) == 1.0
    assert int(state.step) == 300


def test_step_is_plain_gradient_descent_with_sgd() -> None:
    batch, sgd = echo_batch(1, 4), optax.sgd(0.5)
    state = init_state(TOY, sgd, jax.random.key(3))
    after, metrics = train_step(state, batch, model=TOY, optimizer=sgd)
    key = stream(state.key, DROPOUT, 0)
    loss, gradient = jax.value_and_grad(lambda p: query_loss(TOY, p, batch, key)[0])(state.params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-14)
    for new, old, g in zip(
        *map(jax.tree.leaves, (after.params, state.params, gradient)), strict=True
    ):
        np.testing.assert_allclose(new, old - 0.5 * g, rtol=0, atol=1e-14)


def test_dropout_follows_the_step() -> None:
    batch, still = echo_batch(1, 4), optax.sgd(0.0)
    state = init_state(TOY, still, jax.random.key(3))
    losses = []
    for _ in range(3):
        state, metrics = train_step(state, batch, model=TOY, optimizer=still)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3
    again = state._replace(step=jnp.int32(1))
    _, metrics = train_step(again, batch, model=TOY, optimizer=still)
    assert float(metrics["loss"]) == losses[1]


def test_streams_are_disjoint() -> None:
    root = jax.random.key(0)
    keys = [
        tuple(jax.random.key_data(stream(root, which, step)).tolist())
        for which in (PARAMS, DATA, DROPOUT, HELD_OUT)
        for step in range(50)
    ]
    assert len(set(keys)) == len(keys)


def test_parts_of_a_batch_are_the_whole() -> None:
    batch, sgd = echo_batch(1, 6), optax.sgd(0.5)
    # Queries of several weights; the last third of the batch only fills it up.
    count = jnp.array([1.0, 2.0, 0.5, 1.0, 1.0, 1.0])
    batch = batch._replace(weights=jnp.ones(batch.targets.shape) * count[:, None])
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    state = init_state(TOY, sgd, jax.random.key(3))  # the toy has dropout
    own: Any = {"model": TOY, "optimizer": sgd, "weights": weights}
    step = jax.jit(
        lambda state, parts: train_step(state, batch, parts=parts, **own), static_argnums=1
    )
    (after, metrics), (other, means) = step(state, 1), step(state, 3)
    for a, b in zip(*map(jax.tree.leaves, ((after, metrics), (other, means))), strict=True):
        np.testing.assert_allclose(jax.random.key_data(a) if a.dtype == state.key.dtype else a,
                                   jax.random.key_data(b) if b.dtype == state.key.dtype else b,
                                   rtol=0, atol=1e-14)  # fmt: skip


def test_average_of_the_parameters() -> None:
    batch, sgd = echo_batch(1, 4), optax.sgd(0.5)
    state = init_state(TOY, sgd, jax.random.key(3), averaged=True)
    by_hand = state.params
    step = jax.jit(lambda s: train_step(s, batch, model=TOY, optimizer=sgd, average=0.9)[0])
    for _ in range(3):
        state = step(state)
        by_hand = jax.tree.map(lambda m, p: 0.9 * m + 0.1 * p, by_hand, state.params)
    for a, b in zip(*map(jax.tree.leaves, (state.judged, by_hand)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)
    assert init_state(TOY, sgd, jax.random.key(3)).judged is not None
