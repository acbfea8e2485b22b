r"""Lightning attention (Qin et al. 2024, arXiv:2401.04658), as in MiniMax-01 (arXiv:2501.08313)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.ops import chunk_simple_gla
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.retnet import Params, Signals
from dsfjax.systems.surrounding import Surrounding

# No taps: SiLU alone on q, k and v. One norm over all heads, as in MiniMax-01.
PRACTICE = Surrounding(conv_on=("q", "k", "v"), whole_norm="rms", gate="sigmoid")


def lightning(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    layer: int = 1,
    num_layers: int = 1,
    init: Init = "published",
) -> Architecture:
    r"""Linear attention with a constant decay per head, slower in later heads and layers.

    .. math::
       h_t = a_i h_{t-1} + k_t ⊗ v_t, \quad y_t = q_t^\top h_t, \quad
       \log a_i = -2^{-8 (i + 1) / H} \left(1 - \frac{l - 1}{N - 1 + 10^{-5}} + 10^{-5}\right) .

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, state expansion per head.
        num_heads: H, divides d_model.
        layer: l, from 1, of the layer in its model, which tells each layer its own.
        num_layers: N, the layers of the model.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²). The decay is not learnt.

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import jax
        >>> arch = lightning(d_model=8, d_state=2, num_heads=8)
        >>> system = arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8)))
        >>> [round(x, 4) for x in system.A.log_a[0, :2].tolist()]
        [-0.5, -0.25]
    """
    p = divide("lightning", d_model, num_heads, "d_model")
    if layer > num_layers:
        raise ValueError(f"lightning: expected layer <= num_layers = {num_layers}, got {layer}.")
    depth = 1 - (layer - 1) / (num_layers - 1 + 1e-5) + 1e-5

    def init_params(key: Array) -> Params:
        shape = (num_heads, d_state, d_model)
        return Params(**maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model)))

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*(affine(W, u) for W in (params.W_q, params.W_k, params.W_v)))

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        head = jnp.arange(1, num_heads + 1, dtype=state_dtype(signals.q.dtype))
        log_a = -depth * 2.0 ** (-8 * head / num_heads)
        return chunk_simple_gla.system(*signals, g_gamma=log_a, scale=1.0, reset=reset)

    traits = Traits("scalar, constant", "d · n", "no", "(0, 1)", "none")
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)
