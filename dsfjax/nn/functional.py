"""A module as plain functions: everything above `nn` uses `Model` and nothing of Flax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dsfjax.core import KernelSystem, Precision, System
from dsfjax.engines import WHOLE, Shards
from dsfjax.nn.binding import bind
from dsfjax.nn.buildable import Buildable
from dsfjax.nn.mixer import Surrounding
from dsfjax.nn.model import DecodeState, SequenceModel
from dsfjax.nn.model_config import ModelConfig
from dsfjax.nn.pieces import param_dtype
from dsfjax.nn.precision import as_input, computed
from dsfjax.nn.tokens import token_ids

Params = dict[str, Any]


def _mixers(block: Any) -> list[str]:
    """Names of the mixers of a block, in a dict of its parameters."""
    return [name for name in block if name.startswith("mixer")]


def _stays_whole(axis_name: str) -> Any:
    raise ValueError(
        "Model.over: expected a model that dsfjax.nn.build made, got one that cannot cut sequences "
        f"over the axis {axis_name!r}; give it a function `over`."
    )


def _nothing(params: Params) -> tuple[Any, ...]:
    return ()


class Model(NamedTuple):
    """A sequence model as pure functions of its parameters, on one sequence; batch by `jax.vmap`.

    Attributes:
        init: ``init(key) -> params``, a nested dict of arrays.
        features: ``features(params, tokens (L,), *, reset=None, length=None, key=None,
            dropout=None, added=None, state=None)``, (L, d). Tokens from ``length`` on are padding.
            A key means training: dropout is on, where the config has a rate above 0, at that rate
            or at ``dropout``, which may be traced. ``added`` has an array (L, d_out) per system to
            be added to its outputs: the gradient to it is that to these outputs. The tokens
            continue ``state``, a `DecodeState`.
        head: ``head(params, features (…, d)) -> logits (…, vocab)``; for a classifier
            (num_classes,) from (L, d), with ``length`` and ``reset`` as above; for a decoder
            (num_decoded, vocab) from (L, d).
        apply: ``apply(params, tokens, *, reset=None, length=None, key=None, dropout=None) ->
            logits``.
        labels: ``labels(params) -> params`` of strings: "decay", "no_decay", or "dynamics" for what
            an architecture exempts from weight decay, such as A_log, the bias of Δ and D.
        systems: ``systems(params, tokens, *, reset=None, length=None) -> ((System, u), …)``, one
            per layer; two of a bidirectional model, the second on the reversed sequence.
        init_state: ``init_state(params, max_length) -> DecodeState``; only caches use max_length.
        prefill: ``prefill(params, tokens (L,), state, *, start=None) -> (logits (L, vocab),
            state)``. The document begins at token ``start``, which may be traced: the tokens before
            it are padding, and they and ``state`` are forgotten there. A start that is not one of
            these tokens changes nothing: pieces of a padded prompt are given start, start − L, ….
        step: ``step(params, token (), state) -> (logits (vocab,), state)``, constant memory.
        generate: ``generate(params, prompt (L,), num_tokens, *, key=None, temperature=0.0,
            start=None) -> tokens (num_tokens,)``; greedy at temperature 0, sampled with ``key``
            above. Prompts of several lengths are padded on the left, with any ids, and run as
            ``jax.vmap(lambda prompt, start: generate(params, prompt, 10, start=start))(prompts,
            starts)``. Temperature and start may be traced.
        channels: Values per step of what stands for tokens here, (L, channels); 0 for token ids.
        pooled: Whether the head reads a whole sequence, as that of a classifier or decoder does.
        causal: Whether it can continue a sequence; a bidirectional model has no decode state.
        past: ``past(params) -> (…)``, what every mixer has next to its state before the first token
            (`dsfjax.systems.Architecture.past`), None where the state is all.
        shards: The devices that its sequences are cut over. Within `jax.shard_map` the functions
            above then take this device's tokens and ``reset`` and the ``length`` of the whole
            sequence, and give its features; a pooled head gives the same on all devices. Nothing
            decodes.
        over: ``over(axis_name) -> Model``, the same model of sequences that are cut over the
            devices along an axis of the mesh.
    """

    init: Callable[[Array], Params]
    features: Callable[..., Array]
    head: Callable[[Params, Array], Array]
    apply: Callable[..., Array]
    labels: Callable[[Params], Params]
    systems: Callable[..., tuple[tuple[System | KernelSystem, Array], ...]]
    init_state: Callable[[Params, int], DecodeState]
    prefill: Callable[..., tuple[Array, DecodeState]]
    step: Callable[[Params, Array, DecodeState], tuple[Array, DecodeState]]
    generate: Callable[..., Array]
    channels: int = 0
    pooled: bool = False
    causal: bool = True
    past: Callable[[Params], tuple[Any, ...]] = _nothing
    shards: Shards = WHOLE
    over: Callable[[str], Any] = _stays_whole


def build(
    config: ModelConfig | Buildable, around: Surrounding | None = None, *, shards: Shards = WHOLE
) -> Model:
    """The model of a config as pure functions.

    Args:
        config: The model; one of another kind than `ModelConfig` is built by itself.
        around: What surrounds the recurrence, in place of ``config.surroundings``.
        shards: The devices that sequences are cut over; by default they are whole.

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
    if isinstance(config, Buildable):
        if around is not None or shards != WHOLE:
            raise ValueError(
                f"build: expected neither around nor shards with {type(config).__name__}, which "
                "builds its model by itself."
            )
        return config.build()
    policy, exact = Precision.named(config.precision), replace(config, precision="float32")

    def make(rngs: nnx.Rngs, config: ModelConfig = exact) -> SequenceModel:
        return SequenceModel(config, around, shards=shards, rngs=rngs)

    full = bind(make)
    inexact = full if config == exact else bind(partial(make, config=config))

    def module(params: Params) -> SequenceModel:
        if policy.compute is None:
            return inexact(params)
        return inexact(computed(policy, params, _kept(labels(params))))

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key))))

    def features(
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        length: Array | int | None = None,
        key: Array | None = None,
        dropout: Array | float | None = None,
        added: tuple[Array, ...] | None = None,
        state: DecodeState | None = None,
    ) -> Array:
        own, tokens = module(params), as_input(policy, tokens)
        return own.features(
            tokens,
            reset=reset,
            length=length,
            key=key,
            dropout=dropout,
            added=added,
            state=state,
        )

    def head(
        params: Params,
        x: Array,
        *,
        length: Array | int | None = None,
        reset: Array | None = None,
    ) -> Array:
        return module(params).head(x, length=length, reset=reset)

    def apply(
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        length: Array | int | None = None,
        key: Array | None = None,
        dropout: Array | float | None = None,
    ) -> Array:
        x = features(params, tokens, reset=reset, length=length, key=key, dropout=dropout)
        return head(params, x, length=length, reset=reset)

    def labels(params: Params) -> Params:
        return _labels(full(params), params)

    def systems(
        params: Params,
        tokens: Array,
        *,
        reset: Array | None = None,
        length: Array | int | None = None,
    ) -> Any:
        # What is analysed is analysed in full precision, whatever the model was trained in.
        return full(params).systems(tokens, reset=reset, length=length)

    def init_state(params: Params, max_length: int) -> DecodeState:
        return module(params).init_state(max_length)

    def prefill(
        params: Params,
        tokens: Array,
        state: DecodeState,
        *,
        start: Array | int | None = None,
    ) -> tuple[Array, DecodeState]:
        own = module(params)
        x, state = own.prefill(tokens, state, start=start)
        return own.head(x, start=start), state

    def step(params: Params, token: Array, state: DecodeState) -> tuple[Array, DecodeState]:
        x, state = module(params).step(token, state)
        return head(params, x), state

    def generate(
        params: Params,
        prompt: ArrayLike | Sequence[int],
        num_tokens: int,
        *,
        key: Array | None = None,
        temperature: ArrayLike = 0.0,
        start: Array | int | None = None,
    ) -> Array:
        ids = _check_generate(config, prompt, num_tokens, temperature, key, start)
        greedy = not isinstance(temperature, Tracer) and bool(temperature == 0)
        key = jax.random.key(0) if key is None else key
        return continue_text(params, ids, key, temperature, start, num_tokens, greedy)

    # One function for the life of the model: its loop is compiled once for each pair of lengths.
    @partial(jax.jit, static_argnums=(5, 6))
    def continue_text(
        params: Params,
        prompt: Array,
        key: Array,
        temperature: ArrayLike,
        start: Array | int | None,
        num_tokens: int,
        greedy: bool,
    ) -> Array:
        own = module(params)
        state = own.init_state(prompt.shape[0] + num_tokens)
        x, state = own.prefill(prompt, state, start=start)
        # Of the prompt, only the last token's logits are needed: there may be many ids.
        logits = own.head(x[-1])
        keys = jax.random.split(key, num_tokens)

        def sample(logits: Array, key: Array) -> Array:
            likeliest = jnp.argmax(logits, axis=-1).astype(prompt.dtype)
            if greedy:
                return likeliest
            cold = jnp.asarray(temperature) == 0  # known only now if it is traced
            heat = jnp.where(cold, 1, temperature).astype(logits.dtype)
            drawn = jax.random.categorical(key, logits / heat).astype(prompt.dtype)
            return jnp.where(cold, likeliest, drawn)

        def advance(
            carry: tuple[Array, DecodeState], key: Array
        ) -> tuple[tuple[Array, DecodeState], Array]:
            logits, state = carry
            token = sample(logits, key)
            return step(params, token, state), token

        return jax.lax.scan(advance, (logits, state), keys)[1]

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
        pooled=config.head in ("classifier", "decoder"),
        causal=not config.bidirectional,
        past=lambda params: module(params).past(),
        shards=shards,
        over=lambda axis_name: build(config, around, shards=Shards(axis_name)),
    )


def _labels(module: SequenceModel, params: Params) -> Params:
    """Matrices decay; biases, norms, learned positions and dynamics do not."""
    labels = jax.tree.map(lambda x: "decay" if x.ndim > 1 else "no_decay", params)
    if "positions" in labels:
        labels["positions"] = jax.tree.map(lambda _: "no_decay", params["positions"])
    for name, block in module.blocks.items():
        for which in _mixers(labels["blocks"][name]):
            mixer, core = getattr(block, which), params["blocks"][name][which]["core"]
            named = mixer.params_type(**{k: core.get(k) for k in mixer.params_type._fields})
            own = mixer.arch.labels(named)._asdict()
            labels["blocks"][name][which]["core"] = {
                k: jax.tree.map(lambda label: "decay" if label == "decay" else "dynamics", v)
                for k, v in own.items()
                if v is not None
            }
    return labels


def _kept(labels: Params) -> Params:
    """Which parameters keep their type in any precision: what sets the decays of a state."""
    keep = jax.tree.map(lambda _: False, labels)
    for name, block in labels["blocks"].items():
        for which in _mixers(block):
            core = jax.tree.map(lambda label: label == "dynamics", block[which]["core"])
            keep["blocks"][name][which]["core"] = core
    return keep


def _check_generate(
    config: ModelConfig,
    prompt: Any,
    num_tokens: int,
    temperature: Any,
    key: Array | None,
    start: Any,
) -> Array:
    """The ids of the prompt, if all that is known while tracing fits together."""
    if config.head in ("classifier", "decoder"):
        raise ValueError(
            f"generate: a {config.head} has no next token; use head = 'tied' or 'untied'."
        )
    if config.num_outputs:
        raise ValueError(
            "generate: a head of values names no next token; use head = 'tied' or 'untied'."
        )
    if config.channels:
        raise ValueError(
            f"generate: expected a model of token ids, got one of {config.channels} channels, "
            "which has no next token."
        )
    ids = token_ids("generate", prompt, config.vocab_size)
    length = ids.shape[0]
    if num_tokens < 1:
        raise ValueError(f"generate: expected at least one token to generate, got {num_tokens}.")
    if config.max_length and length + num_tokens > config.max_length:
        raise ValueError(
            f"generate: the model has {config.max_length} learned positions (max_length), got a "
            f"prompt of {length} tokens and {num_tokens} to generate."
        )
    if jnp.shape(temperature) != ():
        raise ValueError(
            f"generate: expected one temperature, got shape {jnp.shape(temperature)}; for several "
            "use jax.vmap."
        )
    traced = isinstance(temperature, Tracer)
    if not traced and np.asarray(temperature).dtype.kind in "OSUc":
        raise TypeError(f"generate: expected temperature to be a number, got {temperature!r}.")
    if not traced and not 0 <= temperature < math.inf:
        raise ValueError(f"generate: expected a finite temperature >= 0, got {temperature}.")
    if key is None and (traced or temperature > 0):
        raise ValueError(
            "generate: expected a key to sample with, which a temperature needs that is "
            f"{'traced' if traced else temperature}, got none; pass key=jax.random.key(0)."
        )
    if start is not None:
        if jnp.shape(start) != () or not jnp.issubdtype(jnp.result_type(start), jnp.integer):
            raise ValueError(
                f"generate: expected start to be one integer, got {start}; for several prompts use "
                "jax.vmap."
            )
        if not isinstance(start, Tracer) and not 0 <= start < length:
            raise ValueError(
                f"generate: expected start to be one of the {length} tokens of the prompt, got "
                f"{start}."
            )
    return ids


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
