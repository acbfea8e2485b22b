r"""LSTM, the long short-term memory (Hochreiter, Schmidhuber 1997; Gers et al. 2000)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.gated_cell import cell_of, gated_cell
from dsfjax.systems.primitives import Init, projection
from dsfjax.systems.surrounding import Surrounding

PRACTICE = Surrounding(expand=2, conv_width=4, conv_activation="identity", gate="gelu")
"""Those of the qLSTM in the paper's experiments, for a fair comparison with it."""

GATES = ("i", "f", "g", "o")


class Params(NamedTuple):
    """W_u and W_h (4, d, d), bias (4, d): input gate, forget gate, candidate, output gate."""

    W_u: Array
    W_h: Array
    bias: Array


def _update(params: Any, x: Array, r: Array, s: Array) -> Array:
    z = x + r
    i, f, o = (jax.nn.sigmoid(z[..., k, :]) for k in (0, 1, 3))
    c = f * s[..., 1, :] + i * jnp.tanh(z[..., 2, :])
    return jnp.stack([o * jnp.tanh(c), c], axis=-2)


cell = cell_of(_update)
"""``cell(params, s, u_t) -> s`` with the state s = (h, c), (2, d), for `dsfjax.linearize`."""


def lstm(*, d_model: int, init: Init = "published") -> Architecture:
    r"""The LSTM, as the affine system along its trajectory.

    .. math::
       c_t = σ(f_t) ⊙ c_{t-1} + σ(i_t) ⊙ \tanh(g_t), \qquad y_t = h_t = σ(o_t) ⊙ \tanh(c_t), \qquad
       [i_t, f_t, g_t, o_t] = W_u u_t + W_h h_{t-1} + b .

    The state of the System is (h, c), its A_t the derivative ∂(h_t, c_t)/∂(h_{t−1}, c_{t−1}), its
    values what A_t leaves. So spectrum, horizon and gradients through time are those of the cell.

    Args:
        d_model: d, width of tokens, h, c and outputs.
        init: "published": weights N(0, 1/d), bias of the forget gate 1 (Jozefowicz et al. 2015);
            "authors": weights N(0, 0.02²), the same biases. All other biases 0.

    Returns:
        The `Architecture`; state (1, 2d, 1). Its signals depend on the state (``reads_state``).

    Numerics:
        A loop over the steps finds the trajectory, in at least float32: a mixer takes its outputs,
        for the work of a plain LSTM. The System repeats it, for those who look at it. Where the
        cell is chaotic (a positive Lyapunov exponent) the two drift apart as any two roundings of
        it do.

    References:
        Hochreiter, Schmidhuber (1997), Neural Computation 9(8). Gers, Schmidhuber, Cummins (2000),
        Neural Computation 12(10). Jozefowicz, Zaremba, Sutskever (2015), ICML.

    Example:
        >>> arch = lstm(d_model=4)
        >>> system, v = arch.system_and_tokens(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, system.output_width, v.shape
        ((1, 8, 1), 4, (3, 8))
    """

    def init_params(key: Array) -> Params:
        key_u, key_h = jax.random.split(key)
        shape = (len(GATES), d_model, d_model)
        bias = jnp.zeros(shape[:2]).at[GATES.index("f")].set(1)
        return Params(projection(key_u, shape, init), projection(key_h, shape, init), bias)

    traits = Traits("gated recurrent weights", "2d", "yes: all gates", "not bounded", "none")
    return gated_cell(init_params, _update, 2, traits)
