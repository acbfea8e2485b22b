"""What the tasks of state tracking share: sequences of several lengths, and longer ones to test."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from dsfjax.tasks.protocol import option
from dsfjax.tasks.supply import Generated


@dataclasses.dataclass(frozen=True)
class StateTracking(Generated):
    """Sequences whose length is drawn anew for each, padded on the right to ``seq_len``.

    Attributes:
        seq_len: Longest sequence L.
        min_length: Shortest sequence.
    """

    demands = ("state-tracking",)

    seq_len: int = option(40, "Longest sequence; shorter ones are padded to it.")
    min_length: int = option(3, "Shortest sequence.")

    def __post_init__(self) -> None:
        if not 2 <= self.min_length <= self.seq_len:
            raise ValueError(
                f"{type(self).__name__}: expected min_length between 2 and seq_len = "
                f"{self.seq_len}, got {self.min_length}. Use min_length=2 or a longer seq_len."
            )

    def draw_length(self, key: PRNGKeyArray, *, multiple: int = 1) -> Int[Array, ""]:
        """A length, each multiple of ``multiple`` from shortest to longest as likely as any other.

        Args:
            key: PRNG key.
            multiple: What the length is a multiple of.
        """
        lengths = self.lengths(multiple)
        return lengths[0] + multiple * jax.random.randint(key, (), 0, len(lengths), jnp.int32)

    def lengths(self, multiple: int = 1) -> range:
        """The lengths that are drawn from."""
        first = -(-self.min_length // multiple) * multiple
        return range(first, self.seq_len + 1, multiple)

    def lengthened(self, factor: int) -> StateTracking:
        """Sequences that are all ``factor`` times as long as the longest; itself for 1."""
        longest = factor * self.seq_len
        changes = {"seq_len": longest, "min_length": longest} if factor > 1 else {}
        return dataclasses.replace(self, **changes)
