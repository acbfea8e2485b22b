"""Training in bfloat16: master weights stay float32, and recall is learnt."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dsfjax.nn import ModelConfig, build
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import OptimizerConfig, TrainConfig, load, train

CONFIG = TrainConfig(
    MQARConfig(vocab_size=16, seq_len=8, num_kv_pairs=2),
    ModelConfig(
        "ssd",
        vocab_size=16,
        d_model=16,
        num_layers=1,
        d_state=8,
        block="mamba",
        surroundings="practice",
        precision="bfloat16",
    ),
    OptimizerConfig(schedule="constant"),
    batch_size=16,
    steps=200,
    eval_every=100,
    eval_examples=64,
    learning_rates=(1e-2,),
)


def test_training_in_bfloat16_learns_with_master_weights_in_float32(tmp_path: Path) -> None:
    with jax.enable_x64(False):
        train(CONFIG, tmp_path)
        run = load(tmp_path)
        first, last = (line["eval_loss"] for line in run.members[0].metrics)
        assert last < first < np.log(16)
        assert {leaf.dtype for leaf in jax.tree.leaves(run.params)} == {jnp.dtype("float32")}
        # Nothing was rounded to bfloat16 on its way: the weights use all their bits.
        kernel = run.params["blocks"]["block_0"]["mixer"]["project_out"]["kernel"]
        assert (kernel != kernel.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9


@pytest.mark.parametrize(
    "mixer",
    [
        "ssd",
        pytest.param("softmax_attention", marks=pytest.mark.slow),
        pytest.param("s6", marks=pytest.mark.slow),
    ],
)
def test_bfloat16_is_near_float32_and_is_computed_in_it(mixer: str) -> None:
    config = dataclasses.replace(CONFIG.architecture, mixer=mixer)
    with jax.enable_x64(False):
        half, whole = build(config), build(dataclasses.replace(config, precision="float32"))
        params = jax.jit(whole.init)(jax.random.key(0))
        tokens = jnp.arange(8)
        features = jax.eval_shape(half.features, params, tokens)
        assert features.dtype == jnp.bfloat16

        def loss(params, apply):
            return (apply(params, tokens) ** 2).mean()

        ours, reference = (
            jax.jit(jax.value_and_grad(lambda p, a=model.apply: loss(p, a)))(params)
            for model in (half, whole)
        )
        assert half.apply(params, tokens).dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
        for part in (0, 1):  # value and gradient, normwise
            x, y = (ravel_pytree(found[part])[0] for found in (ours, reference))
            assert float(jnp.abs(x - y).max()) <= 0.05 * float(jnp.abs(y).max())
        systems = jax.eval_shape(half.systems, params, tokens)
        assert {leaf.dtype for leaf in jax.tree.leaves(systems)} <= {jnp.dtype("float32")}
