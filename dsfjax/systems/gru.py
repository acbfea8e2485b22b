r"""GRU, the gated recurrent unit (Cho et al. 2014, arXiv:1406.1078)."""

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


class Params(NamedTuple):
    """W_u and W_h (3, d, d), bias (3, d): reset gate, update gate, candidate; bias_n (d,)."""

    W_u: Array
    W_h: Array
    bias: Array
    bias_n: Array


def _update(params: Any, x: Array, r: Array, s: Array) -> Array:
    reset, z = (jax.nn.sigmoid(x[..., k, :] + r[..., k, :]) for k in (0, 1))
    bias = params.bias_n.reshape(*[1] * (x.ndim - 2), -1)
    new = jnp.tanh(x[..., 2, :] + reset * (r[..., 2, :] + bias))
    return ((1 - z) * new + z * s[..., 0, :])[..., None, :]


cell = cell_of(_update)
"""``cell(params, s, u_t) -> s`` with the state s = (h,), (1, d), for `dsfjax.linearize`."""


def gru(*, d_model: int, init: Init = "published") -> Architecture:
    r"""The GRU, as the affine system along its trajectory.

    .. math::
       h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}, \qquad
       n_t = \tanh(W_n u_t + b_n + r_t ⊙ (U_n h_{t-1} + b'_n)), \qquad y_t = h_t,

    with r_t = σ(W_r u_t + U_r h_{t−1} + b_r), and z_t alike: the form of the fast kernels, with the
    reset gate after the recurrent weights.

    The A_t of the System is the derivative ∂h_t/∂h_{t−1}, its values what A_t leaves.

    Args:
        d_model: d, width of tokens, state and outputs.
        init: "published": weights N(0, 1/d); "authors": weights N(0, 0.02²). Biases 0.

    Returns:
        The `Architecture`; state (1, d, 1). Its signals depend on the state (``reads_state``).

    Numerics:
        As of `dsfjax.systems.lstm.lstm`.

    References:
        Cho et al. (2014), arXiv:1406.1078. Chung, Gulcehre, Cho, Bengio (2014), arXiv:1412.3555.

    Example:
        >>> arch = gru(d_model=4)
        >>> system, v = arch.system_and_tokens(arch.init(jax.random.key(0)), jnp.ones((3, 4)))
        >>> system.state_shape, v.shape
        ((1, 4, 1), (3, 4))
    """

    def init_params(key: Array) -> Params:
        key_u, key_h = jax.random.split(key)
        shape = (3, d_model, d_model)
        W_u, W_h = (projection(k, shape, init) for k in (key_u, key_h))
        return Params(W_u, W_h, jnp.zeros(shape[:2]), jnp.zeros(d_model))

    traits = Traits("gated recurrent weights", "d", "yes: all gates", "not bounded", "none")
    return gated_cell(init_params, _update, 1, traits, "bias_n")
