r"""Selective copying: repeat the tokens of a sequence, in order, without the noise between them.

.. math:: 0\, a\, 0\, 0\, b\, 0\, c\, 0 \dots 1\, 1\, 1 \;→\; a\, b\, c

The n tokens stand at random places of the first L − n steps; at the last n steps a marker asks for
them one after the other. A time-invariant system cannot solve it, as what is to be kept is known
from the token alone.

References:
    Gu and Dao (2023), arXiv:2312.00752. Poli et al. (2024), arXiv:2403.17844 (MAD).
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.supply import Generated

NOISE, MARKER, FIRST = 0, 1, 2
"""Token ids of the noise and of the marker, and the first one that is to be copied."""


@dataclasses.dataclass(frozen=True)
class SelectiveCopying(Generated):
    """Copy ``num_tokens`` tokens out of noise.

    Args:
        vocab_size: V: noise, the marker, and V − 2 tokens to copy, drawn with replacement.
        seq_len: L, the markers included.
        num_tokens: n, tokens to copy, at most L/2.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> task = SelectiveCopying(vocab_size=10, seq_len=12, num_tokens=3)
        >>> one = task.sample(jax.random.key(0))
        >>> one.inputs.shape, one.inputs[-3:].tolist()
        ((12,), [1, 1, 1])
        >>> bool((one.inputs[task.sources(one)] == one.targets).all())
        True
    """

    title = "Selective copying"
    demands = ("copying",)

    vocab_size: int = option(16, "Token ids: noise, a marker, and those to copy.")
    seq_len: int = option(64, "Length of a sequence.")
    num_tokens: int = option(8, "Tokens to copy, at most half the length.")

    presets: ClassVar = {
        "demo": Preset(settings={"vocab_size": 16, "seq_len": 32, "num_tokens": 4}),
        "smoke": Preset(settings={"vocab_size": 8, "seq_len": 16, "num_tokens": 2}),
    }

    def __post_init__(self) -> None:
        if self.vocab_size < FIRST + 2:
            raise ValueError(
                f"SelectiveCopying: expected vocab_size of at least {FIRST + 2}, got "
                f"{self.vocab_size}: noise, a marker and two tokens to tell apart."
            )
        if not 1 <= self.num_tokens <= self.seq_len // 2:
            raise ValueError(
                f"SelectiveCopying: expected num_tokens between 1 and seq_len / 2 = "
                f"{self.seq_len // 2}, got {self.num_tokens}. Use seq_len={2 * self.num_tokens} "
                "or more."
            )

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence."""
        n, shown = self.num_tokens, self.seq_len - self.num_tokens
        token_key, place_key = jax.random.split(key)
        tokens = jax.random.randint(token_key, (n,), FIRST, self.vocab_size, jnp.int32)
        places = jnp.sort(jax.random.permutation(place_key, shown)[:n])
        inputs = jnp.full(self.seq_len, NOISE, jnp.int32).at[places].set(tokens)
        inputs = inputs.at[shown:].set(MARKER)
        return Example(inputs, jnp.arange(shown, self.seq_len, dtype=jnp.int32), tokens)

    def sources(self, example: Example) -> Int[Array, " queries"]:
        """The place of every token to copy."""
        shown = jnp.where(example.inputs >= FIRST, jnp.arange(self.seq_len), self.seq_len)
        return jnp.sort(shown)[: self.num_tokens].astype(example.query_positions.dtype)

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and always naming the token that the sequence shows most often."""
        return baselines(self.vocab_size - FIRST, self.num_tokens)

    def describe(self) -> str:
        """Length, tokens and vocabulary."""
        return f"L = {self.seq_len}, {self.num_tokens} tokens to copy, vocabulary {self.vocab_size}"


def baselines(m: int, n: int) -> dict[str, Baseline]:
    """Guessing among m tokens, and naming the most frequent one of n that are drawn of them.

    Args:
        m: Tokens there are.
        n: Tokens that a sequence shows.
    """
    # n tokens with none more than k times: n!/mⁿ times the coefficient of xⁿ in
    # (Σ_{i≤k} xⁱ/i!)ᵐ; and E[max] = Σ_k P(max > k). Logarithms, as mⁿ soon fits into no float.
    most = 0.0
    for k in range(n):
        terms = np.array([math.exp(-math.lgamma(i + 1)) for i in range(k + 1)])
        power = np.array([1.0])
        for _ in range(m):
            power = np.convolve(power, terms)[: n + 1]
        at_most = power[n] * math.exp(math.lgamma(n + 1) - n * math.log(m)) if len(power) > n else 0
        most += 1 - at_most
    return {
        "chance": Baseline(1 / m, "guessing among all tokens"),
        "trivial": Baseline(float(most) / n, "naming the most frequent token of the sequence"),
    }
