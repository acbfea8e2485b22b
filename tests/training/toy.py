"""A model and a task so small that a test can afford to train them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dsfjax.nn import Model
from dsfjax.tasks import Example, Generated

VOCAB = 8
WIDTH = 16


def _init(key: Array) -> PyTree:
    embed, mix, head = jax.random.split(key, 3)
    return {
        "embed": jax.random.normal(embed, (VOCAB, WIDTH)),
        "mix": {
            "weight": jax.random.normal(mix, (2 * WIDTH, WIDTH)) / WIDTH**0.5,
            "bias": jnp.zeros(WIDTH),
        },
        "head": jax.random.normal(head, (WIDTH, VOCAB)) / WIDTH**0.5,
    }


def _features(
    params: PyTree, tokens: Array, *, key: Array | None = None, dropout: Array | None = None
) -> Array:
    x = params["embed"][tokens]
    mean = jnp.cumsum(x, axis=0) / jnp.arange(1, len(x) + 1)[:, None]
    mixed = jnp.concatenate([x, mean], axis=1) @ params["mix"]["weight"] + params["mix"]["bias"]
    if key is not None:
        keep = 0.9 if dropout is None else 1 - dropout
        mixed = mixed * jax.random.bernoulli(key, keep, mixed.shape) / keep
    return jnp.tanh(mixed)


def _head(params: PyTree, features: Array) -> Array:
    return features @ params["head"]


def _apply(params: PyTree, tokens: Array, **keywords: Any) -> Array:
    return _head(params, _features(params, tokens, **keywords))


def _labels(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: "decay" if leaf.ndim > 1 else "no_decay", params)


def _unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("training decodes nothing")


TOY = Model(
    init=_init,
    features=_features,
    head=_head,
    apply=_apply,
    labels=_labels,
    **{name: _unused for name in Model._fields[5:] if name not in Model._field_defaults},  # type: ignore[arg-type]
)
"""Embedding, causal mean, a dense layer with dropout, and a head, on eight token ids."""


def echo(key: Array, length: int) -> Example:
    """A task that asks for the very token it shows, at the last two positions."""
    tokens = jax.random.randint(key, (length,), 0, VOCAB, jnp.int32)
    positions = jnp.arange(length - 2, length, dtype=jnp.int32)
    return Example(tokens, positions, tokens[positions])


@dataclasses.dataclass(frozen=True)
class Echo(Generated):
    """:func:`echo` as a task."""

    seq_len: int = 6
    vocab_size: int = VOCAB

    def sample(self, key: Array) -> Example:
        return echo(key, self.seq_len)


def echo_batch(seed: int, size: int, length: int = 6) -> Example:
    """A batch of :func:`echo`."""
    keys = jax.random.split(jax.random.key(seed), size)
    return jax.vmap(lambda key: echo(key, length))(keys)
