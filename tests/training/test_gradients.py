"""Gradients to the outputs of the systems, against finite differences of the whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import nn
from dsfjax.engines import scan
from dsfjax.tasks import mqar
from dsfjax.training.objective import output_gradients, query_loss

TASK = mqar.MQARConfig(vocab_size=16, seq_len=8, num_kv_pairs=2)


@pytest.mark.parametrize("mixer", ["ssd", "softmax_attention"])
def test_what_is_added_to_an_output_moves_the_loss(mixer: str) -> None:
    config = nn.ModelConfig(mixer, vocab_size=16, d_model=8, d_state=4, surroundings="practice")
    model = nn.build(config)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), model.init(jax.random.key(1)))
    example = mqar.sample(jax.random.key(2), TASK)
    found = jax.jit(lambda p: output_gradients(model, p, example))(params)
    batch = jax.tree.map(lambda x: x[None], example)

    @jax.jit
    def loss(added: tuple[jax.Array, ...]) -> jax.Array:
        def features(p: dict, tokens: jax.Array, **options: object) -> jax.Array:
            return model.features(p, tokens, added=added, **options)

        return query_loss(model._replace(features=features), params, batch)[0]

    rng = np.random.default_rng(0)
    for layer in range(2):
        direction = [jnp.zeros_like(x) for x in found]
        direction[layer] = jnp.asarray(rng.standard_normal(found[layer].shape))
        ahead, behind = (loss(tuple(h * x for x in direction)) for h in (1e-5, -1e-5))
        slope = jnp.vdot(found[layer], direction[layer])
        np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-6, atol=1e-10)
        assert found[layer].shape[1] == model.systems(params, example.inputs)[layer][0].output_width
    assert float(jnp.abs(found[0]).max()) > 0


def test_what_is_added_stands_where_the_system_puts_its_output() -> None:
    model = nn.build(nn.ModelConfig("ssd", vocab_size=16, d_model=8, d_state=4, num_layers=1))
    params, tokens = model.init(jax.random.key(1)), jnp.arange(6)

    # Where the output is taken away, what the system reads no longer matters.
    def silent(tokens: jax.Array) -> jax.Array:
        ((system, u),) = model.systems(params, tokens)
        return model.features(params, tokens, added=(-scan(system, u)[0],))

    other = tokens.at[:5].set(9)
    np.testing.assert_allclose(silent(tokens)[5], silent(other)[5], rtol=1e-9)
    moved = model.features(params, tokens)[5] - model.features(params, other)[5]
    assert float(jnp.abs(moved).max()) > 1e-6
