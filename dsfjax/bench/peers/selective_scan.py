r"""Selective scans in plain PyTorch, the strongest that need no compiler.

.. math:: h_t = e^{Δ_t A} h_{t-1} + Δ_t x_t b_t, \qquad y_t = c_t^\top h_t .

None has a backward pass that is quadratic in L, as scans that index tensors step by step have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsfjax.bench.peers.importing import load

Function = Callable[[Mapping[str, Any]], Any]

# Within a chunk e^{-S} must not overflow: 8 steps of Δ|A| ≤ 6.4 stay below e^{52}.
CUMSUM_CHUNK = 8


def loop() -> Function:
    """Step by step under autograd; `unbind` keeps the backward pass linear in L."""
    torch = load("torch")

    def function(s: Mapping[str, Any]) -> Any:
        a, f = _decays(s).exp(), _forcing(s)
        h, outputs = torch.zeros_like(f[:, 0]), []
        for a_t, f_t, c_t in zip(a.unbind(1), f.unbind(1), s["c"].unbind(1), strict=True):
            h = torch.addcmul(f_t, a_t, h)
            outputs.append((h @ c_t[:, :, None])[:, :, 0])
        return torch.stack(outputs, 1)

    return function


def adjoint() -> Function:
    """Step by step in place, with the adjoint recurrence written by hand."""
    torch = load("torch")

    class States(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any, f: Any) -> Any:
            h = f.clone()
            for t in range(1, len(h)):
                h[t].addcmul_(a[t], h[t - 1])
            ctx.save_for_backward(a, h)
            return h

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            a, h = ctx.saved_tensors
            G = cotangents[0].clone()
            for t in range(len(h) - 1, 0, -1):
                G[t - 1].addcmul_(a[t], G[t])
            da = torch.zeros_like(a)
            torch.mul(G[1:], h[:-1], out=da[1:])
            return da, G

    def function(s: Mapping[str, Any]) -> Any:
        first = {k: v if k == "A" else v.transpose(0, 1).contiguous() for k, v in s.items()}
        h = States.apply(_decays(first).exp(), _forcing(first))
        return (h @ first["c"][..., None])[..., 0].transpose(0, 1)

    return function


def cumsum() -> Function:
    """Chunks in which h_t = e^{S_t} Σ e^{-S_s} f_s with S the sum of log decays."""
    torch = load("torch")

    def function(s: Mapping[str, Any]) -> Any:
        batch, length, d = s["x"].shape
        if length % CUMSUM_CHUNK:
            raise ValueError(f"expected L to be a multiple of {CUMSUM_CHUNK}, got {length}")
        S = _decays(s).unflatten(1, (-1, CUMSUM_CHUNK)).cumsum(2)
        f = _forcing(s).unflatten(1, (-1, CUMSUM_CHUNK))
        decay = S.exp()
        within = decay * (f * (-S).exp()).cumsum(2)
        h, starts = torch.zeros_like(f[:, 0, 0]), []
        ends = (x[:, :, -1].unbind(1) for x in (decay, within))
        for a, added in zip(*ends, strict=True):
            starts.append(h)
            h = torch.addcmul(added, a, h)
        states = torch.addcmul(within, decay, torch.stack(starts, 1)[:, :, None])
        y = states.flatten(1, 2) @ s["c"][..., None]
        return y.reshape(batch, length, d)

    return function


def _decays(s: Mapping[str, Any]) -> Any:
    return s["delta"][..., None] * s["A"]


def _forcing(s: Mapping[str, Any]) -> Any:
    return (s["delta"] * s["x"])[..., None] * s["b"][..., None, :]
