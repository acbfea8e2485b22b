r"""Parity: whether a sequence of bits has an odd number of ones.

.. math:: h_t = h_{t-1} ⊕ u_t, \qquad y = h_L

One state of two values is enough, if it can change its sign: λ = 1 for a zero, λ = −1 for a one.
With eigenvalues in [0, 1] no linear recurrence of finite precision solves it at all lengths.

References:
    Grazzi et al. (2025), arXiv:2411.12537.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dsfjax.tasks import published
from dsfjax.tasks.protocol import Baseline, Example, Preset
from dsfjax.tasks.state_tracking.tracking import StateTracking

PADDING = 2
"""Token id after the end of a sequence."""


@dataclasses.dataclass(frozen=True)
class Parity(StateTracking):
    """Say after the last bit whether the number of ones is odd.

    Args:
        seq_len: Longest sequence L.
        min_length: Shortest sequence.

    Example:
        >>> one = Parity(seq_len=8).sample(jax.random.key(1))
        >>> bits = one.inputs[: one.query_positions[0] + 1]
        >>> int(bits.sum()) % 2 == int(one.targets[0])
        True
    """

    title = "Parity"
    vocab_size = PADDING + 1

    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 16}),
        "smoke": Preset(settings={"seq_len": 12}),
        "paper": published.PARITY,
    }

    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one sequence."""
        length_key, bit_key = jax.random.split(key)
        length = self.draw_length(length_key)
        bits = jax.random.randint(bit_key, (self.seq_len,), 0, 2, jnp.int32)
        shown = jnp.arange(self.seq_len) < length
        odd = jnp.where(shown, bits, 0).sum(dtype=jnp.int32) % 2
        inputs = jnp.where(shown, bits, PADDING)
        return Example(inputs, length[None] - 1, odd[None], length=length)

    def baselines(self) -> dict[str, Baseline]:
        """A coin; no answer is more frequent than the other."""
        return {"chance": Baseline(0.5, "guessing between odd and even")}

    def describe(self) -> str:
        """The lengths."""
        return f"{self.min_length} to {self.seq_len} bits"
