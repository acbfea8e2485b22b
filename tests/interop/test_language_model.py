"""A checkpoint of the authors' code as a `dsfjax.nn.Model`."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dsfjax.interop import language_model
from tests import goldens
from tests.interop import parity
from tests.systems_zoo import slow_unless


@pytest.mark.parametrize("name", slow_unless({"lm_softmax_mlp"}, ["lm_softmax_mlp", "lm_s6_2"]))
def test_a_checkpoint_decodes_token_by_token(name: str) -> None:
    file = goldens.load(name)
    authors = language_model(**file.meta["kwargs"])
    params = authors.params(file.group("p"))
    tokens = jnp.asarray(file["inputs"][0])

    @parity.jit
    def decode(params: Any, tokens: Any) -> Any:
        def step(state: Any, token: Any) -> Any:
            logits, state = authors.model.step(params, token, state)
            return state, logits

        state = authors.model.init_state(params, tokens.shape[0])
        return jax.lax.scan(step, state, tokens)[1]

    assert parity.normwise(decode(params, tokens), file["logits"][0]) < 1e-10


def test_the_training_settings_come_along() -> None:
    authors = language_model(**goldens.load("lm_softmax").meta["kwargs"])
    config = authors.config
    assert (config.mixer, config.block, config.max_length) == (
        "softmax_attention",
        "transformer",
        32,
    )
    assert (config.attention_dropout, config.embed_dropout, config.residual_dropout) == (
        0.1,
        0.1,
        0,
    )
    assert language_model(**goldens.load("lm_softmax_mlp").meta["kwargs"]).config.block == "prenorm"


def test_the_vocabulary_is_padded_as_in_the_original() -> None:
    kwargs = goldens.load("lm_s6_2").meta["kwargs"] | {
        "vocab_size": 61,
        "pad_vocab_size_multiple": 8,
    }
    shapes = language_model(**kwargs).shapes
    assert shapes["backbone.embeddings.word_embeddings.weight"] == (64, 32)
