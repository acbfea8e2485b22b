"""flash-linear-attention: its PyTorch references, which run on a CPU.

References:
    Yang and Zhang (2024), https://github.com/fla-org/flash-linear-attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsfjax.bench.peers.importing import load_alone

Function = Callable[[Mapping[str, Any]], Any]


def linear_attn() -> Function:
    """Chunks of 64, sums over chunks by a cumulative sum."""
    run = load_alone("fla.ops.linear_attn.naive").naive_chunk_linear_attn
    return lambda s: _flat(run(s["q"], s["k"], s["v"]))


def simple_gla() -> Function:
    """Chunks of 64 with one decay per head."""
    run = load_alone("fla.ops.simple_gla.naive").naive_chunk_simple_gla
    return lambda s: _flat(run(s["q"], s["k"], s["v"], s["g"])[0])


def gla() -> Function:
    """One step after the other: the package has no chunked reference of this function."""
    run = load_alone("fla.ops.gla.naive").naive_recurrent_gla
    return lambda s: _flat(run(s["q"], s["k"], s["v"], s["g"])[0])


def delta_rule() -> Function:
    """Chunks of 32 by the WY form; heads before time."""
    run = load_alone("fla.ops.delta_rule.naive").delta_rule_chunkwise

    def function(s: Mapping[str, Any]) -> Any:
        y, _ = run(*(s[name].transpose(1, 2) for name in ("q", "k", "v", "beta")))
        return _flat(y.transpose(1, 2))

    return function


def gated_delta_rule() -> Function:
    """Chunks of 64 by the WY form, one decay per head."""
    run = load_alone("fla.ops.gated_delta_rule.naive").naive_chunk_gated_delta_rule
    return lambda s: _flat(run(s["q"], s["k"], s["v"], s["g"], s["beta"])[0])


def kda() -> Function:
    """Chunks of 64 by the WY form, one decay per state."""
    run = load_alone("fla.ops.kda.naive").naive_chunk_kda
    return lambda s: _flat(run(s["q"], s["k"], s["v"], s["g"], s["beta"])[0])


def _flat(y: Any) -> Any:
    return y.flatten(-2)
