r"""In-context recall: name the value that a key had before in the sequence.

.. math:: k_1\, v_1\, k_2\, v_2\, k_1\, [v_1]\, k_3\, v_3\, k_2\, [v_2] \dots

Every sequence has its own map from keys to values. Pairs follow one another, keys are drawn with
replacement, and the last key is one that has been shown. What is asked is in brackets. With noise,
a pair is two noise tokens with some probability.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.mad.two_laws import TwoLaws, next_tokens
from dsfjax.tasks.protocol import Baseline, Example, Preset, option


@dataclasses.dataclass(frozen=True)
class InContextRecall(TwoLaws):
    """Recall values; token ids are keys, values, then noise.

    Args:
        vocab_size: V, with the noise tokens.
        seq_len: L, even.
        noise_vocab_size: Noise tokens among them.
        frac_noise: Probability that a pair is noise.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> task = InContextRecall(vocab_size=6, seq_len=8)
        >>> one = task.sample(jax.random.key(0))
        >>> one.inputs.tolist(), one.weights.astype(int).tolist()
        ([1, 4, 2, 4, 1, 4, 1, 4], [0, 0, 0, 0, 1, 0, 1])
    """

    title = "MAD: in-context recall"
    demands = ("recall",)

    vocab_size: int = option(16, "Token ids: keys, values and noise.")
    seq_len: int = option(128, "Length of a sequence.")
    noise_vocab_size: int = option(0, "Token ids of noise.")
    frac_noise: float = option(0.0, "Probability that a pair is noise.")

    presets: ClassVar = {
        "demo": Preset(settings={"vocab_size": 8, "seq_len": 32}),
        "smoke": Preset(settings={"vocab_size": 8, "seq_len": 16}),
        "paper": published.mad(),
    }

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.seq_len < 4 or self.seq_len % 2:
            raise ValueError(
                f"{name}: expected an even seq_len of at least 4, got {self.seq_len}. "
                f"Use seq_len={max(4, self.seq_len + self.seq_len % 2)}."
            )
        if self.vocab_size - self.noise_vocab_size < 4 or self.noise_vocab_size < 0:
            raise ValueError(
                f"{name}: expected vocab_size of at least 4 more than noise_vocab_size >= 0, got "
                f"{self.vocab_size} and {self.noise_vocab_size}."
            )
        if not 0 <= self.frac_noise < 1 or (self.frac_noise and not self.noise_vocab_size):
            raise ValueError(
                f"{name}: expected frac_noise in [0, 1), and noise tokens where it is not 0, got "
                f"frac_noise={self.frac_noise} with noise_vocab_size={self.noise_vocab_size}."
            )

    @property
    def num_keys(self) -> int:
        """Keys; as many values follow, or one more."""
        return (self.vocab_size - self.noise_vocab_size) // 2

    @property
    def num_values(self) -> int:
        """Values."""
        return self.vocab_size - self.noise_vocab_size - self.num_keys

    def draw(self, key: PRNGKeyArray, judged: Bool[Array, ""] | bool) -> Example:
        """Draw one sequence."""
        pairs, num_keys, size = self.seq_len // 2, self.num_keys, self.vocab_size
        keys_key, map_key, probe_key, noise_key, token_key = jax.random.split(key, 5)
        values = jax.random.randint(
            map_key, (num_keys,), num_keys, num_keys + self.num_values, jnp.int32
        )
        keys = jax.random.randint(keys_key, (pairs,), 0, num_keys, jnp.int32)
        is_noise = jnp.zeros(pairs, bool)
        if self.frac_noise:
            first, rest = jax.random.split(noise_key)
            is_noise = jax.random.uniform(rest, (pairs,), jnp.float32) < self.frac_noise
            # One pair is none, so that there is a key to ask for; the last is the one that asks.
            is_noise = is_noise.at[jax.random.randint(first, (), 0, pairs - 1, jnp.int32)].set(
                False
            )
            is_noise = is_noise.at[-1].set(False)
        shown = jax.nn.one_hot(keys, num_keys, dtype=jnp.int32) * ~is_noise[:, None]
        there = shown[:-1].any(axis=0)
        probe = jax.random.categorical(
            probe_key, jnp.where(there, 0.0, -jnp.inf).astype(jnp.float32)
        )
        keys = keys.at[-1].set(probe.astype(jnp.int32))
        before = jnp.cumsum(shown, axis=0) - shown
        repeated = jnp.take_along_axis(before, keys[:, None], axis=1)[:, 0] > 0
        known = ~is_noise & repeated
        tokens = jnp.stack([keys, values[keys]], axis=1)
        if self.frac_noise:
            first = size - self.noise_vocab_size
            noise = jax.random.randint(token_key, (pairs, 2), first, size, jnp.int32)
            tokens = jnp.where(is_noise[:, None], noise, tokens)
        asked = jnp.stack([jnp.zeros_like(known), known], axis=1)
        return next_tokens(tokens.ravel(), asked.ravel(), judged)

    def baselines(self) -> dict[str, Baseline]:
        """Guessing among all values."""
        return {"chance": Baseline(1 / self.num_values, "guessing among all values")}

    def describe(self) -> str:
        """Length, vocabulary and noise."""
        noise = f", {self.noise_vocab_size} of them noise" if self.noise_vocab_size else ""
        share = f", {self.frac_noise:.0%} of the pairs" if self.frac_noise else ""
        return f"L = {self.seq_len}, vocabulary {self.vocab_size}{noise}{share}"

    def slug(self) -> str:
        """Length, vocabulary and noise."""
        noise = f"-noise{100 * self.frac_noise:.0f}" if self.frac_noise else ""
        return f"L{self.seq_len}-v{self.vocab_size}{noise}"


@dataclasses.dataclass(frozen=True)
class NoisyRecall(InContextRecall):
    """In-context recall with MAD's noise: 16 noise tokens, in every fifth pair.

    Example:
        >>> NoisyRecall().describe()
        'L = 128, vocabulary 32, 16 of them noise, 20% of the pairs'
    """

    title = "MAD: noisy in-context recall"

    vocab_size: int = option(32, "Token ids: keys, values and noise.")
    noise_vocab_size: int = option(16, "Token ids of noise.")
    frac_noise: float = option(0.2, "Probability that a pair is noise.")

    presets: ClassVar = {
        "demo": Preset(settings={"vocab_size": 12, "noise_vocab_size": 4, "seq_len": 32}),
        "smoke": Preset(settings={"vocab_size": 12, "noise_vocab_size": 4, "seq_len": 16}),
        "paper": published.mad(),
    }
