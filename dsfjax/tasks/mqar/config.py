"""The size of the task, checked before anything is drawn or compiled."""

import dataclasses
import math
import numbers

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class MQARConfig:
    """Size of a multi-query associative recall task; hashable, hence a static argument of ``jit``.

    The defaults are the smallest task of the paper, whose tasks are ``(seq_len, num_kv_pairs)`` in
    {(64, 4), (128, 8), (256, 16), (512, 64)}.

    Args:
        vocab_size: Number of token ids V, more than ``seq_len``. Keys come from
            {1, ..., V//2 - 1}, values from {V//2, ..., V - 1}; 0 fills.
        seq_len: Length L of a sequence, even.
        num_kv_pairs: Number of pairs and of queries per sequence, at most L/4.
        power_a: Exponent a > 0 of the power law: gap ``g`` has weight (g + 1)^(a - 1).

    Raises:
        TypeError: If a field is no number of its kind.
        ValueError: If the fields do not fit together; the message names the nearest choice.

    Examples:
        >>> MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4).num_gaps
        12
        >>> MQARConfig(seq_len=64, num_kv_pairs=20)
        Traceback (most recent call last):
            ...
        ValueError: MQARConfig: expected num_kv_pairs between 1 and seq_len / 4 = 16, got 20. \
Use num_kv_pairs=16 or seq_len=80.
    """

    vocab_size: int = 8192
    seq_len: int = 64
    num_kv_pairs: int = 4
    power_a: float = 0.01

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_len", "num_kv_pairs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"MQARConfig: expected an integer {name}, got {value!r}.")
        if isinstance(self.power_a, bool) or not isinstance(self.power_a, numbers.Real):
            raise TypeError(f"MQARConfig: expected a real power_a, got {self.power_a!r}.")
        if not (math.isfinite(self.power_a) and self.power_a > 0):
            raise ValueError(
                f"MQARConfig: expected a finite power_a > 0, got {self.power_a}. "
                "The paper uses power_a=0.01."
            )
        if self.seq_len < 4 or self.seq_len % 2:
            nearest = max(4, self.seq_len + self.seq_len % 2)
            raise ValueError(
                f"MQARConfig: expected an even seq_len of at least 4, got {self.seq_len}. "
                f"Use seq_len={nearest}."
            )
        most = self.seq_len // 4
        if not 1 <= self.num_kv_pairs <= most:
            nearest = min(max(self.num_kv_pairs, 1), most)
            longer = f" or seq_len={4 * self.num_kv_pairs}" if self.num_kv_pairs > most else ""
            raise ValueError(
                f"MQARConfig: expected num_kv_pairs between 1 and seq_len / 4 = {most}, "
                f"got {self.num_kv_pairs}. Use num_kv_pairs={nearest}{longer}."
            )
        # Enough keys and values follow: V > L >= 4 n leaves V//2 - 1 >= n of each.
        if self.vocab_size <= self.seq_len:
            raise ValueError(
                f"MQARConfig: expected vocab_size > seq_len = {self.seq_len}, "
                f"got {self.vocab_size}. Use vocab_size={self.seq_len + 1} or more."
            )

    @property
    def num_gaps(self) -> int:
        """Number of places a query can stand at: every second position after the pairs."""
        return (self.seq_len - 2 * self.num_kv_pairs) // 2

    def gap_probabilities(self) -> Float[np.ndarray, " gaps"]:
        """Probability of each gap for the query drawn first, float64, shape ``(num_gaps,)``."""
        # The factor a cancels, but the published code has it: without it the last bit may differ.
        weights = self.power_a * np.arange(1, self.num_gaps + 1) ** (self.power_a - 1.0)
        return weights / weights.sum()
