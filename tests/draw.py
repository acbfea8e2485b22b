"""Random arrays, the same in every run."""

import zlib

import jax.numpy as jnp
import numpy as np
from jax import Array


class Draw:
    """Random arrays of a given shape, with the distributions that systems need."""

    def __init__(self, name: str, length: int, seed: int) -> None:
        self.length = length
        self._rng = np.random.default_rng([zlib.crc32(name.encode()), length, seed])

    def normal(self, *shape: int) -> Array:
        return jnp.asarray(self._rng.normal(size=shape))

    def positive(self, *shape: int) -> Array:
        return jnp.asarray(self._rng.uniform(0.2, 1.5, size=shape))

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        return jnp.asarray(self._rng.uniform(low, high, size=shape))

    def log_decay(self, *shape: int) -> Array:
        """Logarithms of decays, mostly mild, sometimes strong."""
        return jnp.asarray(-(self._rng.exponential(size=shape) ** 2))

    def complex(self, *shape: int) -> Array:
        return jnp.asarray(self._rng.normal(size=(*shape, 2)).view(np.complex128)[..., 0])

    def complex_log_decay(self, *shape: int) -> Array:
        angle = self._rng.normal(size=shape)
        return jnp.asarray(-(self._rng.exponential(size=shape) ** 2) + 1j * angle)

    def log_decay_with_extremes(self, *shape: int) -> Array:
        """About a fifth of the decays exactly 0, and a fifth exactly 1."""
        kind = self._rng.random(shape)
        mild = -self._rng.exponential(size=shape)
        return jnp.asarray(np.where(kind < 0.2, -np.inf, np.where(kind > 0.8, 0.0, mild)))

    def contraction(self, *shape: int) -> Array:
        """Matrices of norm about 0.9."""
        return jnp.asarray(0.5 / np.sqrt(shape[-1]) * self._rng.normal(size=shape))

    def reset(self) -> Array:
        """A reset at about every sixth step, the first step sometimes among them."""
        return jnp.asarray(self._rng.random(self.length) < 1 / 6)
