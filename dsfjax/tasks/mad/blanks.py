r"""MAD's selective copying: repeat tokens in order, without the blanks before each of them.

.. math:: □\, □\, a\, b\, □\, c\; ⧉\; □\, □\, □ \;→\; a\, b\, c

It is not the law of `dsfjax.tasks.selective_copying`: there every choice of places is equally
likely, and markers ask for the tokens. Here each blank goes before one of the tokens, whichever is
equally likely, so that the last token is right before the copy token ⧉, and blanks ask.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Int, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.selective_copying import baselines
from dsfjax.tasks.supply import Generated


@dataclasses.dataclass(frozen=True)
class BlankCopying(Generated):
    """Copy ``num_tokens_to_copy`` tokens; the last two token ids are the blank and the copy token.

    Args:
        vocab_size: V.
        seq_len: L, more than 2 n + 1.
        num_tokens_to_copy: n.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> task = BlankCopying(vocab_size=6, seq_len=12, num_tokens_to_copy=3)
        >>> one = task.sample(jax.random.key(0))
        >>> one.inputs[-4:].tolist()
        [5, 4, 4, 4]
        >>> bool((one.inputs[task.sources(one)] == one.targets).all())
        True
    """

    title = "MAD: selective copying"
    demands = ("copying",)

    vocab_size: int = option(16, "Token ids: those to copy, a blank, and one that asks for a copy.")
    seq_len: int = option(256, "Length of a sequence.")
    num_tokens_to_copy: int = option(16, "Tokens to copy, less than half the length.")

    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 32, "num_tokens_to_copy": 4}),
        "smoke": Preset(settings={"vocab_size": 8, "seq_len": 16, "num_tokens_to_copy": 2}),
        "paper": published.mad(),
    }

    def __post_init__(self) -> None:
        if self.vocab_size < 4:
            raise ValueError(
                f"BlankCopying: expected vocab_size of at least 4, got {self.vocab_size}: two "
                "tokens to tell apart, a blank and a copy token."
            )
        if not 1 <= self.num_tokens_to_copy <= (self.seq_len - 2) // 2:
            raise ValueError(
                f"BlankCopying: expected num_tokens_to_copy between 1 and (seq_len - 2) / 2 = "
                f"{(self.seq_len - 2) // 2}, got {self.num_tokens_to_copy}. Use "
                f"seq_len={2 * self.num_tokens_to_copy + 2} or more."
            )

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence."""
        n = self.num_tokens_to_copy
        blanks = self.seq_len - 2 * n - 1
        token_key, gap_key = jax.random.split(key)
        tokens = jax.random.randint(token_key, (n,), 0, self.vocab_size - 2, jnp.int32)
        gaps = jax.random.randint(gap_key, (blanks,), 0, n, jnp.int32)
        # Token i has the blanks of all gaps up to its own before it, and i tokens.
        before = (gaps <= jnp.arange(n, dtype=jnp.int32)[:, None]).sum(axis=1, dtype=jnp.int32)
        inputs = jnp.full(self.seq_len, self.vocab_size - 2, jnp.int32)
        inputs = inputs.at[before + jnp.arange(n, dtype=jnp.int32)].set(tokens)
        inputs = inputs.at[-n - 1].set(self.vocab_size - 1)
        return Example(inputs, jnp.arange(self.seq_len - n, self.seq_len, dtype=jnp.int32), tokens)

    def sources(self, example: Example) -> Int[jax.Array, " queries"]:
        """The place of every token to copy."""
        place = jnp.arange(self.seq_len, dtype=example.query_positions.dtype)
        shown = jnp.where(example.inputs < self.vocab_size - 2, place, self.seq_len)
        return jnp.sort(shown)[: self.num_tokens_to_copy]

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and always naming the token that the sequence shows most often."""
        return baselines(self.vocab_size - 2, self.num_tokens_to_copy)

    def describe(self) -> str:
        """Length, tokens and vocabulary."""
        n = self.num_tokens_to_copy
        return f"L = {self.seq_len}, {n} tokens to copy, vocabulary {self.vocab_size}"
