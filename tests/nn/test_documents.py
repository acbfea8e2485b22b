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

pytestmark = pytest.mark.xdist_group("models")

BOTH_WAYS = config(
    "ssd",
    surroundings="practice",
    bidirectional=True,
    head="classifier",
    num_classes=3,
    num_layers=2,
)


def small_model(own):
    model = nn.build(own)
    return model, jax.jit(model.init)(jax.random.key(0))


def test_a_bidirectional_classifier_does_not_see_padding_or_other_documents() -> None:
    model, params = small_model(BOTH_WAYS)
    ids, apply = tokens(12), jax.jit(model.apply)
    alone, padded = apply(params, ids[:9]), apply(params, ids, length=jnp.array(9))
    assert error(padded, alone) < 1e-14
    assert error(apply(params, ids), alone) > 1e-3  # the padding is not zero
    reset = jnp.arange(12) == 5
    features = jax.jit(model.features)
    together = features(params, ids, reset=reset, length=9)
    first, second = features(params, ids[:5]), features(params, ids[5:9])
    assert error(together[:9], np.concatenate([first, second])) < 1e-13
    # A token changes what is read before it, too.
    other = ids.at[8].set((ids[8] + 1) % 7)
    changed = np.asarray(features(params, other) - features(params, ids))
    assert (np.abs(changed[0]) > 1e-9).any()
    with pytest.raises(ValueError, match="a bidirectional model reads whole sequences"):
        model.init_state(params, 4)
    assert not model.causal


def test_systems_of_a_bidirectional_model_are_two_a_layer() -> None:
    model, params = small_model(BOTH_WAYS)
    ids = tokens(12)
    example = Example(ids, jnp.array([11]), jnp.array([2]), length=jnp.array(9))
    systems, u = nn.stack_layers(model.systems(params, ids, length=9))
    assert len(jax.tree.leaves(u)[0]) == BOTH_WAYS.num_systems == 4
    gradients = objective.output_gradients(model, params, example)
    assert len(gradients) == 4 and all(float(abs(g).max()) > 0 for g in gradients)
    # Nothing that the padding gives is asked for; in the reversed sequence it comes first.
    assert float(abs(gradients[0][9:]).max()) == float(abs(gradients[1][:3]).max()) == 0
    del systems


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_classifier_of_pairs(pooling: str) -> None:
    own = dataclasses.replace(
        BOTH_WAYS, bidirectional=False, surroundings="paper", num_documents=2, pooling=pooling
    )
    model, params = small_model(own)
    ids, features = tokens(12), jax.jit(model.features)
    found = jax.jit(model.apply)(params, ids, reset=jnp.arange(12) == 5, length=9)
    u, v = (np.asarray(features(params, part)) for part in (ids[:5], ids[5:9]))
    u, v = (x.mean(axis=0) if pooling == "mean" else x[-1] for x in (u, v))
    x = np.concatenate([u, v, u * v, u - v])
    for name in ("pair_map", "head_map"):
        x = x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        x = np.asarray(jax.nn.gelu(x, approximate=False)) if name == "pair_map" else x
    assert error(found, x) < 1e-13
    with pytest.raises(ValueError, match="a classifier of pairs expects reset"):
        model.apply(params, ids)


def test_values_at_every_step() -> None:
    model, params = small_model(
        config("linear_attention", num_layers=1, head="values", num_outputs=3)
    )
    features = model.features(params, tokens(6))
    by_hand = features @ params["head_map"]["kernel"] + params["head_map"]["bias"]
    assert error(model.apply(params, tokens(6)), by_hand) < 1e-14
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
