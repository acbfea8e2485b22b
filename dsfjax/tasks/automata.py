r"""Random automata: continue words of a language that only the sequence itself shows (RegBench).

Every sequence has an automaton of its own: some nodes, and from each of them edges to a few others,
each with a symbol. A word is a walk from the first node that takes every edge of a node with the
same probability. A sequence shows some words, with separators between them; at every step the next
symbol is to be predicted, and each symbol that the automaton allows there is right.

*On the device.* What a step does to the node is a map from nodes to nodes, and maps compose: an
associative scan finds the nodes of all steps. A separator maps every node to the first.

References:
    Akyürek et al. (2024), arXiv:2401.12973.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, cross_entropy, option
from dsfjax.tasks.supply import Generated


class Automaton(NamedTuple):
    """A deterministic automaton whose nodes all accept; node 0 is the first.

    Attributes:
        symbols: Symbol of every edge, (nodes, edges).
        targets: Node that every edge leads to, (nodes, edges).
        degrees: Edges that a node has: so many of the first ones, (nodes,).
    """

    symbols: Int[Array, "nodes edges"]
    targets: Int[Array, "nodes edges"]
    degrees: Int[Array, " nodes"]


@dataclasses.dataclass(frozen=True)
class RandomAutomata(Generated):
    """Predict the next symbol of words; after the symbols come a separator and filler.

    Args:
        seq_len: L; what is longer is cut off, what is shorter filled up.
        vocab_size: V.
        max_nodes: Most nodes of an automaton; it has one more than ``max_edges`` at least.
        max_edges: Most edges from a node; it has one at least.
        max_words: Most words of a sequence.
        min_words: Fewest words of a sequence.
        max_word: Most symbols of a word; it has one at least.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    title = "Random automata"
    demands = ("recall", "state-tracking")

    seq_len: int = option(1024, "Length of a sequence; longer ones are cut off.")
    vocab_size: int = option(20, "Token ids: symbols, a separator and filler.")
    max_nodes: int = option(12, "Most nodes of an automaton.")
    max_edges: int = option(3, "Most edges from a node.")
    max_words: int = option(19, "Most words of a sequence.")
    min_words: int = option(10, "Fewest words of a sequence.")
    max_word: int = option(49, "Most symbols of a word.")

    presets: ClassVar = {
        "demo": Preset(
            settings={
                "seq_len": 64,
                "vocab_size": 10,
                "max_nodes": 4,
                "max_edges": 2,
                "max_words": 8,
                "min_words": 6,
                "max_word": 12,
            }
        ),
        "smoke": Preset(
            settings={
                "seq_len": 24,
                "vocab_size": 8,
                "max_nodes": 4,
                "max_edges": 2,
                "max_words": 4,
                "min_words": 3,
                "max_word": 8,
            }
        ),
        "paper": published.AUTOMATA,
    }

    def __post_init__(self) -> None:
        if self.max_edges < 1 or self.max_nodes <= self.max_edges:
            raise ValueError(
                "RandomAutomata: expected max_edges >= 1 and more nodes than edges of a node, got "
                f"max_nodes={self.max_nodes} and max_edges={self.max_edges}. Use "
                f"max_nodes={self.max_edges + 1}."
            )
        if self.num_symbols <= self.max_edges:
            raise ValueError(
                f"RandomAutomata: expected vocab_size of at least max_edges + 3 = "
                f"{self.max_edges + 3}, got {self.vocab_size}."
            )
        if not 1 <= self.min_words <= self.max_words or self.max_word < 1 or self.seq_len < 2:
            raise ValueError(
                "RandomAutomata: expected 1 <= min_words <= max_words, max_word >= 1 and seq_len "
                f">= 2, got {self.min_words}, {self.max_words}, {self.max_word}, {self.seq_len}."
            )

    @property
    def num_symbols(self) -> int:
        """Symbols; the separator and the filler come after them."""
        return self.vocab_size - 2

    def automaton(self, key: PRNGKeyArray) -> Automaton:
        """Draw one automaton: that of `sample` with the same key.

        It has from ``max_edges`` + 1 to ``max_nodes`` nodes, and an alphabet of as many symbols to
        all there are. The edges of a node lead to different nodes, none to itself, by different
        symbols.

        Args:
            key: PRNG key.
        """
        keys = jax.random.split(jax.random.fold_in(key, 0), 6)
        n, edges, fewest = self.max_nodes, self.max_edges, self.max_edges + 1
        nodes = jax.random.randint(keys[0], (), fewest, n + 1, jnp.int32)
        size = jax.random.randint(keys[1], (), fewest, self.num_symbols + 1, jnp.int32)
        in_alphabet = jax.random.permutation(keys[2], self.num_symbols) < size
        degrees = jax.random.randint(keys[3], (n,), 1, edges + 1, jnp.int32)
        # The largest of independent uniform numbers are a choice without replacement.
        clocks = jax.random.uniform(keys[4], (n, self.num_symbols), jnp.float32)
        symbols = jax.lax.top_k(jnp.where(in_alphabet, clocks, -1.0), edges)[1]
        index = jnp.arange(n)
        others = (index < nodes) & (index != index[:, None])
        clocks = jax.random.uniform(keys[5], (n, n), jnp.float32)
        targets = jax.lax.top_k(jnp.where(others, clocks, -1.0), edges)[1]
        return Automaton(symbols.astype(jnp.int32), targets.astype(jnp.int32), degrees)

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one automaton, and words of it."""
        steps, symbol_count = self.seq_len, self.num_symbols
        symbols, targets, degrees = self.automaton(key)
        count_key, size_key, edge_key = jax.random.split(jax.random.fold_in(key, 1), 3)
        words = jax.random.randint(count_key, (), self.min_words, self.max_words + 1, jnp.int32)
        sizes = jax.random.randint(size_key, (self.max_words,), 1, self.max_word + 1, jnp.int32)
        # A separator after every word, but for the last one.
        ends = jnp.cumsum(sizes + 1) - 1
        length = jnp.minimum(ends[words - 1], steps).astype(jnp.int32)
        is_end = jnp.zeros(steps, bool).at[ends].set(True, mode="drop")
        # For every step and every node it may be at: the edge that is taken, and where it leads.
        which = jax.random.uniform(edge_key, (steps, 1), jnp.float32)
        edge = jnp.minimum((which * degrees).astype(jnp.int32), degrees - 1)
        node = jnp.arange(self.max_nodes)
        moves = jnp.where(is_end[:, None], 0, targets[node, edge])
        maps = jax.lax.associative_scan(
            lambda first, then: jnp.take_along_axis(then, first, axis=1), moves
        )
        # Node before every step, and what it shows.
        at = jnp.concatenate([jnp.zeros(1, jnp.int32), maps[:-1, 0]])
        step = jnp.arange(steps, dtype=jnp.int32)
        tokens = symbols[at, edge[step, at]]
        tokens = jnp.where(is_end, symbol_count, tokens)
        tokens = jnp.where(step < length, tokens, symbol_count + 1)
        # What is allowed, the edges that a node has not repeating its first one.
        there = jnp.arange(self.max_edges) < degrees[:, None]
        allowed = jnp.where(there, symbols, symbols[:, :1])[at]
        answers = jnp.concatenate([tokens[:, None], allowed], axis=1)[1:]
        weights = ((step < length) & ~is_end)[1:].astype(jnp.float32)
        return Example(tokens, step[:-1], answers, weights, length=length)

    def measure(
        self, outputs: Float[Array, "*batch k"], targets: Shaped[Array, "*batch answers"]
    ) -> dict[str, Shaped[Array, "*batch"]]:
        """Cross-entropy of the symbol that comes, and whether the likeliest one is allowed.

        Args:
            outputs: Logits.
            targets: The symbol that comes, then all that are allowed.
        """
        found = cross_entropy(outputs, targets[..., 0])
        named = outputs.argmax(axis=-1).astype(targets.dtype)
        return found | {"accuracy": (named[..., None] == targets[..., 1:]).any(axis=-1)}

    def lengthened(self, factor: int) -> "RandomAutomata":
        """So many times as many words of an automaton."""
        names = ("seq_len", "max_words", "min_words")
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in names})

    def baselines(self) -> dict[str, Baseline]:
        """Guessing among all symbols, of which a node allows a few."""
        mean = float(np.arange(1, self.max_edges + 1).mean())
        return {"chance": Baseline(mean / self.num_symbols, "guessing among all symbols")}

    def describe(self) -> str:
        """Length, words and automata."""
        return (
            f"L = {self.seq_len}, {self.min_words} to {self.max_words} words of up to "
            f"{self.max_word} symbols, automata of up to {self.max_nodes} nodes with up to "
            f"{self.max_edges} edges each"
        )
