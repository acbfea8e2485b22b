"""Generated tasks that are trained on one law and judged by another."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from dsfjax.tasks.protocol import Example
from dsfjax.tasks.supply import Generated


class TwoLaws(Generated):
    """Training asks for every next token, the evaluation only for those that can be known.

    So it is with MAD's recall tasks: the published code shifts the inputs for training, and masks
    what cannot be known for the test. You write `draw`.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, judged: Bool[Array, ""] | bool) -> Example:
        """Draw one example; pure, and called under ``jit`` and ``vmap``.

        Args:
            key: PRNG key.
            judged: Whether it is a held-out example.
        """

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one held-out example."""
        return self.draw(key, True)

    def picks(self, key: PRNGKeyArray, step: Int[Array, ""], count: int) -> Array:
        """The data of a key per example, and a 0 for training."""
        data = jax.random.key_data(super().picks(key, step, count))
        return jnp.pad(data, ((0, 0), (0, 1)))

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The data of the key of a held-out example, and a 1."""
        data = jax.random.key_data(super().held_out(key, index))
        return jnp.pad(data, (0, 1), constant_values=1)

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a key."""
        del data
        return self.draw(jax.random.wrap_key_data(pick[:-1]), pick[-1] > 0)


def next_tokens(
    tokens: Int[Array, " l"], known: Bool[Array, " l"], judged: Bool[Array, ""] | bool
) -> Example:
    """Ask for every next token in training, and for the known ones alone in the evaluation.

    Args:
        tokens: The sequence.
        known: Whether a token can be known from those before it.
        judged: Whether it is a held-out example.
    """
    weights = jnp.where(judged, known[1:], True).astype(jnp.float32)
    positions = jnp.arange(len(tokens) - 1, dtype=jnp.int32)
    return Example(tokens, positions, tokens[1:], weights)
