"""The model around the blocks, as an NNX module on one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from dsfjax.core import KernelSystem, Precision, System
from dsfjax.core.resets import positions
from dsfjax.core.rows import dot_general, projected
from dsfjax.engines import WHOLE, Shards
from dsfjax.nn.mixer import MixerState, Surrounding
from dsfjax.nn.model_config import ModelConfig
from dsfjax.nn.pattern import Layer
from dsfjax.nn.pieces import ACTIVATIONS, Decoder, dropout, linear, norm, param_dtype
from dsfjax.nn.precision import products
from dsfjax.nn.residual_block import Block
from dsfjax.nn.tokens import token_ids

Tokens = Int[Array, " L"] | Float[Array, "L channels"]
"""A sequence as the model reads it: token ids, or the values of a model with channels."""


class DecodeState(NamedTuple):
    """What decoding carries: the position within the document and the state of every mixer."""

    position: Array
    layers: tuple[MixerState, ...]


class SequenceModel(nnx.Module):
    """Embedding, optional learned positions, blocks, final norm and head.

    Where sequences are cut over devices (``shards``), what is (L, …) here are the steps of one of
    them; ``length`` counts those of the whole sequence. With ``layers`` = () it has no blocks: what
    is around them, for whoever runs them one by one.
    """

    def __init__(
        self,
        config: ModelConfig,
        around: Surrounding | None = None,
        *,
        shards: Shards = WHOLE,
        layers: Sequence[Layer] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.shards = config, shards
        d, dtype = config.d_model, param_dtype()
        self.precision = Precision.named(config.precision)
        precision = products(self.precision)
        embed_init = nnx.initializers.normal(0.02)
        if config.channels:
            # With a bias of zero the norm after it would leave nothing but signs of one channel.
            self.embed = nnx.Linear(
                config.channels,
                d,
                kernel_init=nnx.initializers.normal(config.channels**-0.5),
                bias_init=nnx.initializers.normal(1.0),
                param_dtype=dtype,
                precision=precision,
                dot_general=dot_general,
                rngs=rngs,
            )
        else:
            self.embed = nnx.Embed(
                config.vocab_size, d, embedding_init=embed_init, param_dtype=dtype, rngs=rngs
            )
        if config.max_length:
            self.positions = nnx.Embed(
                config.max_length, d, embedding_init=embed_init, param_dtype=dtype, rngs=rngs
            )
        self.blocks = nnx.Dict(
            {
                f"block_{i}": Block(config, layer, around, number=i + 1, shards=shards, rngs=rngs)
                for i, layer in enumerate(config.layers if layers is None else layers)
            }
        )
        self.norm_f = norm(config.norm, d, rngs=rngs)
        make = partial(linear, init=config.init, precision=precision, rngs=rngs)
        if config.num_documents > 1:
            self.pair_map = make(4 * d, d)
        if config.head == "decoder":
            self.decoder = Decoder(
                config.num_decoded, d, config.vocab_size, kind=config.norm, make=make, rngs=rngs
            )
        elif config.head != "tied":
            width = config.num_classes or config.num_outputs or config.vocab_size
            self.head_map = make(d, width, bias=config.head != "untied")

    def features(
        self,
        tokens: Tokens,
        *,
        reset: Bool[Array, " L"] | None = None,
        length: Int[Array, ""] | int | None = None,
        key: Array | None = None,
        dropout: Float[Array, ""] | float | None = None,
        added: tuple[Float[Array, "L _"], ...] | None = None,
        state: DecodeState | None = None,
    ) -> Float[Array, "L d"]:
        """Features (L, d) of tokens (L,), or of values (L, channels).

        Args:
            tokens: Token ids, or values.
            reset: True where a document starts.
            length: Number of tokens that are not padding on the right, which only a bidirectional
                model has to know: nothing passes from padding to what is before it.
            key: Turns dropout on.
            dropout: A rate in place of those of the config that are not 0; it may be traced.
            added: What is added to the outputs of every system, in the order of `systems`; None for
                nothing.
            state: What the tokens continue; None for nothing.
        """
        return self._run(tokens, state, reset, key, dropout, added, length)[0]

    def head(
        self,
        features: Float[Array, "... d"],
        *,
        start: Int[Array, ""] | int | None = None,
        length: Int[Array, ""] | int | None = None,
        reset: Bool[Array, " L"] | None = None,
    ) -> Float[Array, "... k"]:
        """Logits (…, vocab) of features (…, d); for a classifier (num_classes,) of (L, d).

        A decoder makes (num_decoded, vocab) of the last features of (L, d).

        A classifier pools over the tokens from ``start`` on, after padding on the left, and before
        ``length``, where padding on the right begins. That of pairs pools each of the two documents
        that ``reset`` tells apart.
        """
        if self.config.head == "tied":
            table = self.embed.embedding[...]  # type: ignore[attr-defined]  # of ids, not of channels
            precision = products(self.precision)
            sums = jnp.promote_types(features.dtype, jnp.float32)
            logits = projected(features, table, axis=1, precision=precision, sums=sums)
            return self._capped(logits)
        if self.config.head == "classifier":
            if features.ndim < 2:
                raise ValueError(
                    "head: a classifier pools over a sequence, expected features (…, L, d), got "
                    f"{features.shape}. Use prefill or apply instead of step."
                )
            features = self._pool(features, start, length, reset)
        if self.config.head == "decoder":
            last = self.shards.row(features, -1 if length is None else length - 1)
            return self.decoder(last.astype(jnp.promote_types(last.dtype, jnp.float32)))
        # Whatever the activations are, logits are sums in float32.
        return self._capped(
            self.head_map(features.astype(jnp.promote_types(features.dtype, jnp.float32)))
        )

    def _capped(self, logits: Array) -> Array:
        """Logits with the scale and the soft cap of the config."""
        scale, cap = self.config.logit_scale, self.config.logit_cap
        logits = logits if scale == 1 else logits * scale
        return cap * jnp.tanh(logits / cap) if cap else logits

    def systems(
        self,
        tokens: Tokens,
        *,
        reset: Bool[Array, " L"] | None = None,
        length: Int[Array, ""] | int | None = None,
    ) -> tuple[tuple[System | KernelSystem, Array], ...]:
        """The System of every layer on tokens (L,), with the tokens that enter it.

        A layer with several mixers has as many, one of a bidirectional model twice as many, those
        on the reversed sequence last.
        """
        h, found = self.embedded(tokens, jnp.zeros((), jnp.int32), reset)[0], []
        r, backward = jnp.zeros_like(h), self._backward(tokens, reset, length)
        if backward is not None and reset is None:
            reset = jnp.zeros(tokens.shape[0], bool)  # so that all systems have the same structure
        for block in self._blocks():
            found += block.systems(block.norm1(r + h), reset=reset, backward=backward)
            h, r, _ = block(h, r, reset=reset, backward=backward)
        return tuple(found)

    def past(self) -> tuple[Any, ...]:
        """What each mixer has next to its state before the first token, None where that is all."""
        return tuple(
            mixer.past()
            for block in self._blocks()
            for mixer in (*block.mixers, *block.mixers_back)
        )

    def init_state(self, max_length: int) -> DecodeState:
        """The state before the first token; caches get ``max_length`` slots."""
        if self.config.bidirectional:
            raise ValueError(
                "init_state: a bidirectional model reads whole sequences and cannot continue one; "
                "use apply, or bidirectional = False."
            )
        self._check_whole("init_state")
        layers = tuple(
            mixer.init_state(max_length) for block in self._blocks() for mixer in block.mixers
        )
        return DecodeState(jnp.zeros((), jnp.int32), layers)

    def prefill(
        self,
        tokens: Tokens,
        state: DecodeState,
        *,
        start: Int[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "L d"], DecodeState]:
        """Features (L, d) of tokens (L,), or of values, that continue ``state``, and the next one.

        The document begins at token ``start``: ``state`` and the tokens before it, such as padding
        on the left, are forgotten there. A start that is not one of these tokens changes nothing,
        so the pieces of a long prompt are given start, start − L, and so on.
        """
        reset = None if start is None else jnp.arange(tokens.shape[0]) == start
        return self._run(tokens, state, reset, None, None)

    def step(
        self, token: Int[Array, ""] | Float[Array, " channels"], state: DecodeState
    ) -> tuple[Float[Array, " d"], DecodeState]:
        """Features (d,) of one token () or one step of values, and the state after it."""
        (h,), position = self.embedded(token[None], state.position, None)
        r, before = jnp.zeros_like(h), iter(state.layers)
        layers: list[MixerState] = []
        for block in self._blocks():
            h, r, after = block.step(h, r, tuple(islice(before, block.num_mixers)))
            layers += after
        return self.norm_f(h + r), DecodeState(position, tuple(layers))

    def _run(
        self,
        tokens: Array,
        state: DecodeState | None,
        reset: Array | None,
        key: Array | None,
        rate: float | Array | None,
        added: tuple[Array, ...] | None = None,
        length: Array | int | None = None,
    ) -> tuple[Array, DecodeState]:
        if state is not None:
            self._check_whole("a DecodeState")
        start = jnp.zeros((), jnp.int32) if state is None else state.position
        h, position = self.embedded(tokens, start, reset)
        r, before = jnp.zeros_like(h), iter(() if state is None else state.layers)
        layers: list[MixerState] = []
        backward, extra = self._backward(tokens, reset, length), iter(added or ())
        own = self.config.embed_dropout, self.config.residual_dropout
        embed, residual = (x if rate is None or x == 0 else rate for x in own)
        for i, block in enumerate(self._blocks()):
            rates = (embed if i == 0 else residual, residual, rate)
            layer_key = None if key is None else jax.random.fold_in(key, i)
            states = None if state is None else tuple(islice(before, block.num_mixers))
            number = len(block.mixers + block.mixers_back)
            own_added = None if added is None else tuple(islice(extra, number))
            # What a block reads besides h and r is closed over: it is kept, not computed again.
            run = partial(
                block, reset=reset, backward=backward, rates=rates, key=layer_key, added=own_added
            )
            run = jax.checkpoint(run) if self.config.remat else run  # type: ignore[arg-type]
            h, r, after = run(h, r, states)
            layers += after
        final_key = None if key is None else jax.random.fold_in(key, self.config.num_layers)
        features = self.norm_f(r + dropout(h, residual, final_key, self.shards))
        return features, DecodeState(position, tuple(layers))

    def _backward(
        self, tokens: Array, reset: Array | None, length: Array | int | None
    ) -> Array | None:
        """Where documents start in the reversed sequence: at the last token of each."""
        if not self.config.bidirectional or (reset is None and length is None):
            return None
        size = tokens.shape[0]
        index, end = self.shards.steps(size), self.shards.count * size
        last = index == (end if length is None else length) - 1
        if reset is not None:
            following = self.shards.reversed().halo(jnp.flip(reset), 1)
            last = last | jnp.append(reset[1:], following) | (index == end - 1)
        return jnp.flip(last, 0)

    def _check_whole(self, what: str) -> None:
        if self.shards.axis_name:
            raise ValueError(
                f"{what}: a model of sequences that are cut over devices does not decode; build it "
                "without shards."
            )

    def _pool(
        self,
        features: Array,
        start: Array | int | None,
        length: Array | int | None,
        reset: Array | None,
    ) -> Array:
        """Features (…, d) of whole sequences (…, L, d)."""
        shards, size = self.shards, features.shape[-2]
        index, end = shards.steps(size), shards.count * size
        stop = end if length is None else length
        own = (index < stop) & (index >= (0 if start is None else start))
        dtype = jnp.promote_types(features.dtype, jnp.float32)

        def pooled(own: Array, stop: Array | int) -> Array:
            if self.config.pooling == "last":
                return shards.row(features, stop - 1)
            sums = features.sum(axis=-2, where=own[:, None], dtype=dtype), own.sum(dtype=dtype)
            total, number = shards.total(sums)
            return (total / number).astype(features.dtype)

        if self.config.num_documents == 1:
            return pooled(own, stop)
        if reset is None:
            raise ValueError(
                "head: a classifier of pairs expects reset, true where the second document starts; "
                "got none."
            )
        first = jnp.min(jnp.where(reset & (index > 0), index, end))
        second = shards.gathered(first).min() % end
        u, v = pooled(own & (index < second), second), pooled(own & (index >= second), stop)
        return ACTIVATIONS["gelu"](self.pair_map(pair_features(u, v)))

    def embedded(self, tokens: Array, start: Array, reset: Array | None) -> tuple[Array, Array]:
        """What enters the first block, and the position in its document of the token that follows.

        ``start`` is that of the first token, where no reset has come before it.
        """
        if channels := self.config.channels:
            if tokens.shape[1:] != (channels,):
                raise ValueError(
                    f"model: expected one sequence of values (L, {channels}), got shape "
                    f"{tokens.shape}; for a batch use jax.vmap over it."
                )
            h = self.embed(tokens)
        else:
            vocabulary = self.config.vocab_size
            ids = token_ids("model", tokens, vocabulary)
            # Rows beyond the last of the table are NaN, but ids below 0 would count from its end.
            h = self.embed(jnp.where(ids < 0, vocabulary, ids))
        size = tokens.shape[0]
        position = positions(size, reset, start + self.shards.place(size, reset))
        if self.config.embed_scale != 1:
            h = h * self.config.embed_scale
        if self.config.max_length:
            if (length := self.shards.count * size) > self.config.max_length:
                raise ValueError(
                    f"the model has {self.config.max_length} learned positions (max_length), got a "
                    f"sequence of {length} tokens"
                )
            h = h + self.positions(position)
        if compute := self.precision.compute:
            h = h.astype(compute)  # an embedding has the type of its parameters
        return h, position[-1] + 1

    def _blocks(self) -> list[Block]:
        return [self.blocks[f"block_{i}"] for i in range(self.config.num_layers)]


def pair_features(u: Float[Array, "... d"], v: Float[Array, "... d"]) -> Float[Array, "... 4*d"]:
    """What a classifier of pairs reads of two pooled documents: [u, v, u ⊙ v, u − v].

    References:
        Tay et al. (2021), Long Range Arena, arXiv:2011.04006; the features are those of the
        two-tower models of its Retrieval task.
    """
    return jnp.concatenate([u, v, u * v, u - v], axis=-1)
