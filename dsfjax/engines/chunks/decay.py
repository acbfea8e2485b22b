r"""Sums of log decays over the halves of halves of a chunk.

The product of the decays of the steps s+1 … t is exp of their sum. Taking it as the difference of
two cumulative sums loses digits after strong decays (and −∞ − (−∞) is not a number), and
factoring it into exp(S_t) exp(−S_s) overflows. Both are avoided by a boundary between s and t:

.. math:: \prod_{r=s+1}^{t} a_r = \exp(P_t) \exp(Q_s), \qquad
   P_t = \sum_{m < r \le t} \log a_r, \quad Q_s = \sum_{s < r \le m} \log a_r .

For s in the first half of a block and t in its second half, the boundary m is the middle. Blocks
of 2, 4, 8, … steps thus cover every pair s < t once. P and Q are plain sums of log decays: for
decays up to 1 no exponent is ever positive, a decay of 0 is the sum −∞, and its gradient is 0.

With n = 1 there are c (c + 1) exponents in all, and no vectors that α would have to go to. They are
formed each as a sum of its own, by one product with the matrix of all intervals (`between`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# exp of it is 0, as of −∞, and sums of many of it are numbers.
_LEAST = -1e30
INTERVALS = 64
"""Steps whose intervals are summed by one product: c² numbers of c operations each."""


class Sums(NamedTuple):
    """Sums of log decays within blocks of m steps, arrays (…, c / m, m, n).

    Attributes:
        upto: From the start of the block up to and including the step.
        after: From the step after to the end of the block.
    """

    upto: Array
    after: Array

    @property
    def before(self) -> Array:
        """From the start of the block up to the step before."""
        return _late(self.upto, 0.0)


class Decays(NamedTuple):
    """The decays of a chunk of c steps.

    Attributes:
        products: With n = 1, those of all intervals, (…, c, c + 1), see `between`; None otherwise.
        levels: With n > 1, the sums of blocks of 1, 2, 4, … steps; the last is the whole chunk.
    """

    products: Array | None
    levels: list[Sums]

    @classmethod
    def of(cls, log_a: Array) -> Decays:
        """What the products of a chunk take.

        Args:
            log_a: Log decays (…, c, n), real or complex, c a power of two; −∞ is a decay of 0.
        """
        if log_a.shape[-1] == 1:
            return cls(between(log_a[..., 0]), [])
        return cls(None, block_sums(log_a))

    def from_start(self) -> Array:
        """The products of the decays up to and including each step, (…, c, n)."""
        if self.products is not None:
            return self.products[..., :1]
        return jnp.exp(self.levels[-1].upto[..., 0, :, :])

    def before(self) -> Array:
        """The products of the decays before each step, (…, c, n)."""
        if self.products is None:
            return jnp.exp(self.levels[-1].before[..., 0, :, :])
        return _late(self.from_start(), 1.0)

    def to_end(self) -> Array:
        """The products of the decays after each step, (…, c, n)."""
        if self.products is not None:
            return self.products[..., -1, 1:, None]
        return jnp.exp(self.levels[-1].after[..., 0, :, :])


def block_sums(log_a: Array) -> list[Sums]:
    """The sums of blocks of 1, 2, 4, … steps; the last is the whole chunk.

    Args:
        log_a: Log decays (…, c, n), real or complex, c a power of two; −∞ is a decay of 0.

    Returns:
        log2(c) + 1 `Sums`.
    """
    # Blocks of one step, (…, c, 1, n): there is nothing after it.
    upto = log_a[..., None, :]
    levels = [Sums(upto, jnp.zeros_like(upto))]
    while levels[-1].upto.shape[-3] > 1:
        levels.append(_joined(levels[-1]))
    return levels


def _joined(sums: Sums) -> Sums:
    """Those of blocks twice as long."""
    pairs = sums.upto.shape[-3] // 2
    (upto0, upto1), (after0, after1) = (halves(x, pairs) for x in sums)
    # Two neighbours become one block: what is counted from its start grows by all of the first
    # half, what is counted to its end by all of the second. Sums only, no difference.
    total0, total1 = upto0[..., -1:, :], upto1[..., -1:, :]
    return Sums(
        jnp.concatenate([upto0, upto1 + total0], axis=-2),
        jnp.concatenate([after0 + total1, after1], axis=-2),
    )


def _late(x: Array, first: float) -> Array:
    """Each entry of the steps, the last axis but one, a step later; at the first a number."""
    return jnp.concatenate([jnp.full_like(x[..., :1, :], first), x[..., :-1, :]], axis=-2)


def halves(x: Array, pairs: int) -> tuple[Array, Array]:
    """First and second blocks of neighbouring pairs, (…, pairs, m, n) each."""
    first, second = jnp.unstack(x.reshape(*x.shape[:-3], pairs, 2, *x.shape[-2:]), axis=-3)
    return first, second


def between(log_a: Array) -> Array:
    """Products of the steps s+1 … t of a chunk, for decays with n = 1; 0 for s > t.

    Args:
        log_a: Log decays (…, c), real or complex, c a power of two; −∞ is a decay of 0.

    Returns:
        (…, c, c + 1), of t = 0 … c − 1 and s = −1 … c − 1: the first column has the decay of the
        state before the chunk, the last row that to the state after it.
    """
    steps = log_a.shape[-1]
    size = min(steps, INTERVALS)
    # −∞ as a number whose product with 0 is 0; NaN stays.
    x = jax.lax.select(log_a.real < _LEAST, jnp.full_like(log_a, _LEAST), log_a)
    x = x if size == steps else x.reshape(*x.shape[:-1], -1, size)
    # The sums over all intervals are one product with zeros and ones. A row of ones brings the
    # entries above the diagonal to `_LEAST`, of which exp makes 0: a selection next to exp in one
    # loop takes XLA's CPU back end seconds to compile.
    rows = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    intervals = jnp.asarray(_intervals(size), x.dtype)
    exponent = jnp.matmul(rows, intervals, precision="highest").reshape(*x.shape, size + 1)
    if size == steps:
        return jnp.exp(exponent)
    # Longer chunks are put together from blocks of this size, by halves of halves.
    while (pairs := exponent.shape[-3] // 2) > 0:
        first, second = halves(exponent, pairs)
        # To the end of the first block and from there to t. Nothing is subtracted.
        low = second[..., :1] + first[..., -1:, :]
        exponent = lower_blocks(first, low, second[..., 1:], _LEAST)
    return jnp.exp(exponent[..., 0, :, :])


@functools.cache
def _intervals(steps: int) -> np.ndarray:
    """(c + 1, c (c + 1)): 1 where step r is in s+1 … t; in the last row `_LEAST` where s > t."""
    r, t, s = np.ogrid[:steps, :steps, -1:steps]
    inside = ((s < r) & (r <= t)).reshape(steps, -1)
    return np.vstack([inside, np.where(s[0] > t[0], _LEAST, 0).reshape(1, -1)])


def lower_blocks(first: Array, low: Array, second: Array, fill: float) -> Array:
    """The block matrix [[first, fill], [low, second]]."""
    upper = jnp.full((*first.shape[:-1], second.shape[-1]), fill, first.dtype)
    top = jnp.concatenate([first, upper], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([low, second], axis=-1)], axis=-2)
