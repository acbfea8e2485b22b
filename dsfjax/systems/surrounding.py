"""What surrounds the recurrence of a mixer, as data that an architecture can declare."""

from __future__ import annotations

from typing import NamedTuple


class Surrounding(NamedTuple):
    """What surrounds the recurrence of a mixer.

    Attributes:
        expand: Inner width over d; above 1, or with ``project_in``, a linear map leads into it.
        project_in: Whether a linear map comes before the recurrence.
        token_shift: Signals (such as r, k, v) that read the token mixed with the one before it,
            u_t + μ ⊙ (u_{t−1} − u_t), by learnt weights μ of their own (RWKV); () for none. "gate"
            is the gate below.
        conv_width: Taps of the short causal convolution, 0 for none.
        conv_on: Signals that are convolved (such as q, k, v), or () for the inner token itself.
        conv_activation: After the convolution; without taps, of the signals of ``conv_on`` alone.
        head_norm: "rms" or "layer", the norm of every head's outputs, before the gate; None for
            none. Heads share its weights.
        whole_norm: The same of the outputs of all heads together (MiniMax).
        gate: Activation of a gate read from the mixer's input, None for no gate.
        gate_rank: Rank of the gate's linear map W₂ W₁, None for full. "channels" is the number of
            value channels per head (Kimi Linear), "root" is 5√d to the nearest multiple of 32, at
            least 32 (RWKV-7).
        gate_inside: Whether the gate is W₂ f(W₁ x), with nothing after W₂ (RWKV-7), in place of
            f(W₂ W₁ x).
        output_activation: Of the gated output, before its norm.
        output_norm: Whether the gated output passes an RMSNorm.
        glu: Whether the map out is a GELU and a gated linear unit (S4, S5, LRU).
        bias: Whether linear maps in and out have biases.
    """

    expand: int = 1
    project_in: bool = False
    token_shift: tuple[str, ...] = ()
    conv_width: int = 0
    conv_on: tuple[str, ...] = ()
    conv_activation: str = "silu"
    head_norm: str | None = None
    whole_norm: str | None = None
    gate: str | None = None
    gate_rank: int | str | None = None
    gate_inside: bool = False
    output_activation: str = "identity"
    output_norm: bool = False
    glu: bool = False
    bias: bool = False

    def rank(self, d_model: int, channels: int) -> int | None:
        """Rank of the gate of a mixer of width d with so many value channels per head.

        Example:
            >>> Surrounding(gate_rank="root").rank(1024, 64)
            160
        """
        named = {"channels": channels, "root": root_rank(5.0, d_model)}
        return named[self.gate_rank] if isinstance(self.gate_rank, str) else self.gate_rank


def root_rank(factor: float, d_model: int) -> int:
    """The nearest multiple of 32 to factor · √d, at least 32: ranks of RWKV-7.

    Of two that are as near it is the even multiple, as in the published code.

    Example:
        >>> root_rank(2.5, 1024), root_rank(2.5, 2048)
        (64, 128)
    """
    return max(32, 32 * round(factor * d_model**0.5 / 32))


CONVOLVED = Surrounding(conv_width=4, conv_on=("q", "k", "v"))
"""A short convolution and SiLU on q, k and v."""
