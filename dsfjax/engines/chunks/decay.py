r"""Sums of log decays over the halves of halves of a chunk.

The product of the decays of the steps s+1 … t is exp of their sum. Taking it as the difference of
two cumulative sums loses digits after strong decays (and −∞ − (−∞) is not a number), and
factoring it into exp(S_t) exp(−S_s) overflows. Both are avoided by a boundary between s and t:

.. math:: \prod_{r=s+1}^{t} a_r = \exp(P_t) \exp(Q_s), \qquad
   P_t = \sum_{m < r \le t} \log a_r, \quad Q_s = \sum_{s < r \le m} \log a_r .

For s in the first half of a block and t in its second half, the boundary m is the middle. Blocks
of 2, 4, 8, … steps thus cover every pair s < t once. P and Q are plain sums of log decays: for
decays up to 1 no exponent is ever positive, a decay of 0 is the sum −∞, and its gradient is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Sums(NamedTuple):
    """Sums of log decays within blocks of m steps, arrays (…, c / m, m, n).

    Attributes:
        upto: From the start of the block up to and including the step.
        before: From the start of the block up to the step before.
        after: From the step after to the end of the block.
    """

    upto: Array
    before: Array
    after: Array


def block_sums(log_a: Array) -> list[Sums]:
    """The sums of blocks of 1, 2, 4, … steps; the last is the whole chunk.

    Args:
        log_a: Log decays (…, c, n), real or complex, c a power of two; −∞ is a decay of 0.

    Returns:
        log2(c) + 1 `Sums`.
    """
    # Blocks of one step, (…, c, 1, n): there is nothing before the step, and nothing after it.
    upto = log_a[..., None, :]
    levels = [Sums(upto, jnp.zeros_like(upto), jnp.zeros_like(upto))]
    while (blocks := levels[-1].upto.shape[-3]) > 1:
        (upto0, upto1), (before0, before1), (after0, after1) = (
            halves(x, blocks // 2) for x in levels[-1]
        )
        # Two neighbours become one block: what is counted from its start grows by all of the first
        # half, what is counted to its end by all of the second. Sums only, no difference.
        total0, total1 = upto0[..., -1:, :], upto1[..., -1:, :]
        levels.append(
            Sums(
                jnp.concatenate([upto0, upto1 + total0], axis=-2),
                jnp.concatenate([before0, before1 + total0], axis=-2),
                jnp.concatenate([after0 + total1, after1], axis=-2),
            )
        )
    return levels


def halves(x: Array, pairs: int) -> tuple[Array, Array]:
    """First and second blocks of neighbouring pairs, (…, pairs, m, n) each."""
    x = x.reshape(*x.shape[:-3], pairs, 2, *x.shape[-2:])
    return x[..., 0, :, :], x[..., 1, :, :]


def between(levels: list[Sums]) -> Array:
    """Products of the steps s+1 … t of a chunk, (…, c, c), for decays with n = 1; 0 for s > t."""
    # Exponents are joined and exponentiated once: −∞ above the diagonal is a product of 0 there.
    exponent = jnp.zeros_like(levels[0].upto)  # (…, c, 1, 1): no step between t and itself
    for sums in levels[:-1]:  # the last one is the chunk, which has no neighbour
        pairs = exponent.shape[-3] // 2
        late, early = halves(sums.upto, pairs)[1], halves(sums.after, pairs)[0]
        # P_t + Q_s for t in the second block and s in the first. Nothing is subtracted: −∞ meets
        # finite numbers or −∞ and stays what it is, a product of 0.
        low = late + early.swapaxes(-1, -2)
        first, second = halves(exponent, pairs)
        exponent = lower_blocks(first, low, second, -jnp.inf)
    return jnp.exp(exponent[..., 0, :, :])


def lower_blocks(first: Array, low: Array, second: Array, fill: float) -> Array:
    """The block matrix [[first, fill], [low, second]]."""
    upper = jnp.full((*first.shape[:-1], second.shape[-1]), fill, first.dtype)
    top = jnp.concatenate([first, upper], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([low, second], axis=-1)], axis=-2)
