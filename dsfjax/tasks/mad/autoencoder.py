r"""Compression: put a whole sequence into the features of its last token.

.. math:: x_1\, x_2 \dots x_{L-1}\, c \;→\; x_1,\, x_2, \dots x_{L-1},\, c

A decoder reproduces all tokens from the features of the last one alone: it adds an embedding of the
queried position to them and passes the sum through an MLP (the head "decoder" of a model), so no
token but the last one can help. What is measured is how much one vector of the model holds.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, cross_entropy, option
from dsfjax.tasks.supply import Generated


@dataclasses.dataclass(frozen=True)
class Compression(Generated):
    """Reproduce a sequence from its last features; the last token id ends it.

    The one query of a sequence has the whole sequence as its answer.

    Args:
        vocab_size: V.
        seq_len: L, the last token included.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> one = Compression(vocab_size=4, seq_len=6).sample(jax.random.key(0))
        >>> bool((one.inputs == one.targets[0]).all()), one.query_positions.tolist()
        (True, [5])
    """

    title = "MAD: compression"
    demands = ("copying",)

    vocab_size: int = option(16, "Token ids: those to keep, and one at the end.")
    seq_len: int = option(32, "Length of a sequence.")

    presets: ClassVar = {
        "demo": Preset(settings={"vocab_size": 8, "seq_len": 8}),
        "smoke": Preset(settings={"vocab_size": 8, "seq_len": 8}),
        "paper": published.mad(),
    }

    def __post_init__(self) -> None:
        if self.vocab_size < 3 or self.seq_len < 2:
            raise ValueError(
                "Compression: expected vocab_size of at least 3 and seq_len of at least 2, got "
                f"{self.vocab_size} and {self.seq_len}."
            )

    @property
    def num_decoded(self) -> int:  # type: ignore[override]
        """All tokens."""
        return self.seq_len

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence."""
        tokens = jax.random.randint(key, (self.seq_len,), 0, self.vocab_size - 1, jnp.int32)
        tokens = tokens.at[-1].set(self.vocab_size - 1)
        return Example(tokens, jnp.array([self.seq_len - 1], jnp.int32), tokens[None])

    def measure(
        self, outputs: Float[Array, "*batch l k"], targets: Shaped[Array, "*batch l"]
    ) -> dict[str, Shaped[Array, "*batch"]]:
        """Cross-entropy and accuracy, averaged over the tokens of a sequence."""
        found = cross_entropy(outputs, targets)
        return {name: each.mean(axis=-1, dtype=outputs.dtype) for name, each in found.items()}

    def lengthened(self, factor: int) -> Generated:
        """None: the decoder has an output for every token.

        Raises:
            ValueError: For a factor above 1.
        """
        if factor > 1:
            raise ValueError(f"Compression: expected factor 1, got {factor}: a decoder has a size.")
        return self

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and knowing how a sequence ends."""
        chance, rest = 1 / (self.vocab_size - 1), 1 - 1 / self.seq_len
        return {
            "chance": Baseline(1 / self.vocab_size, "guessing among all tokens"),
            "trivial": Baseline(
                rest * chance + 1 - rest,
                "guessing all tokens but the last, which is always the same",
            ),
        }

    def describe(self) -> str:
        """Length and vocabulary."""
        return f"L = {self.seq_len}, vocabulary {self.vocab_size}"
