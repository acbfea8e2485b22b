"""What surrounds the recurrence of a mixer, as data that an architecture can declare."""

from __future__ import annotations

from typing import NamedTuple


class Surrounding(NamedTuple):
    """What surrounds the recurrence of a mixer.

    Attributes:
        expand: Inner width over d; above 1, or with ``project_in``, a linear map leads into it.
        project_in: Whether a linear map comes before the recurrence.
        token_shift: Signals (such as r, k, v) that read the token mixed with the one before it,
            u_t + μ ⊙ (u_{t−1} − u_t), by learnt weights μ of their own (RWKV); () for none.
        conv_width: Taps of the short causal convolution, 0 for none.
        conv_on: Signals that are convolved (such as q, k, v), or () for the inner token itself.
        conv_activation: After the convolution; without taps, of the signals of ``conv_on`` alone.
        head_norm: "rms" or "layer", the norm of every head's outputs, before the gate; None for
            none. Heads share its weights.
        gate: Activation of a gate read from the mixer's input, None for no gate.
        gate_rank: Rank of the gate's linear map, None for full.
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
    gate: str | None = None
    gate_rank: int | None = None
    output_norm: bool = False
    glu: bool = False
    bias: bool = False


CONVOLVED = Surrounding(conv_width=4, conv_on=("q", "k", "v"))
"""A short convolution and SiLU on q, k and v."""
