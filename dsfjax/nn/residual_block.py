"""A block of a model, mixers and MLP, as an NNX module on one sequence."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dsfjax import systems
from dsfjax.core import KernelSystem, Precision, System
from dsfjax.engines import WHOLE, Shards
from dsfjax.nn.mixer import Mixer, MixerState, Surrounding
from dsfjax.nn.model_config import ModelConfig
from dsfjax.nn.pattern import Layer
from dsfjax.nn.pieces import MLP, dropout, norm
from dsfjax.nn.precision import products
from dsfjax.nn.surroundings import surrounding
from dsfjax.systems import Architecture


def architecture(
    config: ModelConfig,
    mixer: str | None = None,
    around: Surrounding | None = None,
    *,
    number: int = 1,
) -> Architecture:
    """An architecture of a config, over the inner width of its surroundings, or of ``around``.

    Options for this mixer alone come before those for all, and these before the sizes of the
    config. An architecture that depends on its layer (``layer`` and ``num_layers`` of lightning) is
    told which it is, unless an option says it.

    Args:
        config: The config.
        mixer: One of its mixers; by default the first.
        around: Surroundings in place of those that the config names.
        number: Of the layer that it is for, from 1.

    Returns:
        The architecture.
    """
    mixer = config.layers[0][0] if mixer is None else mixer
    known, hybrid = systems.options(mixer), len({x for layer in config.layers for x in layer}) > 1
    practice = around is None and config.surroundings == "practice"
    around = around or surrounding(mixer, config.surroundings)
    of_config: dict[str, Any] = {
        "d_state": config.d_state,
        "num_heads": config.num_heads,
        "init": config.init,
        "d_inner": 2 * config.d_model if practice else None,
    }
    if depends_on_layer(mixer):
        of_config |= {"layer": number, "num_layers": config.num_layers}
    plain = {k: v for k, v in of_config.items() if k in known and v is not None}
    special: dict[str, Any] = {}
    for name, value in config.options:
        whose, _, option = name.rpartition(".")
        if whose == mixer:
            special[option] = value
        # An unknown option of a single architecture is an error, which `systems.get` words.
        elif not whose and (option in known or not hybrid):
            plain[option] = value
    own = plain | special
    return systems.get(mixer, d_model=around.expand * config.d_model, **own)


def depends_on_layer(mixer: str) -> bool:
    """Whether an architecture takes the number of its layer, and how many there are.

    Example:
        >>> depends_on_layer("lightning"), depends_on_layer("ssd")
        (True, False)
    """
    return {"layer", "num_layers"} <= set(systems.options(mixer))


class Block(nnx.Module):
    r"""One block on two streams, the residual r and what the last layer has to add, h.

    .. math:: r ← r + h, \quad h ← \mathrm{mixer}(\mathrm{norm}_1 r), \qquad
              r ← r + h, \quad h ← f(\mathrm{norm}_2 r).

    With f an MLP this is the usual pre-norm block ("prenorm"); without the second half it is the
    Mamba block ("mamba"); with f the identity it is the Transformer block of the paper's authors
    for models without MLP ("transformer"), which adds norm₂(r) itself to the residual.

    Of several mixers the outputs are added. A bidirectional block has as many more that read the
    sequence from its end:
    :math:`h ← \mathrm{mixer}(x) + \mathrm{flip}(\mathrm{mixer}'(\mathrm{flip}(x)))`.

    ``number`` is that of the layer in its model, from 1, for architectures that depend on it.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: Layer,
        around: Surrounding | None = None,
        *,
        number: int = 1,
        shards: Shards = WHOLE,
        rngs: nnx.Rngs,
    ) -> None:
        depth, precision = config.num_layers, Precision.named(config.precision)
        self.kind, self.shards, self.num_mixers = config.block, shards, len(layer)
        self.scale = config.residual_scale
        self.norm1 = norm(config.norm, config.d_model, rngs=rngs)

        def make(name: str, shards: Shards) -> Mixer:
            return Mixer(
                architecture(config, name, around, number=number),
                config.d_model,
                around or surrounding(name, config.surroundings),
                attention_dropout=config.attention_dropout,
                method=config.method,
                init=config.init,
                depth=depth,
                precision=precision,
                shards=shards,
                rngs=rngs,
            )

        for attribute, name in zip(self._names("mixer"), layer, strict=True):
            setattr(self, attribute, make(name, shards))
        if config.bidirectional:
            for attribute, name in zip(self._names("mixer_back"), layer, strict=True):
                setattr(self, attribute, make(name, shards.reversed()))
        if config.block != "mamba":
            self.norm2 = norm(config.norm, config.d_model, rngs=rngs)
        if config.block == "prenorm":
            self.mlp = MLP(
                config.d_model,
                config.mlp_ratio,
                kind=config.mlp,
                init=config.init,
                depth=depth,
                precision=products(precision),
                rngs=rngs,
            )

    def _names(self, first: str) -> list[str]:
        """Attributes of the mixers that read one way."""
        return [first, *(f"{first}_{i}" for i in range(1, self.num_mixers))]

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers that read from the start."""
        return [getattr(self, name) for name in self._names("mixer")]

    @property
    def mixers_back(self) -> list[Mixer]:
        """Those that read from the end."""
        return [getattr(self, x) for x in self._names("mixer_back") if hasattr(self, x)]

    def __call__(
        self,
        h: Array,
        r: Array,
        states: tuple[MixerState, ...] | None = None,
        *,
        reset: Array | None = None,
        backward: Array | None = None,
        rates: tuple[float | Array, float | Array, float | Array | None] = (0.0, 0.0, None),
        key: Array | None = None,
        added: tuple[Array, ...] | None = None,
    ) -> tuple[Array, Array, tuple[MixerState, ...]]:
        """Run a sequence: h, r (L, d) and the states of the mixers in, the same out.

        ``backward`` says where documents start in the reversed sequence; ``rates`` are those of
        dropout on h before and after the mixers, and within them; ``added`` is added to the outputs
        of their systems, in the order of `systems`.
        """
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        r = r + dropout(h, rates[0], keys[0], self.shards)
        x = self.norm1(r)
        k, after = self.num_mixers, []
        outputs: list[Array] = []
        for i, mixer in enumerate(self.mixers + self.mixers_back):
            # The first mixer has the key itself, as a block with one mixer always had.
            own = keys[1] if keys[1] is None or i == 0 else jax.random.fold_in(keys[1], i)
            run = partial(mixer, rate=rates[2], key=own, added=None if added is None else added[i])
            if i < k:
                y, state = run(x, None if states is None else states[i], reset=reset)
                after.append(state)
            else:
                y = jnp.flip(run(jnp.flip(x, 0), reset=backward)[0], 0)
            outputs.append(y)
        h = self._scaled(reduce(jnp.add, outputs))
        return *self._channels(h, r, rates[1], keys[2]), tuple(after)

    def systems(
        self, x: Array, *, reset: Array | None = None, backward: Array | None = None
    ) -> list[tuple[System | KernelSystem, Array]]:
        """The systems of what norm₁ gives, x (L, d): of the mixers, then of those from the end."""
        found = [mixer.system(x, reset=reset) for mixer in self.mixers]
        return found + [mixer.system(jnp.flip(x, 0), reset=backward) for mixer in self.mixers_back]

    def step(
        self, h: Array, r: Array, states: tuple[MixerState, ...]
    ) -> tuple[Array, Array, tuple[MixerState, ...]]:
        """Run one token: h, r (d,)."""
        r = r + h
        x = self.norm1(r)
        steps = [mixer.step(x, state) for mixer, state in zip(self.mixers, states, strict=True)]
        outputs, after = zip(*steps, strict=True)
        h = self._scaled(reduce(jnp.add, outputs))
        return *self._channels(h, r, 0.0, None), after

    def _channels(
        self, h: Array, r: Array, rate: float | Array, key: Array | None
    ) -> tuple[Array, Array]:
        if self.kind == "mamba":
            return h, r
        r = r + dropout(h, rate, key, self.shards)
        h = self.norm2(r)
        return (self._scaled(self.mlp(h)) if self.kind == "prenorm" else h), r

    def _scaled(self, h: Array) -> Array:
        return h if self.scale == 1 else h * self.scale
