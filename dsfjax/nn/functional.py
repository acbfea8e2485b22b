"""A module as plain functions: everything above `nn` uses `Model` and nothing of Flax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dsfjax.core import KernelSystem, System
from dsfjax.nn.binding import bind
from dsfjax.nn.config import ModelConfig
from dsfjax.nn.mixer import Surrounding
from dsfjax.nn.model import DecodeState, SequenceModel
from dsfjax.nn.pieces import param_dtype

Params = dict[str, Any]


class Model(NamedTuple):
    """A sequence model as pure functions of its parameters, on one sequence; batch by `jax.vmap`.

    Attributes:
        init: ``init(key) -> params``, a nested dict of arrays.
        features: ``features(params, tokens (L,), *, reset=None, key=None, dropout=None,
            added=None)``, (L, d). A key means training: dropout is on, where the config has a rate
            above 0, at that rate or at ``dropout``, which may be traced. ``added`` has an array
            (L, d_out) per layer to be added to the outputs of its system: the gradient to it is
            that to these outputs.
        head: ``head(params, features (…, d)) -> logits (…, vocab)``; for a classifier
            (num_classes,) from (L, d).
        apply: ``apply(params, tokens, *, reset=None, key=None, dropout=None) -> logits``.
        labels: ``labels(params) -> params`` of strings, "decay" or "no_decay".
        systems: ``systems(params, tokens, *, reset=None) -> ((System, u), …)``, one per layer.
        init_state: ``init_state(params, max_length) -> DecodeState``; only caches use max_length.
        prefill: ``prefill(params, tokens (L,), state) -> (logits (L, vocab), state)``.
        step: ``step(params, token (), state) -> (logits (vocab,), state)``, constant memory.
        generate: ``generate(params, prompt (L,), num_tokens, *, key=None, temperature=0.0) ->
            tokens (num_tokens,)``; greedy at temperature 0, sampled with ``key`` above.
        channels: Values per step of what stands for tokens here, (L, channels); 0 for token ids.
        pooled: Whether the head reads a whole sequence, as that of a classifier does.
    """

    init: Callable[[Array], Params]
    features: Callable[..., Array]
    head: Callable[[Params, Array], Array]
    apply: Callable[..., Array]
    labels: Callable[[Params], Params]
    systems: Callable[..., tuple[tuple[System | KernelSystem, Array], ...]]
    init_state: Callable[[Params, int], DecodeState]
    prefill: Callable[[Params, Array, DecodeState], tuple[Array, DecodeState]]
    step: Callable[[Params, Array, DecodeState], tuple[Array, DecodeState]]
    generate: Callable[..., Array]
    channels: int = 0
    pooled: bool = False


def build(config: ModelConfig, around: Surrounding | None = None) -> Model:
    """The model of a config as pure functions.

    Args:
        config: The model.
        around: What surrounds the recurrence, in place of ``config.surroundings``.

    Returns:
        A `Model`.

    Raises:
        ValueError: While building, before anything is compiled: sizes that do not divide,
            attention dropout without attention.
        TypeError: Also while building, for options that the architecture does not have.

    Example:
        >>> model = build(ModelConfig("ssd", vocab_size=16, d_model=8, d_state=4))
        >>> params = model.init(jax.random.key(0))
        >>> model.apply(params, jnp.arange(5)).shape, model.generate(params, jnp.arange(5), 3).shape
        ((5, 16), (3,))
    """

    def make(rngs: nnx.Rngs) -> SequenceModel:
        return SequenceModel(config, around, rngs=rngs)

    module = bind(make)

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key))))

    def features(
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        key: Array | None = None,
        dropout: Array | float | None = None,
        added: tuple[Array, ...] | None = None,
    ) -> Array:
        own = module(params)
        return own.features(tokens, reset=reset, key=key, dropout=dropout, added=added)

    def head(params: Params, x: Array) -> Array:
        return module(params).head(x)

    def apply(
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        key: Array | None = None,
        dropout: Array | float | None = None,
    ) -> Array:
        return head(params, features(params, tokens, reset=reset, key=key, dropout=dropout))

    def labels(params: Params) -> Params:
        return _labels(module(params), params)

    def systems(params: Params, tokens: Array, *, reset: Array | None = None) -> Any:
        return module(params).systems(tokens, reset=reset)

    def init_state(params: Params, max_length: int) -> DecodeState:
        return module(params).init_state(max_length)

    def prefill(params: Params, tokens: Array, state: DecodeState) -> tuple[Array, DecodeState]:
        x, state = module(params).prefill(tokens, state)
        return head(params, x), state

    def step(params: Params, token: Array, state: DecodeState) -> tuple[Array, DecodeState]:
        x, state = module(params).step(token, state)
        return head(params, x), state

    def generate(
        params: Params,
        prompt: Array,
        num_tokens: int,
        *,
        key: Array | None = None,
        temperature: float = 0.0,
    ) -> Array:
        _check_generate(config, prompt.shape[0], num_tokens, temperature, key)
        key = jax.random.key(0) if key is None else key
        return continue_text(params, prompt, key, temperature, num_tokens, temperature == 0)

    # One function for the life of the model: its loop is compiled once for each pair of lengths.
    @partial(jax.jit, static_argnums=(4, 5))
    def continue_text(
        params: Params,
        prompt: Array,
        key: Array,
        temperature: Array | float,
        num_tokens: int,
        greedy: bool,
    ) -> Array:
        state = init_state(params, prompt.shape[0] + num_tokens)
        logits, state = prefill(params, prompt, state)
        keys = jax.random.split(key, num_tokens)

        def sample(logits: Array, key: Array) -> Array:
            if greedy:
                return jnp.argmax(logits, axis=-1).astype(prompt.dtype)
            return jax.random.categorical(key, logits / temperature).astype(prompt.dtype)

        def advance(
            carry: tuple[Array, DecodeState], key: Array
        ) -> tuple[tuple[Array, DecodeState], Array]:
            logits, state = carry
            token = sample(logits, key)
            return step(params, token, state), token

        return jax.lax.scan(advance, (logits[-1], state), keys)[1]

    _check_attention_dropout(config, init, module)
    return Model(
        init,
        features,
        head,
        apply,
        labels,
        systems,
        init_state,
        prefill,
        step,
        generate,
        channels=config.channels,
        pooled=config.head == "classifier",
    )


def _labels(module: SequenceModel, params: Params) -> Params:
    """Matrices decay; biases, norms, learned positions and what an architecture exempts do not."""
    labels = jax.tree.map(lambda x: "decay" if x.ndim > 1 else "no_decay", params)
    if "positions" in labels:
        labels["positions"] = jax.tree.map(lambda _: "no_decay", params["positions"])
    for name, block in module.blocks.items():
        mixer, core = block.mixer, params["blocks"][name]["mixer"]["core"]
        named = mixer.params_type(**{k: core.get(k) for k in mixer.params_type._fields})
        own = mixer.arch.labels(named)._asdict()
        labels["blocks"][name]["mixer"]["core"] = {k: v for k, v in own.items() if v is not None}
    return labels


def _check_generate(
    config: ModelConfig, prompt: int, num_tokens: int, temperature: float, key: Array | None
) -> None:
    if config.head == "classifier":
        raise ValueError("generate: a classifier has no next token; use head = 'tied' or 'untied'.")
    if prompt < 1 or num_tokens < 1:
        raise ValueError(
            "generate: expected at least one token of prompt and one to generate, got "
            f"{prompt} and {num_tokens}."
        )
    if config.max_length and prompt + num_tokens > config.max_length:
        raise ValueError(
            f"generate: the model has {config.max_length} learned positions (max_length), got a "
            f"prompt of {prompt} tokens and {num_tokens} to generate."
        )
    if temperature < 0 or (temperature > 0 and key is None):
        raise ValueError(
            "generate: expected temperature 0, or above 0 and a key to sample with, got "
            f"{temperature} and {'no key' if key is None else 'a key'}."
        )


def _check_attention_dropout(
    config: ModelConfig, init: Callable[[Array], Params], module: Callable[[Params], SequenceModel]
) -> None:
    if not config.attention_dropout:
        return
    params = jax.eval_shape(init, jax.random.key(0))
    values = jax.ShapeDtypeStruct((2, config.channels), param_dtype())
    tokens = values if config.channels else jax.ShapeDtypeStruct((2,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(lambda p, t, k: module(p).features(t, key=k), params, tokens, key)
