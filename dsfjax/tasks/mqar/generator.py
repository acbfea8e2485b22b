r"""Sampling on the device: the law of the published generator, without its permutations.

*Keys, values.* The Lehmer code maps ordered tuples of ``n`` distinct tokens out of ``m`` one to one
to the box :math:`r_i \in \{0, \dots, m-1-i\}`: token ``i`` is the :math:`r_i`-th smallest of those
not taken before it. A uniform point of the box is therefore a uniform ordered tuple. Decoding takes
O(n²) comparisons, whatever the vocabulary.

*Gaps.* Each is drawn from those left, :math:`P(g_i = g) \propto p_g`. Independent exponential
clocks of rates :math:`p_g` ring in an order of just this law, and the first ``n`` to ring are, in
order, the ``n`` largest of :math:`\log p_g + G_g` with :math:`G` standard Gumbel.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, PRNGKeyArray

from dsfjax.tasks.mqar.config import MQARConfig
from dsfjax.tasks.mqar.examples import Batch


def _decode(code: Int32[Array, " n"]) -> Int32[Array, " n"]:
    """Distinct integers from their Lehmer code: the ``code[i]``-th smallest not taken before."""
    n = code.shape[0]
    index = jnp.arange(n)

    def insert(step: Array, decoded: Array) -> Array:
        # From the last element to the first: later ones make room for an earlier one.
        i = n - 1 - step
        return jnp.where((index > i) & (decoded >= code[i]), decoded + 1, decoded)

    return jax.lax.fori_loop(1, n, insert, code)


def sample(key: PRNGKeyArray, config: MQARConfig) -> Batch:
    """Draw one sequence.

    Args:
        key: PRNG key.
        config: Size of the task; static under ``jit``.

    Returns:
        A :class:`Batch` without batch axes, int32: ``inputs`` of shape ``(L,)``, and
        ``query_positions`` and ``targets`` of shape ``(num_kv_pairs,)``.

    Numerics:
        O(n² + L log L) for n pairs, independent of the vocabulary. Exact in distribution up to
        float32 rounding of the random numbers; the same in float32 and float64 mode.

    Examples:
        >>> config = MQARConfig(vocab_size=32, seq_len=8, num_kv_pairs=2)
        >>> one = sample(jax.random.key(0), config)
        >>> bool((one.inputs[one.query_positions] == one.inputs[0:4:2]).all())
        True
        >>> bool((one.targets == one.inputs[1:4:2]).all())
        True
    """
    n, first_value = config.num_kv_pairs, config.vocab_size // 2
    token_key, gap_key = jax.random.split(key)

    left = np.array([[first_value - 1], [config.vocab_size - first_value]]) - np.arange(n)
    code = jax.random.randint(token_key, (2, n), 0, left.astype(np.int32), jnp.int32)
    index = jax.vmap(_decode)(code)
    keys, values = index[0] + 1, index[1] + first_value

    log_p = jnp.asarray(np.log(config.gap_probabilities()), jnp.float32)
    clocks = log_p + jax.random.gumbel(gap_key, log_p.shape, jnp.float32, mode="high")
    positions = 2 * n + 2 * jax.lax.top_k(clocks, n)[1].astype(jnp.int32)

    pairs = jnp.stack([keys, values], axis=1).reshape(2 * n)
    inputs = jnp.pad(pairs, (0, config.seq_len - 2 * n)).at[positions].set(keys)
    return Batch(inputs, positions, values)


def batch(key: PRNGKeyArray, config: MQARConfig, batch_size: int) -> Batch:
    """Draw ``batch_size`` independent sequences: :func:`sample` of each part of a split key.

    Args:
        key: PRNG key.
        config: Size of the task; static under ``jit``.
        batch_size: Number of sequences, static under ``jit``.

    Returns:
        A :class:`Batch` with one leading axis of ``batch_size``.

    Examples:
        >>> batch(jax.random.key(0), MQARConfig(), 3).inputs.shape
        (3, 64)
    """
    return jax.vmap(lambda k: sample(k, config))(jax.random.split(key, batch_size))
