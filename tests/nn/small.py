"""Small models of every architecture, with parameters away from their initial zeros and ones."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from dsfjax import nn

VOCAB = 11


def config(mixer: str, **own: Any) -> nn.ModelConfig:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 8, "d_state": 3, "num_heads": 2}
    return nn.ModelConfig(mixer, **{**sizes, **own})


class Compiled(NamedTuple):
    """A model, noisy parameters, and its functions compiled."""

    model: nn.Model
    params: Any
    apply: Any
    prefill: Any
    step: Any


@functools.cache
def compiled(mixer: str, **own: Any) -> Compiled:
    model = nn.build(config(mixer, **own))
    apply = jax.jit(model.apply)
    return Compiled(model, perturbed(model), apply, jax.jit(model.prefill), jax.jit(model.step))


def perturbed(model: nn.Model, seed: int = 0) -> Any:
    """Initial parameters plus noise. Not compiled as a whole: that takes longer than it saves."""
    rng = np.random.default_rng(seed)
    params = model.init(jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape), params)


def tokens(length: int, seed: int = 3) -> Array:
    return jax.random.randint(jax.random.key(seed), (length,), 0, VOCAB)
