"""The loss at the queries is the dense loss, computed for less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.nn import ModelConfig, build
from dsfjax.tasks import mqar
from dsfjax.training import full_loss, query_loss
from tests.training.toy import TOY, VOCAB, echo_batch


@pytest.mark.parametrize("key", [None, jax.random.key(7)], ids=["eval", "train"])
def test_query_loss_is_full_loss(key: jax.Array | None) -> None:
    batch = echo_batch(0, 5)
    labels = mqar.labels(batch)
    assert (np.asarray(labels) != -100).sum() == 10
    params = TOY.init(jax.random.key(1))
    (sparse, sparse_metrics), sparse_grad = jax.value_and_grad(
        lambda p: query_loss(TOY, p, batch, key), has_aux=True
    )(params)
    (dense, dense_metrics), dense_grad = jax.value_and_grad(
        lambda p: full_loss(TOY, p, batch.inputs, labels, key), has_aux=True
    )(params)
    np.testing.assert_allclose(sparse, dense, rtol=1e-14)
    assert sparse_metrics["accuracy"] == pytest.approx(float(dense_metrics["accuracy"]), rel=1e-14)
    for a, b in zip(jax.tree.leaves(sparse_grad), jax.tree.leaves(dense_grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_values_against_numpy() -> None:
    batch = echo_batch(3, 4)
    params = TOY.init(jax.random.key(2))
    losses, hits = [], []
    for tokens, positions, targets in zip(*map(np.asarray, batch[:3]), strict=True):
        logits = np.asarray(TOY.apply(params, jnp.asarray(tokens)))[positions]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses.append(-np.log(probabilities[np.arange(2), targets]))
        hits.append(logits.argmax(axis=1) == targets)
    loss, metrics = query_loss(TOY, params, batch)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-13)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-13)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-13)


def test_full_loss_weighs_labels_not_sequences() -> None:
    batch = echo_batch(4, 2)
    labels = np.full((2, 6), -100)
    labels[0, :] = np.asarray(batch.inputs[0])
    labels[1, 5] = int(batch.inputs[1, 5])
    params = TOY.init(jax.random.key(2))
    logits = jax.vmap(lambda tokens: TOY.apply(params, tokens))(batch.inputs)
    terms = -np.asarray(jax.nn.log_softmax(logits))[labels != -100, labels[labels != -100]]
    assert terms.shape == (7,)
    loss, _ = full_loss(TOY, params, batch.inputs, jnp.asarray(labels))
    np.testing.assert_allclose(loss, terms.mean(), rtol=1e-13)


def test_low_precision_logits_are_summed_in_float32() -> None:
    batch = echo_batch(5, 3)
    model = TOY._replace(head=lambda params, x: (x @ params["head"]).astype(jnp.bfloat16))
    params = TOY.init(jax.random.key(0))
    loss, _ = query_loss(model, params, batch)
    assert loss.dtype == jnp.float32
    assert abs(float(loss) - float(query_loss(TOY, params, batch)[0])) < 0.05
    assert float(loss) == pytest.approx(np.log(VOCAB), abs=1.5)


def test_dropout_only_with_a_key() -> None:
    batch, params = echo_batch(6, 3), TOY.init(jax.random.key(0))
    losses = [float(query_loss(TOY, params, batch, key)[0]) for key in (None, None)]
    assert losses[0] == losses[1]
    dropped = [float(query_loss(TOY, params, batch, jax.random.key(i))[0]) for i in (0, 1)]
    assert len({*losses, *dropped}) == 3


@jax.enable_x64(False)  # Flax's norms promote float64 by themselves
def test_nothing_is_promoted_in_silence() -> None:
    """Loss and gradient of a model with a convolution, with strict dtypes and without rank."""
    task = mqar.MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4)
    config = ModelConfig("linear_attention", 64, d_model=4, num_layers=1, surroundings="practice")
    model, batch = build(config), mqar.batch(jax.random.key(0), task, 2)
    params = jax.jit(model.init)(jax.random.key(1))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        slope = jax.jit(jax.value_and_grad(lambda p: query_loss(model, p, batch)[0]))
        loss, gradient = slope(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, gradient)))
