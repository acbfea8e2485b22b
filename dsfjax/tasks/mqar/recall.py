r"""Sampling on the device: the law of the published generator, without its permutations.

*Keys, values.* The Lehmer code maps ordered tuples of ``n`` distinct tokens out of ``m`` one to one
to the box :math:`r_i \in \{0, \dots, m-1-i\}`: token ``i`` is the :math:`r_i`-th smallest of those
not taken before it. A uniform point of the box is therefore a uniform ordered tuple. Decoding takes
O(n²) comparisons, whatever the vocabulary.

*Gaps.* Each is drawn from those left, :math:`P(g_i = g) \propto p_g`. Independent exponential
clocks of rates :math:`p_g` ring in an order of just this law, and the first ``n`` to ring are, in
order, the ``n`` largest of :math:`\log p_g + G_g` with :math:`G` standard Gumbel.
"""

import dataclasses
import math
import numbers
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.supply import Generated


@dataclasses.dataclass(frozen=True)
class MQARConfig(Generated):
    """Size of a multi-query associative recall task; hashable, hence a static argument of ``jit``.

    The defaults are the smallest task of the paper, whose tasks are ``(seq_len, num_kv_pairs)`` in
    {(64, 4), (128, 8), (256, 16), (512, 64)}.

    Args:
        vocab_size: Number of token ids V, more than ``seq_len``. Keys come from
            {1, ..., V//2 - 1}, values from {V//2, ..., V - 1}; 0 fills.
        seq_len: Length L of a sequence, even.
        num_kv_pairs: Number of pairs and of queries per sequence, at most L/4.
        power_a: Exponent a > 0 of the power law: gap ``g`` has weight (g + 1)^(a - 1).

    Raises:
        TypeError: If a field is no number of its kind.
        ValueError: If the fields do not fit together; the message names the nearest choice.

    Examples:
        >>> MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4).num_gaps
        12
        >>> MQARConfig(seq_len=64, num_kv_pairs=20)
        Traceback (most recent call last):
            ...
        ValueError: MQARConfig: expected num_kv_pairs between 1 and seq_len / 4 = 16, got 20. \
Use num_kv_pairs=16 or seq_len=80.
    """

    title = "Multi-query associative recall"
    demands = ("recall",)

    vocab_size: int = option(8192, "Token ids of the task.")
    seq_len: int = option(64, "Length of a sequence.")
    num_kv_pairs: int = option(4, "Key-value pairs in a sequence, at most a quarter of its length.")
    power_a: float = option(
        0.01, "Exponent of the power law of the gaps between a pair and its query."
    )

    presets: ClassVar = {
        # Small enough for a model of one number per channel to learn some of it within the steps.
        "demo": Preset(
            settings={
                "vocab_size": 20,
                "seq_len": 16,
                "num_kv_pairs": 3,
                "steps": 600,
                "eval_examples": 256,
                "learning_rates": (8e-3,),
                "stop_at": 0.99,
            }
        ),
        "smoke": Preset(settings={"vocab_size": 32, "seq_len": 16, "num_kv_pairs": 2}),
    }

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_len", "num_kv_pairs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"MQARConfig: expected an integer {name}, got {value!r}.")
        if isinstance(self.power_a, bool) or not isinstance(self.power_a, numbers.Real):
            raise TypeError(f"MQARConfig: expected a real power_a, got {self.power_a!r}.")
        if not (math.isfinite(self.power_a) and self.power_a > 0):
            raise ValueError(
                f"MQARConfig: expected a finite power_a > 0, got {self.power_a}. "
                "The paper uses power_a=0.01."
            )
        if self.seq_len < 4 or self.seq_len % 2:
            nearest = max(4, self.seq_len + self.seq_len % 2)
            raise ValueError(
                f"MQARConfig: expected an even seq_len of at least 4, got {self.seq_len}. "
                f"Use seq_len={nearest}."
            )
        most = self.seq_len // 4
        if not 1 <= self.num_kv_pairs <= most:
            nearest = min(max(self.num_kv_pairs, 1), most)
            longer = f" or seq_len={4 * self.num_kv_pairs}" if self.num_kv_pairs > most else ""
            raise ValueError(
                f"MQARConfig: expected num_kv_pairs between 1 and seq_len / 4 = {most}, "
                f"got {self.num_kv_pairs}. Use num_kv_pairs={nearest}{longer}."
            )
        # Enough keys and values follow: V > L >= 4 n leaves V//2 - 1 >= n of each.
        if self.vocab_size <= self.seq_len:
            raise ValueError(
                f"MQARConfig: expected vocab_size > seq_len = {self.seq_len}, "
                f"got {self.vocab_size}. Use vocab_size={self.seq_len + 1} or more."
            )

    @property
    def num_gaps(self) -> int:
        """Number of places a query can stand at: every second position after the pairs."""
        return (self.seq_len - 2 * self.num_kv_pairs) // 2

    def gap_probabilities(self) -> Float[np.ndarray, " gaps"]:
        """Probability of each gap for the query drawn first, float64, shape ``(num_gaps,)``."""
        # The factor a cancels, but the published code has it: without it the last bit may differ.
        weights = self.power_a * np.arange(1, self.num_gaps + 1) ** (self.power_a - 1.0)
        return weights / weights.sum()

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence: `dsfjax.tasks.mqar.sample`."""
        return sample(key, self)

    def sources(self, example: Example) -> Int[Array, " queries"]:
        """The step of the value of every query; pair j is at 2j and 2j + 1."""
        return 2 * jnp.arange(self.num_kv_pairs, dtype=example.query_positions.dtype) + 1

    def baselines(self) -> dict[str, Baseline]:
        """Guessing among all values, and naming one that the sequence shows."""
        values = self.vocab_size - self.vocab_size // 2
        return {
            "chance": Baseline(1 / values, "guessing among all values"),
            "trivial": Baseline(1 / self.num_kv_pairs, "naming any value of the sequence"),
        }

    def describe(self) -> str:
        """Length, pairs and vocabulary."""
        return (
            f"L = {self.seq_len}, {self.num_kv_pairs} key–value pairs, vocabulary {self.vocab_size}"
        )

    def slug(self) -> str:
        """Length, pairs and vocabulary."""
        return f"L{self.seq_len}-n{self.num_kv_pairs}-v{self.vocab_size}"


def _decode(code: Int32[Array, " n"]) -> Int32[Array, " n"]:
    """Distinct integers from their Lehmer code: the ``code[i]``-th smallest not taken before."""
    n = code.shape[0]
    index = jnp.arange(n)

    def insert(step: Array, decoded: Array) -> Array:
        # From the last element to the first: later ones make room for an earlier one.
        i = n - 1 - step
        return jnp.where((index > i) & (decoded >= code[i]), decoded + 1, decoded)

    return jax.lax.fori_loop(1, n, insert, code)


def sample(key: PRNGKeyArray, config: MQARConfig) -> Example:
    """Draw one sequence.

    Args:
        key: PRNG key.
        config: Size of the task; static under ``jit``.

    Returns:
        A :class:`Example` without batch axes, int32: ``inputs`` of shape ``(L,)``, and
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
    return Example(inputs, positions, values)


def batch(key: PRNGKeyArray, config: MQARConfig, batch_size: int) -> Example:
    """Draw ``batch_size`` independent sequences: :func:`sample` of each part of a split key.

    Args:
        key: PRNG key.
        config: Size of the task; static under ``jit``.
        batch_size: Number of sequences, static under ``jit``.

    Returns:
        A :class:`Example` with one leading axis of ``batch_size``.

    Examples:
        >>> batch(jax.random.key(0), MQARConfig(), 3).inputs.shape
        (3, 64)
    """
    return jax.vmap(lambda k: sample(k, config))(jax.random.split(key, batch_size))
