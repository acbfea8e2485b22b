"""The data set, made once, and the task made of it."""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dsfjax._util.names import choose
from dsfjax.tasks import published
from dsfjax.tasks.data import cached
from dsfjax.tasks.data.splits import TEST, VALIDATION, most_frequent
from dsfjax.tasks.listops.expressions import PAD, SYMBOLS
from dsfjax.tasks.listops.trees import SHORTEST, Expressions, distinct
from dsfjax.tasks.protocol import HELD_OUT, TRAIN, Baseline, Example, Preset, option
from dsfjax.tasks.supply import Resident

NUM_CLASSES = 10


_VERSION = 1  # raised when the same seed gives other expressions
_KEPT = 5_000  # fewer expressions are made faster than a file is read


@functools.lru_cache(maxsize=4)
def _expressions(seed: int, count: int, low: int, high: int, seq_len: int) -> Expressions:
    """Expressions, from the cache folder if they are many."""

    def make() -> dict[str, np.ndarray]:
        return distinct(seed, count, longer_than=low, shorter_than=high, seq_len=seq_len)._asdict()

    if count < _KEPT:
        return Expressions(**make())
    return Expressions(**cached("listops", (_VERSION, seed, count, low, high, seq_len), make))


@dataclasses.dataclass(frozen=True)
class ListOps(Resident):
    """The value of a nested expression of minima, maxima, medians and sums modulo ten.

    Long Range Arena's own files are not distributed with this package. The expressions are drawn
    anew by the same law (`dsfjax.tasks.listops.trees`), all distinct, and the title says so. The
    defaults are Long Range Arena's sizes, in the form in which S4 and S5 read them: 18 token ids,
    no parentheses, ``<eos>`` at the end, padded to 2,048 steps. ``longer_than=31, shorter_than=256,
    seq_len=256`` is a short version for machines without an accelerator.

    They are made once, which takes 20 seconds, and kept in the cache folder (``DSFJAX_CACHE``). The
    2 × ``num_held_out`` first ones are for testing and validation, and those after them
    train: what a model is judged on does not depend on ``num_train``.

    Args:
        longer_than: Expressions are longer than this many symbols, ``<eos>`` not counted.
        shorter_than: Expressions are shorter than this, at most ``seq_len``.
        seq_len: L, steps of a sequence, the padding included.
        num_train: Expressions to train on.
        num_held_out: Expressions for validation, and as many for testing.
        judged_on: What models are judged on, "test" or "validation".
        data_seed: Seed of all expressions.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> from dsfjax.tasks.listops import decode
        >>> task = ListOps(longer_than=3, shorter_than=16, seq_len=16, num_train=64, num_held_out=8)
        >>> ids, values = task.arrays("held_out")
        >>> decode(ids[0]), int(values[0])
        ('[MED 4 [MIN 4 4 9 0 1 8 9 0 5 4 ] ]', 2)
    """

    longer_than: int = option(500, "Expressions are longer than this many symbols.")
    shorter_than: int = option(2000, "Expressions are shorter than this many symbols.")
    seq_len: int = option(2048, "Length of a sequence with its padding.")
    num_train: int = option(96_000, "Expressions to train on.")
    num_held_out: int = option(2_000, "Expressions for validation, and as many for testing.")
    judged_on: str = option("test", "What models are judged on: test or validation.")
    data_seed: int = option(0, "Seed of the expressions.")

    demands = ("state-tracking", "classification")
    vocab_size = len(SYMBOLS)
    num_classes = NUM_CLASSES

    presets: ClassVar = {
        "demo": Preset(
            about="Short expressions, for a machine without an accelerator.",
            settings={
                "longer_than": 31,
                "shorter_than": 128,
                "seq_len": 128,
                "num_train": 20_000,
                "eval_examples": 512,
            },
        ),
        "smoke": Preset(
            settings={
                "longer_than": 3,
                "shorter_than": 16,
                "seq_len": 16,
                "num_train": 64,
                "num_held_out": 16,
            }
        ),
        "paper": published.LRA["listops"],
    }

    def __post_init__(self) -> None:
        if not SHORTEST <= self.longer_than + 1 < self.shorter_than <= self.seq_len:
            raise ValueError(
                f"ListOps: expected {SHORTEST - 1} ≤ longer_than, longer_than + 1 < shorter_than ≤ "
                f"seq_len, got longer_than={self.longer_than}, shorter_than={self.shorter_than}, "
                f"seq_len={self.seq_len}. Long Range Arena has 500, 2000, and S4 and S5 pad to "
                "2048."
            )
        if self.num_train < 1 or self.num_held_out < 1:
            raise ValueError(
                f"ListOps: expected num_train and num_held_out of at least 1, got "
                f"{self.num_train} and {self.num_held_out}."
            )
        choose("judged_on", self.judged_on, (TEST, VALIDATION))

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it is; not Long Range Arena's files."""
        return f"ListOps regenerated with LRA's law, seed {self.data_seed}"

    def size(self, split: str) -> int:
        """Expressions of a split, which need not be made to know it."""
        return self.num_train if split == TRAIN else self.num_held_out

    def arrays(self, split: str) -> PyTree:
        """Token ids and values."""
        n = self.num_held_out
        all_of_them = _expressions(
            self.data_seed,
            2 * n + self.num_train,
            self.longer_than,
            self.shorter_than,
            self.seq_len,
        )
        if split == TRAIN:
            part = slice(2 * n, None)
        else:
            part = slice(0, n) if self.judged_on == TEST else slice(n, 2 * n)
        return tuple(rows[part] for rows in all_of_them)

    def read(self, row: PyTree) -> Example:
        """One expression; the question comes after its ``<eos>``."""
        ids, value = row
        length = (ids != PAD).sum(dtype=jnp.int32)
        return Example(
            ids.astype(jnp.int32),
            length[None] - 1,
            value[None].astype(jnp.int32),
            length=length,
        )

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and the most frequent value of the expressions that train."""
        (_, known), (_, values) = self.arrays(TRAIN), self.arrays(HELD_OUT)
        usual, accuracy = most_frequent(known, values)
        return {
            "chance": Baseline(1 / NUM_CLASSES, "guessing among the ten values"),
            "trivial": Baseline(accuracy, f"always naming {usual}, the most frequent value"),
        }

    def describe(self) -> str:
        """Lengths and examples."""
        return (
            f"L = {self.seq_len}, expressions of {self.longer_than + 1} to {self.shorter_than - 1} "
            f"symbols, {self.num_train:,} to train and {self.num_held_out:,} for {self.judged_on}"
        )

    def slug(self) -> str:
        """Lengths."""
        return f"L{self.seq_len}-from{self.longer_than + 1}-to{self.shorter_than - 1}"
