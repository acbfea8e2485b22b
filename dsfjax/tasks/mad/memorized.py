r"""Memorization: know a fixed map from keys to values, which no sequence shows.

.. math:: k_1\, ?\, k_2\, ? \dots \;→\; f(k_1),\, f(k_2), \dots

The map is in the parameters of the model or nowhere: what is measured is what its channels hold.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.supply import Generated


@dataclasses.dataclass(frozen=True)
class Memorization(Generated):
    """Give the value of every key; the last token id asks for it.

    Args:
        vocab_size: V: keys, values, and the token that asks.
        seq_len: L, even.
        map_seed: Seed of the map, the same for all examples.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> task = Memorization(vocab_size=9, seq_len=4)
        >>> one = task.sample(jax.random.key(0))
        >>> bool((task.values()[one.inputs[::2]] == one.targets).all())
        True
    """

    title = "MAD: memorization"
    demands = ("memorization",)

    vocab_size: int = option(256, "Token ids: keys, values, and one that asks.")
    seq_len: int = option(32, "Length of a sequence.")
    map_seed: int = option(12345, "Seed of the map from keys to values.")

    presets: ClassVar = {
        "demo": Preset(settings={"vocab_size": 64, "seq_len": 16}),
        "smoke": Preset(settings={"vocab_size": 16, "seq_len": 8}),
        "paper": published.mad(published.MAD_MEMORIZED),
    }

    def __post_init__(self) -> None:
        if self.vocab_size < 5:
            raise ValueError(
                f"Memorization: expected vocab_size of at least 5, got {self.vocab_size}: two "
                "keys, two values and the token that asks."
            )
        if self.seq_len < 2 or self.seq_len % 2:
            raise ValueError(
                f"Memorization: expected an even seq_len of at least 2, got {self.seq_len}. Use "
                f"seq_len={max(2, self.seq_len + self.seq_len % 2)}."
            )

    def values(self) -> Int[np.ndarray, " keys"]:
        """The map: the value of every key, all different."""
        keys, end = (self.vocab_size - 1) // 2, self.vocab_size - 1
        random = np.random.default_rng(self.map_seed)
        return random.permutation(np.arange(keys, end, dtype=np.int32))[:keys]

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence."""
        values = self.values()
        keys = jax.random.randint(key, (self.seq_len // 2,), 0, len(values), jnp.int32)
        inputs = jnp.stack([keys, jnp.full_like(keys, self.vocab_size - 1)], axis=1).ravel()
        asked = jnp.arange(1, self.seq_len, 2, dtype=jnp.int32)
        return Example(inputs, asked, jnp.asarray(values)[keys])

    def baselines(self) -> dict[str, Baseline]:
        """Guessing among all values that a key has."""
        return {"chance": Baseline(1 / len(self.values()), "guessing among all values")}

    def describe(self) -> str:
        """Keys and length."""
        return f"L = {self.seq_len}, {len(self.values())} keys, vocabulary {self.vocab_size}"
