r"""sLSTM, the scalar memory of xLSTM (Beck et al. 2024, arXiv:2405.04517)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.names import choose
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.gated_cell import Update, cell_of, gated_cell
from dsfjax.systems.primitives import Init, divide, projection
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(expand=2, conv_width=4, conv_activation="identity", gate="gelu")
"""Those of the qLSTM in the paper's experiments, for a fair comparison with it."""

GATES = ("i", "f", "z", "o")
Forget = Literal["sigmoid", "exponential"]


class Params(NamedTuple):
    """W_u (4, d, d), W_h (4, H, p, p), bias (4, d): gates i and f, cell input z, output gate o."""

    W_u: Array
    W_h: Array
    bias: Array


def update(forget: Forget = "sigmoid") -> Update:
    """One step of sLSTM channel by channel, for a forget gate of that kind."""
    choose("forget", forget, ("sigmoid", "exponential"))

    def step(params: Any, x: Array, r: Array, s: Array) -> Array:
        del params
        log_i, f, z, o = ((x + r)[..., k, :] for k in range(len(GATES)))
        c, n, m = (s[..., k, :] for k in (1, 2, 3))
        kept = m + (jax.nn.log_sigmoid(f) if forget == "sigmoid" else f)
        # Nothing has been written where n is 0, whatever m is: afterwards n is at least 1. Without
        # the inner `where` the exponential could overflow there, and its gradient be NaN.
        empty = n == 0
        m = jnp.where(empty, log_i, jnp.maximum(kept, log_i))
        keep = jnp.where(empty, 0, jnp.exp(jnp.where(empty, 0, kept - m)))
        write = jnp.exp(log_i - m)
        c, n = keep * c + write * jnp.tanh(z), keep * n + write
        return jnp.stack([jax.nn.sigmoid(o) * c / n, c, n, m], axis=-2)

    return step


cell = cell_of(update())
"""``cell(params, s, u_t) -> s`` with the state s = (h, c, n, m), (4, d), for `dsfjax.linearize`."""


def slstm(
    *, d_model: int, num_heads: int = 1, forget: Forget = "sigmoid", init: Init = "published"
) -> Architecture:
    r"""The sLSTM, an LSTM with exponential gates, as the affine system along its trajectory.

    .. math::
       c_t = f_t ⊙ c_{t-1} + i_t ⊙ \tanh(\tilde z_t), \quad
       n_t = f_t ⊙ n_{t-1} + i_t, \quad y_t = h_t = σ(\tilde o_t) ⊙ c_t / n_t, \\
       i_t = e^{\tilde ı_t}, \quad f_t = σ(\tilde f_t) \text{ or } e^{\tilde f_t}, \quad
       [\tilde ı_t, \tilde f_t, \tilde z_t, \tilde o_t] = W_u u_t + R h_{t-1} + b,

    with R block-diagonal over the heads, so that the channels of one head mix. c and n are kept
    times e^{−m}, m_t = max(log f_t + m_{t−1}, ĩ_t), so that no gate overflows and h stays as it is.

    The state of the System is (h, c, n, m), its A_t the derivative of a step in these coordinates.
    One of its directions is not seen by any output: c and n scaled up as m goes down.

    Args:
        d_model: d, width of tokens, of all parts of the state and of outputs.
        num_heads: H, blocks of R, divides d_model.
        forget: Kind of the forget gate.
        init: "published": weights N(0, 1/d), R N(0, 1/p); "authors": both N(0, 0.02²). The bias of
            the forget gate goes from 3 to 6 over the channels of a head, all others are 0.

    Returns:
        The `Architecture`; state (1, 4d, 1). Its signals depend on the state (``reads_state``).

    Numerics:
        As of `dsfjax.systems.lstm.lstm`. A state in which nothing has been written (n = 0) is left
        behind by the first token, and nothing of A_t reads c, n and m there.

    References:
        Beck et al. (2024), arXiv:2405.04517, section 2.2.

    Example:
        >>> arch = slstm(d_model=4, num_heads=2)
        >>> system, v = arch.system_and_tokens(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, system.output_width, v.shape
        ((1, 16, 1), 4, (3, 16))
    """
    p = divide("slstm", d_model, num_heads, "d_model")

    def init_params(key: Array) -> Params:
        key_u, key_h = jax.random.split(key)
        bias = jnp.zeros((len(GATES), num_heads, p)).at[GATES.index("f")].set(jnp.linspace(3, 6, p))
        return Params(
            projection(key_u, (len(GATES), d_model, d_model), init),
            projection(key_h, (len(GATES), num_heads, p, p), init),
            bias.reshape(len(GATES), d_model),
        )

    traits = Traits("gated recurrent weights", "4d", "yes: all gates", "not bounded", "in the cell")
    return gated_cell(init_params, update(forget), 4, traits)
