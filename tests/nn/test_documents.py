"""Padding on the right, several documents in one sequence, reading both ways, values as answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import nn
from dsfjax.tasks import Example
from dsfjax.training import objective
from tests.nn.small import config, tokens
from tests.reference_loop import error

CHEAP = config("linear_attention", num_layers=1)
"""One program of few operations; the convolution and gates of "practice" are for the slow tests."""
CLASSES = {"head": "classifier", "num_classes": 3}


def small_model(own: nn.ModelConfig):
    model = nn.build(own)
    return model, jax.jit(model.init)(jax.random.key(0))


def both_ways(own: nn.ModelConfig) -> nn.ModelConfig:
    return dataclasses.replace(own, bidirectional=True, **CLASSES)


@pytest.mark.parametrize(
    "own",
    [
        CHEAP,
        pytest.param(config("ssd", surroundings="practice"), marks=pytest.mark.slow),
    ],
    ids=["paper", "practice"],
)
def test_a_bidirectional_classifier_does_not_see_padding_or_other_documents(own) -> None:
    model, params = small_model(both_ways(own))
    ids = tokens(12)
    # Every program sees twelve tokens: what comes after `length` must not matter.
    apply, features = (jax.jit(f) for f in (model.apply, model.features))
    other = ids.at[9:].set((ids[9:] + 1) % 7)
    one, two = (apply(params, x, length=jnp.array(9)) for x in (ids, other))
    assert error(one, two) < 1e-14
    assert error(apply(params, ids, length=jnp.array(12)), one) > 1e-3
    assert error(one, apply(params, ids[:9])) < 1e-13
    reset = jnp.arange(12) == 5
    together = features(params, ids, reset=reset, length=jnp.array(9))
    first = features(params, ids, reset=reset, length=jnp.array(5))[:5]
    assert error(together[:5], first) < 1e-13
    changed = features(params, ids.at[2].add(1), reset=reset, length=jnp.array(9)) - together
    per_step = np.abs(np.asarray(changed)).max(axis=1)
    assert (per_step[:5] > 1e-9).all()  # a token changes what is read before it, too
    assert (per_step[5:9] == 0).all()
    with pytest.raises(ValueError, match="a bidirectional model reads whole sequences"):
        model.init_state(params, 4)
    assert not model.causal


def test_systems_of_a_bidirectional_model_are_two_a_layer() -> None:
    model, params = small_model(both_ways(CHEAP))
    example = Example(tokens(12), jnp.array([11]), jnp.array([2]), length=jnp.array(9))

    @jax.jit
    def look(params, example):
        u = [u for _, u in model.systems(params, example.inputs, length=example.length)]
        return u, objective.output_gradients(model, params, example)

    u, gradients = look(params, example)
    assert len(u) == len(gradients) == both_ways(CHEAP).num_systems == 2
    assert all(float(abs(g).max()) > 0 for g in gradients)
    # Nothing that the padding gives is asked for; in the reversed sequence it comes first.
    assert float(abs(gradients[0][9:]).max()) == float(abs(gradients[1][:3]).max()) == 0


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_classifier_of_pairs(pooling: str) -> None:
    own = dataclasses.replace(CHEAP, num_documents=2, pooling=pooling, **CLASSES)
    model, params = small_model(own)
    ids, features = tokens(12), jax.jit(model.features)
    reset = jnp.arange(12) == 5
    found = jax.jit(model.apply)(params, ids, reset=reset, length=jnp.array(9))
    x = np.asarray(features(params, ids, reset=reset))
    u, v = (part.mean(axis=0) if pooling == "mean" else part[-1] for part in (x[:5], x[5:9]))
    x = np.concatenate([u, v, u * v, u - v])
    for name in ("pair_map", "head_map"):
        x = x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        x = np.asarray(jax.nn.gelu(x, approximate=False)) if name == "pair_map" else x
    assert error(found, x) < 1e-13
    with pytest.raises(ValueError, match="a classifier of pairs expects reset"):
        jax.eval_shape(model.apply, params, ids)


def test_values_at_every_step() -> None:
    model, params = small_model(
        config("linear_attention", num_layers=1, head="values", num_outputs=3)
    )
    features = jax.jit(model.features)(params, tokens(6))
    by_hand = features @ params["head_map"]["kernel"] + params["head_map"]["bias"]
    assert error(jax.jit(model.apply)(params, tokens(6)), by_hand) < 1e-14
    with pytest.raises(ValueError, match="a head of values names no next token"):
        model.generate(params, tokens(4), 2)
    with pytest.raises(ValueError, match="the head 'values' needs num_outputs > 0"):
        config("ssd", head="values")
    with pytest.raises(ValueError, match="expected num_documents of 1, or 2 for a classifier"):
        config("ssd", num_documents=2)


def test_blocks_of_logits_and_remat_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = config("linear_attention", num_layers=1)
    _, params = small_model(plain)
    keys = jax.random.split(jax.random.key(2), 3)
    shape = 3, 7
    batch = Example(
        jax.random.randint(keys[0], shape, 0, plain.vocab_size),
        jnp.tile(jnp.arange(7), (3, 1)),
        jax.random.randint(keys[1], shape, 0, plain.vocab_size),
        weights=jax.random.uniform(keys[2], shape),
        length=jnp.array([7, 5, 3]),
    )

    def gradient(own):
        loss = lambda params: objective.query_loss(nn.build(own), params, batch)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (expected, numbers), whole = gradient(plain)
    monkeypatch.setattr(objective, "BLOCK", 4 * plain.vocab_size)  # 21 queries in blocks of 4
    (found, means), blockwise = gradient(dataclasses.replace(plain, remat=True))
    assert error(found, expected) < 1e-14 and error(means["accuracy"], numbers["accuracy"]) < 1e-14
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), blockwise, whole)
