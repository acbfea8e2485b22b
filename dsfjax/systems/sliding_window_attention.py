r"""Softmax attention over a window of the last tokens (Beltagy et al. 2020, arXiv:2004.05150)."""

from __future__ import annotations

import dataclasses

from jax import Array

from dsfjax.core import KernelSystem
from dsfjax.systems.architecture import Architecture, Place, Traits
from dsfjax.systems.primitives import Init, divide
from dsfjax.systems.softmax_attention import Params, Signals, softmax_attention
from dsfjax.systems.surrounding import CONVOLVED

PRACTICE = CONVOLVED


def sliding_window_attention(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    window: int = 128,
    keep_first: int = 0,
    num_groups: int | None = None,
    rope_base: float | None = None,
    qk_norm: bool = False,
    soft_cap: float | None = None,
    init: Init = "published",
) -> Architecture:
    r"""Causal softmax attention that sees the last W steps, itself included.

    .. math:: y_t = \sum_{t - W < s \le t} \frac{e^{q_t^\top k_s / \sqrt{m}}}{η_t} v_s .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: m, features of q and k per head.
        num_heads: H, divides d_model.
        window: W, the steps that a query sees.
        keep_first: First steps of a document that every query sees, too (arXiv:2309.17453).
        num_groups: G, heads of k and v, divides H; by default H.
        rope_base: As of `dsfjax.systems.softmax_attention.softmax_attention`.
        qk_norm: Whether q and k have an RMS norm per head.
        soft_cap: c: scores are c tanh(x/c) (Gemma 2, arXiv:2408.00118); None for x.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`, with a `KernelSystem` in place of a System.

    Example:
        >>> import jax, jax.numpy as jnp, dsfjax
        >>> arch = sliding_window_attention(d_model=4, d_state=2, window=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> [round(weight, 3) for weight in dsfjax.materialize(system)[0, 2].tolist()]
        [0.0, 0.5, 0.5]
    """
    divide("sliding_window_attention", d_model, num_heads, "d_model")
    whole = softmax_attention(
        d_model=d_model,
        d_state=d_state,
        num_heads=num_heads,
        num_groups=num_groups,
        rope_base=rope_base,
        qk_norm=qk_norm,
        soft_cap=soft_cap,
        init=init,
    )

    def carry(
        params: Params, signals: Signals, *, reset: Array | None = None, past: Place | None = None
    ) -> tuple[KernelSystem, Place | None]:
        system, past = whole.advance(params, signals, reset=reset, past=past)
        assert isinstance(system, KernelSystem)
        return dataclasses.replace(system, window=window, keep_first=keep_first), past

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> KernelSystem:
        return carry(params, signals, reset=reset)[0]

    state, bounds = "at most W · (m + d)", "unbounded (η reads q_t)"
    traits = Traits("kernel, window", state, "yes: W_K, W_V and η", bounds, "Σ exp(qᵀk)")
    return whole._replace(assemble=assemble, carry=carry, traits=traits)
