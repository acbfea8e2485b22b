r"""qLSTM: an LSTM without hidden-to-hidden maps (Sieber et al. 2024, arXiv:2405.15731)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import Diagonal, InnerOutput, OuterInput, System
from dsfjax.core.resets import starts
from dsfjax.ops.real_gated import complement
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, labels_without_decay, projection


class Params(NamedTuple):
    """W_f, W_i, W_o, W (d, d); bias_f, bias_i, bias_o (d,); alpha () or None; W may be None."""

    W_f: Array
    bias_f: Array
    W_i: Array
    bias_i: Array
    W_o: Array
    bias_o: Array
    W: Array | None
    alpha: Array | None


class Signals(NamedTuple):
    """log of the forget gate, input and output gates and the value (L, d); starts (L,)."""

    log_f: Array
    i: Array
    o: Array
    v: Array
    start: Array


def qlstm(
    *, d_model: int, value_map: bool = True, coupled: bool = False, init: Init = "published"
) -> Architecture:
    r"""The quasi LSTM: gates that read only the token, no state expansion (n = 1).

    .. math::
       h_t = σ(W_f u_t + b_f) ⊙ h_{t-1} + σ(W_i u_t + b_i) ⊙ W u_t, \qquad
       y_t = σ(W_o u_t + b_o) ⊙ h_t .

    Λ_t and B_t share no parameters, unless they are coupled.

    Args:
        d_model: d, width of tokens, state and outputs.
        value_map: Whether W is learnt; otherwise W = I.
        coupled: Whether the input is scaled by √(1 − λ_t²) as in `rg_lru`, but at
            the first step of a document.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`; state (1, 1, d).

    Example:
        >>> arch = qlstm(d_model=4)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 4))).A.log_a.shape
        (3, 1, 1, 4)
    """
    return _qlstm(d_model, value_map, coupled, init, reversed_gate=False)


def qlstm_reversed(
    *, d_model: int, value_map: bool = True, coupled: bool = False, init: Init = "published"
) -> Architecture:
    r"""The qLSTM with the state transition of an SSM: a reversed sigmoid to a learnt power.

    .. math:: λ_t = σ(-(W_f u_t + b_f))^{\mathrm{ReLU}(α)},

    the rest as `qlstm`. It is the decay of SSD, σ(−z)^a = e^{−a softplus(z)}. α ≤ 0 gives λ = 1
    with zero gradient to α.

    Args:
        d_model: d, width of tokens, state and outputs.
        value_map: Whether W is learnt; otherwise W = I.
        coupled: As `qlstm`.
        init: As `qlstm`; α = 1.

    Returns:
        The `Architecture`; state (1, 1, d).

    Example:
        >>> arch = qlstm_reversed(d_model=4)
        >>> float(arch.init(jax.random.key(0)).alpha)
        1.0
    """
    return _qlstm(d_model, value_map, coupled, init, reversed_gate=True)


def _qlstm(
    d_model: int, value_map: bool, coupled: bool, init: Init, *, reversed_gate: bool
) -> Architecture:
    def init_params(key: Array) -> Params:
        W_f, W_i, W_o, W = (
            projection(k, (d_model, d_model), init) for k in jax.random.split(key, 4)
        )
        zero = jnp.zeros(d_model)
        alpha = jnp.ones(()) if reversed_gate else None
        return Params(W_f, zero, W_i, zero, W_o, zero, W if value_map else None, alpha)

    def signals(params: Params, u: Array, start: Array | None = None) -> Signals:
        start = starts(u.shape[0]) if start is None else start
        f = affine(params.W_f, u, params.bias_f, wide=True)
        if params.alpha is None:
            log_f = jax.nn.log_sigmoid(f)
        else:
            log_f = jax.nn.relu(params.alpha).astype(f.dtype) * jax.nn.log_sigmoid(-f)
        i = jax.nn.sigmoid(affine(params.W_i, u, params.bias_i))
        o = jax.nn.sigmoid(affine(params.W_o, u, params.bias_o))
        return Signals(log_f, i, o, u if params.W is None else affine(params.W, u), start)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        i = signals.i
        if coupled:
            i = complement(signals.log_f, signals.start, reset) * i
        return System(
            Diagonal(signals.log_f[:, None, None, :]),
            OuterInput(scale=i[:, None, :]),
            InnerOutput(gate=signals.o[:, None, :]),
            reset=reset,
            state_shape=(1, 1, signals.log_f.shape[-1]),
        )

    bounds = "(0, 1]" if reversed_gate else "(0, 1)"
    shared = "yes: λ_t, as √(1 − λ_t²)" if coupled else "no"
    traits = Traits("diagonal, per channel", "d", shared, bounds, "none")
    labels = labels_without_decay("alpha")
    return Architecture(
        init_params, signals, assemble, lambda params: params.W, labels, traits, reads_start=coupled
    )
