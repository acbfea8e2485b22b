r"""Modular arithmetic: the value of an expression of digits modulo a prime, 5 by default.

Without brackets, products come before sums as usual: :math:`3 - 2 × 4 + 1 = {}` has the value 1.
With brackets, expressions are drawn by splitting: one of n tokens is ``(left ± right)``, where the
length of the left part is uniform among those that leave a right one, down to the short forms
``d``, ``-d``, ``(d)`` and ``(-d)``.

*Brackets on the device.* A stack holds what is still to be written: tokens and expressions of a
given length. Each step takes the topmost and writes one token: of an expression its first one, and
the rest goes back on the stack. So n tokens take n steps. There are only sums, so the value is
:math:`\sum_i ± d_i`, and an expression on the stack carries the sign that its digits will have.

References:
    Grazzi et al. (2025), arXiv:2411.12537. Deletang et al. (2023), arXiv:2207.02098.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.state_tracking.tracking import StateTracking

PLUS, MINUS, TIMES, EQUALS, OPEN, CLOSE, PADDING = range(7)
"""Token ids less the modulus, which come after the digits."""


@dataclasses.dataclass(frozen=True)
class ModularArithmetic(StateTracking):
    """Give the value of an expression after its equals sign.

    Args:
        seq_len: Longest sequence L, the equals sign included.
        min_length: Shortest sequence. Without brackets all lengths are even.
        modulus: m; the digits are 0 to m − 1.
        brackets: With brackets, + and − only; without, also ×.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> task = ModularArithmetic(seq_len=8, min_length=8)
        >>> one = task.sample(jax.random.key(3))
        >>> task.text(one), int(one.targets[0])
        ('3+2*4-0=', 1)
    """

    title = "Modular arithmetic"

    modulus: int = option(5, "Values are taken modulo this number.")
    brackets: bool = option(False, "Expressions with brackets, + and −, instead of +, − and ×.")

    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 16}),
        "smoke": Preset(settings={"seq_len": 12}),
        "paper": published.MODULAR_ARITHMETIC,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulus < 2:
            raise ValueError(f"ModularArithmetic: expected modulus >= 2, got {self.modulus}.")
        if not self.lengths(2):
            raise ValueError(
                f"ModularArithmetic: expected an even length between min_length = "
                f"{self.min_length} and seq_len = {self.seq_len}; use seq_len={self.seq_len + 1}."
            )

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Digits, + − × = ( ) and a token that fills up."""
        return self.modulus + PADDING + 1

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one expression."""
        length_key, key = jax.random.split(key)
        length = self.draw_length(length_key, multiple=1 if self.brackets else 2)
        draw = self._nested if self.brackets else self._flat
        tokens, value = draw(key, length - 1)
        step, m = jnp.arange(self.seq_len), self.modulus
        tokens = jnp.where(step < length - 1, tokens, m + PADDING)
        inputs = tokens.at[length - 1].set(m + EQUALS)
        return Example(inputs, length[None] - 1, value[None], length=length)

    def _flat(
        self, key: PRNGKeyArray, length: Int[Array, ""]
    ) -> tuple[Int[Array, " l"], Int[Array, ""]]:
        """Digit, operation, digit, …: tokens, those after ``length`` being arbitrary, and value."""
        m, terms = self.modulus, -(-self.seq_len // 2)
        digit_key, operation_key = jax.random.split(key)
        digits = jax.random.randint(digit_key, (terms,), 0, m, jnp.int32)
        # operations[i] comes before digit i; there is a plus that is not shown before the first.
        operations = jax.random.randint(operation_key, (terms,), PLUS, TIMES + 1, jnp.int32)
        operations = operations.at[0].set(PLUS)
        tokens = jnp.stack([digits, jnp.roll(operations, -1) + m], axis=1).ravel()[: self.seq_len]

        def multiply(
            left: tuple[Bool[Array, " n"], Int[Array, " n"]],
            right: tuple[Bool[Array, " n"], Int[Array, " n"]],
        ) -> tuple[Bool[Array, " n"], Int[Array, " n"]]:
            # Products that begin anew wherever there is no ×.
            begins, product = right
            return left[0] | begins, jnp.where(begins, product, left[1] * product % m)

        signed = jnp.where(operations == MINUS, -digits % m, digits)
        _, products = jax.lax.associative_scan(multiply, (operations != TIMES, signed))
        index, last = jnp.arange(terms), length // 2
        ends = (index == last) | (jnp.roll(operations, -1) != TIMES)
        summed = jnp.where(ends & (index <= last), products, 0)
        return tokens, summed.sum(dtype=jnp.int32) % m

    def _nested(
        self, key: PRNGKeyArray, length: Int[Array, ""]
    ) -> tuple[Int[Array, " l"], Int[Array, ""]]:
        """Brackets: tokens, those after ``length`` being arbitrary, and value."""
        m = self.modulus
        # An entry is a token, or −n for an expression of n tokens, with the sign of its digits.
        # Every level adds at most three of them and uses up four tokens. At the bottom is a token
        # that is never taken away, for the steps after the end.
        entries = jnp.full(self.seq_len + 8, m + CLOSE, jnp.int32).at[1].set(-length)
        signs = jnp.ones(self.seq_len + 8, jnp.int32)

        def write(
            carry: tuple[Array, Array, Array, Array], draws: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Array, Array, Array], Array]:
            entries, signs, top, value = carry
            digit, operation, part = draws
            entry, sign = entries[top], signs[top]
            n = -entry
            is_split, is_digit, is_negated = n >= 5, n == 1, (n == 2) | (n == 4)
            # The left part has 1 to n − 4 tokens, which leaves at least one to the right one.
            left = 1 + (part * jnp.maximum(n - 4, 1)).astype(jnp.int32)
            token = jnp.select([is_digit, n == 2, n >= 3], [digit, m + MINUS, m + OPEN], entry)
            # What follows the token, the last of it first: `right` of (left ± right), and of (−d)
            # as much as there is: `) d -` of (-d), `) d` of (d), and `d` of -d.
            whole = jnp.stack([m + CLOSE, left + 3 - n, m + operation, -left])
            short = jnp.roll(jnp.stack([m + CLOSE, -1, m + MINUS, 0]), -(n == 2).astype(jnp.int32))
            size = jnp.select([is_split, n == 4, n == 3, n == 2], [4, 3, 2, 1], 0)
            rest = jnp.where(is_split, whole, short)
            turned = jnp.where(is_split & (jnp.arange(4) == 1), operation == MINUS, is_negated)
            rest_signs = jnp.where(turned, -sign, sign)
            entries = jax.lax.dynamic_update_slice(entries, rest, (top,))
            signs = jax.lax.dynamic_update_slice(signs, rest_signs, (top,))
            value = value + jnp.where(is_digit, sign * digit, 0)
            return (entries, signs, jnp.maximum(top + size - 1, 0), value), token

        digit_key, operation_key, part_key = jax.random.split(key, 3)
        shape = (self.seq_len,)
        draws = (
            jax.random.randint(digit_key, shape, 0, m, jnp.int32),
            jax.random.randint(operation_key, shape, PLUS, MINUS + 1, jnp.int32),
            jax.random.uniform(part_key, shape, jnp.float32),
        )
        start = (entries, signs, jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32))
        (*_, value), tokens = jax.lax.scan(write, start, draws)
        return tokens, value % m

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and the answer that is right most often: 0, as a product with a 0 is 0."""
        m = self.modulus
        found = {"chance": Baseline(1 / m, f"guessing among all {m} digits")}
        if not self.brackets:
            best = float(self._answers().max())
            found["trivial"] = Baseline(best, "giving the most frequent answer")
        return found

    def _answers(self) -> Float[np.ndarray, " modulus"]:
        """Probability of every answer of an expression without brackets."""
        m = self.modulus
        index = np.arange(m)
        law = np.zeros((m, m))  # of what is summed up, and of the product that is not yet
        law[0] = 1 / m
        answers, lengths = np.zeros(m), self.lengths(2)
        for terms in range(1, lengths[-1] // 2 + 1):
            if terms > 1:
                summed = np.zeros(m)
                np.add.at(summed, (index[:, None] + index) % m, law)
                grown = np.zeros((m, m))
                for digit in range(m):
                    np.add.at(grown.T, index * digit % m, law.T / m)
                # A new term begins with + or −, two of the three operations.
                law = 2 / 3 * np.outer(summed, np.full(m, 1 / m)) + grown / 3
            if 2 * terms in lengths:
                np.add.at(answers, (index[:, None] + index) % m, law / len(lengths))
        return answers

    def text(self, example: Example) -> str:
        """The expression of an example, as one writes it.

        Args:
            example: One example.
        """
        signs = [*map(str, range(self.modulus)), *"+-*=()", ""]
        return "".join(signs[token] for token in np.asarray(example.inputs))

    def describe(self) -> str:
        """Modulus, operations and lengths."""
        kind = "+ − and brackets" if self.brackets else "+ − ×"
        return f"modulo {self.modulus}, {kind}, {self.min_length} to {self.seq_len} tokens"
