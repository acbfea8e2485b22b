r"""Fuzzy in-context recall: keys and values are motifs of one to three tokens.

.. math:: [k\,k'\; v\; k''\; v'\,v''\; k\,k'] → v

As there is nothing between a key and its value, or between pairs, a model has to find out where a
motif ends. The pairs are drawn one after the other until the sequence is nearly full, the one that
is queried at the end somewhere among them; what is left to fill is on the left.

*On the device.* All pairs are drawn at once, more than fit. A pair whose key has been drawn before
takes the value of its first appearance, which gives all lengths, and their sum where each begins.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.mad.two_laws import TwoLaws, next_tokens
from dsfjax.tasks.protocol import Baseline, Example, Preset, option


@dataclasses.dataclass(frozen=True)
class FuzzyRecall(TwoLaws):
    """Recall motifs; token ids are those of keys, those of values, and one that fills up.

    Args:
        vocab_size: V.
        seq_len: L.
        k_motif_size: Most tokens of a key; tokens of a motif are distinct. Held-out keys all have
            this size.
        v_motif_size: Most tokens of a value.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    title = "MAD: fuzzy in-context recall"
    demands = ("recall",)

    vocab_size: int = option(16, "Token ids: of keys, of values, and one that fills up.")
    seq_len: int = option(128, "Length of a sequence.")
    k_motif_size: int = option(3, "Most tokens of a key.")
    v_motif_size: int = option(3, "Most tokens of a value.")

    presets: ClassVar = {
        "demo": Preset(
            settings={"vocab_size": 10, "seq_len": 32, "k_motif_size": 2, "v_motif_size": 2}
        ),
        "smoke": Preset(
            settings={"vocab_size": 8, "seq_len": 24, "k_motif_size": 2, "v_motif_size": 2}
        ),
        "paper": published.mad(),
    }

    def __post_init__(self) -> None:
        motif = self.k_motif_size + self.v_motif_size
        if min(self.k_motif_size, self.v_motif_size) < 1 or motif > 8:
            raise ValueError(
                "FuzzyRecall: expected motifs of at least one token and at most 8 in a pair, got "
                f"k_motif_size={self.k_motif_size} and v_motif_size={self.v_motif_size}."
            )
        if self.num_keys < self.k_motif_size or self.num_values < self.v_motif_size:
            raise ValueError(
                f"FuzzyRecall: expected enough tokens for motifs of distinct ones, got vocab_size="
                f"{self.vocab_size}. Use vocab_size={2 * max(self.k_motif_size, motif) + 2}."
            )
        if self.seq_len < 3 * motif:
            raise ValueError(
                f"FuzzyRecall: expected seq_len of at least three pairs, got {self.seq_len}. Use "
                f"seq_len={3 * motif}."
            )

    @property
    def num_keys(self) -> int:
        """Tokens of keys."""
        return (self.vocab_size - 1) // 2

    @property
    def num_values(self) -> int:
        """Tokens of values."""
        return self.vocab_size - 1 - self.num_keys

    def draw(self, key: PRNGKeyArray, judged: Bool[Array, ""] | bool) -> Example:
        """Draw one sequence."""
        # Pair 0 is the queried one. The shortest ones have two tokens.
        count = 1 + self.seq_len // 2
        key, size_key, value_key, value_size_key, place_key = jax.random.split(key, 5)
        keys = _motifs(key, count, self.num_keys, self.k_motif_size)
        values = _motifs(value_key, count, self.num_values, self.v_motif_size) + self.num_keys
        sizes = jax.random.randint(size_key, (count,), 1, self.k_motif_size + 1, jnp.int32)
        sizes = jnp.where(judged, self.k_motif_size, sizes)
        value_sizes = jax.random.randint(
            value_size_key, (count,), 1, self.v_motif_size + 1, jnp.int32
        )
        keys = jnp.where(jnp.arange(self.k_motif_size) < sizes[:, None], keys, -1)

        def first_of(keys: Int[Array, "n k"]) -> Int[Array, " n"]:
            """For each pair the first with its key."""
            return (keys[:, None] == keys).all(axis=2).argmax(axis=1)

        def begins(keys: Int[Array, "n k"]) -> Int[Array, " n"]:
            """Where each pair begins, and pair 0 in the place before them all."""
            own = (keys >= 0).sum(axis=1) + value_sizes[first_of(keys)]
            return jnp.cumsum(own) - own - own[0]

        longest = self.k_motif_size + self.v_motif_size
        probe_size = sizes[0] + value_sizes[0]
        limit = self.seq_len - probe_size - longest
        # The first pair to begin at that place or later is the queried one, if it has not
        # come by chance. Even if it begins as late as can be, it is within the limit.
        place = jax.random.randint(place_key, (), 0, limit - longest + 1, jnp.int32)
        index = jnp.arange(count)
        late = (begins(keys) >= place) & (index > 0)
        inserted = late.argmax()
        by_chance = ((first_of(keys) == 0) & (index > 0) & (index < inserted)).any()
        is_probe = (index == inserted) & ~by_chance
        keys = jnp.where(is_probe[:, None], keys[0], keys)
        first, start = first_of(keys), begins(keys)
        there = (start < limit) & (index > 0)
        # A pair is the first one with its key among those that are shown: pair 0 is not shown yet.
        seen = ((keys[:, None] == keys).all(axis=2) & there).argmax(axis=1)
        known = there & (seen < index)
        sizes, value_sizes, values = (keys >= 0).sum(axis=1), value_sizes[first], values[first]
        end = jnp.where(there, start + sizes + value_sizes, 0).max()
        # Then the query, and everything so far to the right as that ends at the end.
        start = jnp.where(index == 0, end, start)
        known = known.at[0].set(True)
        there = there.at[0].set(True)
        shift = self.seq_len + 1 - (end + probe_size)
        places = start[:, None] + shift + jnp.arange(self.k_motif_size)
        behind = (start + sizes)[:, None] + shift + jnp.arange(self.v_motif_size)
        is_key = there[:, None] & (keys >= 0)
        is_value = there[:, None] & (jnp.arange(self.v_motif_size) < value_sizes[:, None])
        beyond = self.seq_len + 1
        places, behind = jnp.where(is_key, places, beyond), jnp.where(is_value, behind, beyond)
        tokens = jnp.full(beyond, self.vocab_size - 1, jnp.int32)
        tokens = tokens.at[places].set(keys, mode="drop").at[behind].set(values, mode="drop")
        asked = jnp.zeros(beyond, bool).at[behind].set(known[:, None], mode="drop")
        # The last token is only a target, as there is no step for it.
        found = next_tokens(tokens, asked, judged)
        return found._replace(inputs=tokens[:-1])

    def baselines(self) -> dict[str, Baseline]:
        """Guessing among all tokens of values."""
        chance = 1 / self.num_values
        return {"chance": Baseline(chance, "guessing among all tokens of values")}

    def describe(self) -> str:
        """Length, vocabulary and motifs."""
        return (
            f"L = {self.seq_len}, vocabulary {self.vocab_size}, keys of up to {self.k_motif_size} "
            f"and values of up to {self.v_motif_size} tokens"
        )


def _motifs(key: PRNGKeyArray, count: int, tokens: int, size: int) -> Int[Array, "count size"]:
    """Tuples of distinct tokens, each tuple as likely as any other."""
    clocks = jax.random.uniform(key, (count, tokens), jnp.float32)
    return jax.lax.top_k(clocks, size)[1].astype(jnp.int32)
