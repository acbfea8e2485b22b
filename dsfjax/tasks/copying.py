r"""Copying: repeat a string, token by token, and end where it ends.

.. math:: □\, a\, c\, b\, |\, a\, c\, b \;→\; a,\, c,\, b,\, |

The copy is given token by token, as in the training of a language model: each token asks for the
next. Attention learns to look up what followed the last few tokens, at any length; a state of fixed
size can hold strings of some length only.

References:
    Jelassi et al. (2024), arXiv:2402.01032.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.supply import Generated


@dataclasses.dataclass(frozen=True)
class Copying(Generated):
    """Copy a string of letters; after the letters come a first token, a separator, and filler.

    Args:
        num_letters: Letters of the alphabet, drawn with replacement.
        num_tokens: Letters of the longest string, N. Sequences have 2 N + 2 steps.
        min_tokens: Letters of the shortest string.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> task = Copying(num_letters=3, num_tokens=3, min_tokens=3)
        >>> one = task.sample(jax.random.key(1))
        >>> one.inputs.tolist(), one.query_positions.tolist(), one.targets.tolist()
        ([3, 2, 1, 2, 4, 2, 1, 2], [4, 5, 6, 7], [2, 1, 2, 4])
    """

    title = "Copying"
    demands = ("copying",)

    num_letters: int = option(26, "Letters of the alphabet.")
    num_tokens: int = option(20, "Letters of the longest string.")
    min_tokens: int = option(5, "Letters of the shortest string.")

    presets: ClassVar = {
        "demo": Preset(settings={"num_letters": 8, "num_tokens": 8, "min_tokens": 2}),
        "smoke": Preset(settings={"num_letters": 5, "num_tokens": 5, "min_tokens": 2}),
        "paper": published.COPYING,
    }

    def __post_init__(self) -> None:
        if self.num_letters < 2:
            raise ValueError(f"Copying: expected at least 2 letters, got {self.num_letters}.")
        if not 1 <= self.min_tokens <= self.num_tokens:
            raise ValueError(
                f"Copying: expected min_tokens between 1 and num_tokens = {self.num_tokens}, got "
                f"{self.min_tokens}."
            )

    @property
    def seq_len(self) -> int:  # type: ignore[override]
        """A first token, the string, the separator, and the string again."""
        return 2 * self.num_tokens + 2

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """The letters, a first token, the separator, and filler."""
        return self.num_letters + 3

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one string."""
        longest, begin = self.num_tokens, self.num_letters
        separator, filler = begin + 1, begin + 2
        size_key, letter_key = jax.random.split(key)
        n = jax.random.randint(size_key, (), self.min_tokens, longest + 1, jnp.int32)
        letters = jax.random.randint(letter_key, (longest,), 0, self.num_letters, jnp.int32)
        step = jnp.arange(self.seq_len, dtype=jnp.int32)
        # Steps 1 to n, and n + 2 to 2 n + 1, show the string.
        first = letters[jnp.clip(step - 1, 0, longest - 1)]
        second = letters[jnp.clip(step - n - 2, 0, longest - 1)]
        inputs = jnp.select(
            [step == 0, step <= n, step == n + 1, step <= 2 * n + 1],
            [begin, first, separator, second],
            filler,
        ).astype(jnp.int32)
        asked = jnp.arange(longest + 1, dtype=jnp.int32)
        weights = (asked <= n).astype(jnp.float32)
        return Example(inputs, n + 1 + asked, inputs[1 : longest + 2], weights, length=2 * n + 2)

    def sources(self, example: Example) -> Int[Array, " queries"]:
        """Where the string shows what is to be copied; of its end, the separator."""
        return jnp.arange(1, self.num_tokens + 2, dtype=example.query_positions.dtype)

    def lengthened(self, factor: int) -> "Copying":
        """Strings that are all ``factor`` times as long as the longest; itself for 1."""
        longest = factor * self.num_tokens
        changes = {"num_tokens": longest, "min_tokens": longest} if factor > 1 else {}
        return dataclasses.replace(self, **changes)

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and always naming the letter that the string shows most often."""
        sizes = np.arange(self.min_tokens, self.num_tokens + 1)
        # A thousand strings of each size: the mean is off by a few tenths of a per cent.
        random, law = np.random.default_rng(0), np.full(self.num_letters, 1 / self.num_letters)
        most = sum(random.multinomial(n, law, size=1000).max(axis=1).mean() for n in sizes)
        asked = (sizes + 1).sum()
        return {
            "chance": Baseline(float(sizes.sum() / asked) / self.num_letters, "guessing letters"),
            "trivial": Baseline(float(most / asked), "naming the most frequent letter"),
        }

    def describe(self) -> str:
        """Letters and lengths."""
        return f"strings of {self.min_tokens} to {self.num_tokens} of {self.num_letters} letters"
