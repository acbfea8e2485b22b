"""jax-linear-attention: its chunked functions in plain JAX, which run on any device.

References:
    https://github.com/jla-org/jax-linear-attention, version 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from dsfjax.bench.peers.importing import load_alone

Function = Callable[[Mapping[str, Any]], Any]


def _of(name: str, *gates: str) -> Function:
    """A function of q, k, v and gates, in chunks of 64, queries scaled by 1/√n."""
    run = getattr(load_alone("jla.ops.chunked"), name)
    return lambda s: _flat(run(s["q"], s["k"], s["v"], *(s[gate] for gate in gates))[0])


def simple_gla() -> Function:
    """One decay per head."""
    return _of("simple_gla", "g")


def gla() -> Function:
    """One decay per state."""
    return _of("gla", "g")


def delta_rule() -> Function:
    """The WY form."""
    return _of("delta_rule", "beta")


def gated_delta_rule() -> Function:
    """The WY form, one decay per head."""
    return _of("gated_delta_rule", "g", "beta")


def kda() -> Function:
    """The WY form, one decay per state."""
    return _of("kda", "g", "beta")


def rwkv7() -> Function:
    """Chunks of 16; its own scale is 1."""
    run = load_alone("jla.ops.rwkv7").rwkv7_chunked

    def function(s: Mapping[str, Any]) -> Any:
        signals = (s[name] for name in ("q", "k", "v", "g", "a", "b"))
        return _flat(run(*signals, scale=s["q"].shape[-1] ** -0.5)[0])

    return function


def mamba2() -> Function:
    """Its words for Mamba-2: simple_gla of q = C, k = B, v = Δ x, g = Δ A, with a copy per head."""
    run = load_alone("jla.ops.chunked").simple_gla

    def function(s: Mapping[str, Any]) -> Any:
        x, delta = s["x"], s["delta"]
        b, c = (jnp.broadcast_to(s[name], (*x.shape[:3], s[name].shape[-1])) for name in "bc")
        return _flat(run(c, b, delta[..., None] * x, delta * s["A"], scale=1.0)[0])

    return function


def _flat(y: Any) -> Any:
    return y.reshape(*y.shape[:2], -1)
