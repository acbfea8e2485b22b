"""Rotary positions (arXiv:2104.09864), and how a config.json says which."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from dsfjax.interop.published.tensor_files import Config
from dsfjax.systems import primitives

_ROTATED = "partial_rotary_factor"


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions divided by a factor.

    Attributes:
        factor: Of the length, compared with training.
    """

    factor: float

    def __call__(self, rates: np.ndarray) -> np.ndarray:
        """The frequencies of the longer model."""
        return rates / self.factor


@dataclasses.dataclass(frozen=True)
class Bands:
    """Llama 3.1's rescaling: long waves are stretched, short ones kept, those between mixed.

    Attributes:
        factor: Of the length, compared with training.
        low: Turns within the training length below which a wave is long.
        high: Turns above which it is short.
        length: Of training.
    """

    factor: float
    low: float
    high: float
    length: float

    def __call__(self, rates: np.ndarray) -> np.ndarray:
        """The frequencies of the longer model."""
        turns = self.length * rates / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return kept * rates + (1 - kept) * rates / self.factor


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv:2309.00071): slow waves are stretched, fast ones kept, and all made larger.

    Attributes:
        factor: Of the length, compared with training.
        low: Number of the frequency up to which waves are kept.
        high: Number from which they are stretched; those between are mixed.
        amplitude: Of cosines and sines, so that scores are its square times larger.
    """

    factor: float
    low: float
    high: float
    amplitude: float

    def __call__(self, rates: np.ndarray) -> np.ndarray:
        """The frequencies of the longer model."""
        stretched = np.clip((np.arange(len(rates)) - self.low) / (self.high - self.low), 0, 1)
        return (1 - stretched) * rates + stretched * rates / self.factor


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Which channels of a head are rotated, and how fast: ω_i = θ^(−2i/m), perhaps rescaled.

    Attributes:
        channels: m, the first so many channels.
        theta: θ.
        scaling: What makes frequencies of a longer context of these.
    """

    channels: int
    theta: float
    scaling: Linear | Bands | Yarn | None = None

    @property
    def amplitude(self) -> float:
        """Of cosines and sines."""
        return self.scaling.amplitude if isinstance(self.scaling, Yarn) else 1.0

    def frequencies(self) -> np.ndarray:
        """ω (m/2,), in radians per step, float64."""
        rates = np.array(primitives.rotary_frequencies(self.channels, self.theta))
        return rates if self.scaling is None else self.scaling(rates)


def rotated(
    x: Float[Array, "L H m"], positions: Int[Array, " L"], rotation: Rotation | None
) -> Float[Array, "L H m"]:
    """Rotary positions on the first channels of heads; x itself without a rotation."""
    if rotation is None:
        return x
    rates = tuple(rotation.frequencies().tolist())
    return primitives.rotated(x, positions, rates, amplitude=rotation.amplitude)


def rotation_of(
    config: Config, head_dim: int, *, share: float = 1.0, theta: float = 10000.0
) -> Rotation | None:
    """The rotation that ``rope_parameters`` or the older names of a config say.

    Args:
        config: The config.
        head_dim: Channels of a head.
        share: Of them that are rotated, where the config does not say (partial_rotary_factor).
        theta: θ where the config says nothing about it.

    Returns:
        The rotation; None if the config switches positions off, by a θ of null.

    Raises:
        ValueError: For a ``rope_type`` that has no exact equivalent here.
    """
    given, scaling = config.section("rope_parameters"), config.section("rope_scaling")
    older = {name: config.get(name) for name in ("rope_theta", _ROTATED)}
    own = {**older, **scaling.values}
    own |= {name: value for name, value in given.values.items() if value is not None}
    if "rope_theta" not in given.values and "rope_theta" not in config.values:
        own["rope_theta"] = theta
    rope = Config(own, given.where)
    name = "type" if rope.given("type") and not rope.given("rope_type") else "rope_type"
    kind = rope.word(name, ("default", *_SCALINGS), "default")
    if not rope.given("rope_theta"):
        return None
    plain = Rotation(
        int(head_dim * rope.positive(_ROTATED, share, most=1)), rope.positive("rope_theta")
    )
    if kind == "default":
        return plain
    return dataclasses.replace(plain, scaling=_SCALINGS[kind](rope, plain))


def _linear(rope: Config, plain: Rotation) -> Linear:
    del plain
    return Linear(rope.positive("factor"))


def _bands(rope: Config, plain: Rotation) -> Bands:
    del plain
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if not low < high:
        raise rope.wrong("high_freq_factor", f"a number above low_freq_factor, {low}", high)
    length = rope.positive("original_max_position_embeddings")
    return Bands(rope.positive("factor"), low, high, length)


def _yarn(rope: Config, plain: Rotation) -> Yarn:
    if not plain.theta > 1:
        raise rope.wrong("rope_theta", "a number above 1 for YaRN", plain.theta)
    factor, length = rope.positive("factor"), rope.positive("original_max_position_embeddings")
    fast, slow = rope.positive("beta_fast", 32.0), rope.positive("beta_slow", 1.0)
    if not slow < fast:
        raise rope.wrong("beta_fast", f"a number above beta_slow, {slow}", fast)

    def number_of(turns: float) -> float:
        """Of the frequency that makes so many turns within the training length."""
        log_waves = math.log(length / (turns * 2 * math.pi))
        return plain.channels * log_waves / (2 * math.log(plain.theta))

    low, high = number_of(fast), number_of(slow)
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, plain.channels - 1)
    high = low + 0.001 if low == high else high  # as published, so that nothing is divided by 0
    return Yarn(factor, low, high, _amplitude(rope, factor))


def _amplitude(rope: Config, factor: float) -> float:
    """What the config says, or 1 + log(factor) / 10, or a ratio of two such numbers."""
    if rope.given("attention_factor"):
        return rope.positive("attention_factor")

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    both = ("mscale", "mscale_all_dim")
    if not all(map(rope.given, both)):
        return of(1.0)
    scale, scale_all = map(rope.positive, both)
    return of(scale) / of(scale_all)


_SCALINGS = {"linear": _linear, "llama3": _bands, "yarn": _yarn}
