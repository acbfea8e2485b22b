r"""Word problems: the product of the group elements seen so far, after every step.

.. math:: h_t = h_{t-1} · g_t, \qquad y_t = h_t, \qquad g_t ∈ G

How hard it is depends on the group: Z60 is commutative, S3 is solvable, A5 and S5 are not, and
circuits of constant depth cannot multiply their words. All three of Z60, A4xZ5 and A5 have 60
elements, so a model that fails on A5 alone fails at its structure and not at its size.

References:
    Merrill et al. (2024), arXiv:2404.08819. Barrington (1989), J. Comput. Syst. Sci. 38.
"""

import dataclasses
import functools
import itertools
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset, option
from dsfjax.tasks.state_tracking.tracking import StateTracking

LARGEST = 720
"""Most elements of a group: those of S6."""
_FACTOR = re.compile(r"([SAZ])([1-9]\d*)")


@functools.lru_cache(maxsize=32)
def group_table(name: str) -> Int[np.ndarray, "order order"]:
    """The multiplication table of a group, computed from permutations.

    Args:
        name: "S5" (all permutations of 5 things), "A5" (the even ones), "Z60" (the cyclic group),
            or a direct product such as "A4xZ5".

    Returns:
        ``table[g, h]``, the number of g · h: first g, then h. Number 0 is the identity.

    Raises:
        ValueError: For another name, or a group of more than 720 elements.

    Example:
        >>> group_table("Z3")
        array([[0, 1, 2],
               [1, 2, 0],
               [2, 0, 1]], dtype=int32)
    """
    table = np.zeros((1, 1), np.int32)
    for factor in name.split("x"):
        own = _factor_table(factor, name)
        order = len(table) * len(own)
        if order > LARGEST:
            raise _unknown(name)
        # Elements of the product are pairs, the number of (a, b) being a · |B| + b.
        pairs = table[:, None, :, None] * len(own) + own[None, :, None, :]
        table = pairs.reshape(order, order)
    table.flags.writeable = False  # the cached array is everyone's
    return table


def _factor_table(factor: str, name: str) -> Int[np.ndarray, "order order"]:
    if not (found := _FACTOR.fullmatch(factor)):
        raise _unknown(name)
    kind, n = found[1], int(found[2])
    if n > (LARGEST if kind == "Z" else 6):
        raise _unknown(name)
    if kind == "Z":
        turns = np.arange(n, dtype=np.int32)
        return (turns[:, None] + turns) % n
    # In the order of itertools the identity comes first.
    elements = np.array(list(itertools.permutations(range(n))))
    if kind == "A":
        crossings = np.triu(elements[:, :, None] > elements[:, None, :], 1).sum(axis=(1, 2))
        elements = elements[crossings % 2 == 0]
    # A permutation p sends i to p[i]; first g, then h, sends it to h[g[i]].
    products = elements[:, elements].transpose(1, 0, 2)
    digits = n ** np.arange(n)
    number = {code: i for i, code in enumerate((elements @ digits).tolist())}
    codes = (products @ digits).tolist()
    return np.array([[number[code] for code in row] for row in codes], np.int32)


def _unknown(name: str) -> ValueError:
    return ValueError(
        "group_table: expected S, A or Z and a number (S3, A5, Z60), or a product of them "
        f"(A4xZ5), of at most {LARGEST} elements, got {name!r}."
    )


@dataclasses.dataclass(frozen=True)
class WordProblem(StateTracking):
    """Multiply group elements, and give the product after every step.

    Args:
        seq_len: Longest sequence L.
        min_length: Shortest sequence.
        group: Name of the group, as `group_table` reads it. Its elements are the token ids, and
            one more fills up.
        asked_from: First step after which the product is asked, from 0.

    Raises:
        ValueError: If there is no such group, or the lengths do not fit together.

    Example:
        >>> task = WordProblem(seq_len=6, min_length=6, group="Z5")
        >>> one = task.sample(jax.random.key(0))
        >>> (one.inputs.cumsum() % 5).tolist() == one.targets.tolist()
        True
    """

    title = "Word problem"

    group: str = option("S3", "The group: S, A or Z with a number, or a product such as A4xZ5.")
    asked_from: int = option(0, "First step after which the product is asked, from 0.")

    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 16}),
        "smoke": Preset(settings={"seq_len": 12}),
        "paper": published.WORD_PROBLEM,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        group_table(self.group)
        if not 0 <= self.asked_from < self.min_length:
            raise ValueError(
                f"WordProblem: expected asked_from from 0 to min_length - 1 = "
                f"{self.min_length - 1}, got {self.asked_from}: every sequence needs a question."
            )

    @property
    def order(self) -> int:
        """Elements of the group."""
        return len(group_table(self.group))

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """The elements, and a token that fills up."""
        return self.order + 1

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence of elements, each as likely as any other."""
        length_key, word_key = jax.random.split(key)
        length = self.draw_length(length_key)
        word = jax.random.randint(word_key, (self.seq_len,), 0, self.order, jnp.int32)
        table = jnp.asarray(group_table(self.group))
        # The product is associative, so all prefixes are found in log L steps.
        products = jax.lax.associative_scan(lambda g, h: table[g, h], word)
        step = jnp.arange(self.seq_len, dtype=jnp.int32)
        asked = step[self.asked_from :]
        return Example(
            inputs=jnp.where(step < length, word, self.order),
            query_positions=asked,
            targets=products[self.asked_from :],
            weights=(asked < length).astype(jnp.float32),
            length=length,
        )

    def lengthened(self, factor: int) -> StateTracking:
        """As of all tasks of state tracking, asked about the second half only.

        The first half is not longer than what the next smaller factor, half as large, has shown.
        """
        longer = super().lengthened(factor)
        return dataclasses.replace(longer, asked_from=longer.seq_len // 2) if factor > 1 else longer

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and repeating the last element, which is right after the first step."""
        lengths, chance = self.lengths(), 1 / self.order
        questions = sum(lengths) / len(lengths) - self.asked_from
        first = 0 if self.asked_from else 1 / questions
        return {
            "chance": Baseline(chance, f"guessing among all {self.order} elements"),
            "trivial": Baseline(first + (1 - first) * chance, "repeating the last element"),
        }

    def describe(self) -> str:
        """Group and lengths."""
        return f"group {self.group}, {self.min_length} to {self.seq_len} elements"
