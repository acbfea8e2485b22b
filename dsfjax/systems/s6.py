r"""S6, the selective state space model (Gu & Dao 2023, arXiv:2312.00752)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import Diagonal, InnerOutput, OuterInput, System, TokenSkip
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, labels_without_decay, projection, step_bias


class Params(NamedTuple):
    """W_dt_down (r, d), W_dt_up (d, r), bias_dt (d,), A_log (d, n), W_b, W_c (n, d), D (d,).

    With a scalar A, A_log is () and W_dt_up None.
    """

    W_dt_down: Array
    W_dt_up: Array | None
    bias_dt: Array
    A_log: Array
    W_b: Array
    W_c: Array
    D: Array


class Signals(NamedTuple):
    """Δ (L, d), b and c (L, n), and the value v = u (L, d)."""

    delta: Array
    b: Array
    c: Array
    v: Array


def s6(
    *,
    d_model: int,
    d_state: int = 16,
    dt_rank: int | None = None,
    scalar: bool = False,
    scaled_input: bool = True,
    init: Init = "published",
) -> Architecture:
    r"""The selective scan: a full diagonal transition over channels and states.

    .. math::
       h_t = e^{Δ_t ⊙ A} ⊙ h_{t-1} + b_t ⊗ (Δ_t ⊙ u_t), \quad y_t = c_t^\top h_t + D ⊙ u_t, \quad
       Δ_t = \mathrm{softplus}(W_Δ u_t + b_Δ), \; A = -e^{A_{\log}} .

    Λ_t and B_t share Δ_t. log Λ_t = Δ_t ⊗ A stays factored. W_Δ has rank r.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per channel.
        dt_rank: r, by default ⌈d/16⌉.
        scalar: Whether A = −e^{A_log} is a single number, initially −1, and W_Δ u_t one as well, so
            that Δ_t differs between channels by b_Δ alone: the class behind the "SSD" rows of the
            authors of arXiv:2405.15731. Λ_t is then diagonal over the channels.
        scaled_input: Whether Δ_t scales what is written, too. Without it B_t = b_t ⊗ I, and a step
            that forgets much no longer writes more: the ablation of what arXiv:2405.15731 calls
            recurrent normalisation.
        init: "published": A = −1 … −n in every channel, softplus(b_Δ) log-uniform in [1e-3, 0.1],
            W_Δ's second factor U(±1/√r), the other weights N(0, 1/d), D = 1. "authors": b_Δ = 0,
            all weights N(0, 0.02²), A and D as published.

    Returns:
        The `Architecture`; state (1, n, d).

    Example:
        >>> import dsfjax
        >>> arch = s6(d_model=4, d_state=2)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, dsfjax.explain(system).structure
        ((1, 2, 4), 'diagonal, full, factored as step × rate')
    """
    if scalar and dt_rank not in (None, 1):
        raise ValueError(
            f"s6: a scalar A comes with one input-dependent step, got dt_rank = {dt_rank}; "
            "leave dt_rank away."
        )
    rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
    rank = 1 if scalar else rank

    def init_params(key: Array) -> Params:
        keys = jax.random.split(key, 5)
        up = projection(keys[1], (d_model, rank), init)
        if init == "published":
            bound = 1 / math.sqrt(rank)
            up = jax.random.uniform(keys[1], up.shape, minval=-bound, maxval=bound)
        rates = jnp.log(jnp.arange(1.0, d_state + 1))
        return Params(
            W_dt_down=projection(keys[0], (rank, d_model), init),
            W_dt_up=None if scalar else up,
            bias_dt=step_bias(keys[2], (d_model,), init),
            A_log=jnp.zeros(()) if scalar else jnp.tile(rates[None], (d_model, 1)),
            W_b=projection(keys[3], (d_state, d_model), init),
            W_c=projection(keys[4], (d_state, d_model), init),
            D=jnp.ones(d_model),
        )

    def signals(params: Params, u: Array) -> Signals:
        low = affine(params.W_dt_down, u, wide=True)
        if params.W_dt_up is None:
            delta = low + params.bias_dt[None].astype(low.dtype)
        else:
            delta = affine(params.W_dt_up, low, params.bias_dt)
        return Signals(jax.nn.softplus(delta), affine(params.W_b, u), affine(params.W_c, u), u)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        delta = signals.delta[:, None, :]
        rate = -jnp.exp(params.A_log)
        if scalar:
            A = Diagonal((rate.astype(delta.dtype) * delta)[:, :, None, :])
        else:
            A = Diagonal.factored(delta, rate.T[None])
        return System(
            A,
            OuterInput(signals.b[:, None, :], scale=delta if scaled_input else None),
            InnerOutput(signals.c[:, None, :]),
            TokenSkip(params.D[None]),
            reset=reset,
            state_shape=(1, d_state, d_model),
        )

    structure = "diagonal, per channel" if scalar else "diagonal, full"
    shared = Traits(structure, "d · n", "yes: Δ_t", "(0, 1)", "none (Δ_t scales both A and B)")
    apart = Traits(structure, "d · n", "no: Δ_t in A only", "(0, 1)", "none")
    traits = shared if scaled_input else apart
    labels = labels_without_decay("A_log", "D")
    return Architecture(init_params, signals, assemble, labels=labels, traits=traits)
