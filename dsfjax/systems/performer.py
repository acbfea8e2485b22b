r"""Performer (Choromanski et al. 2020, arXiv:2009.14794): positive random features of softmax."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core import SummedNormalizer, System, separable_system
from dsfjax.core.dtypes import state_dtype
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import Init, affine, divide, weights_decay
from dsfjax.systems.projections import maps, value_map
from dsfjax.systems.retnet import Params, Signals
from dsfjax.systems.surrounding import Surrounding

STABILIZER = 1e-6
PRACTICE = Surrounding()


def performer(
    *,
    d_model: int,
    d_state: int = 64,
    num_heads: int = 1,
    d_key: int | None = None,
    features_seed: int = 1,
    init: Init = "published",
) -> Architecture:
    r"""Linear attention whose weights are softmax attention's in expectation.

    .. math::
       y_t = \frac{\sum_{s \le t} φ(q_t)^\top φ(k_s) v_s}{\sum_{s \le t} φ(q_t)^\top φ(k_s)}, \quad
       φ(x) = \frac{1}{\sqrt{n}} (e^{Ω \hat x - |\hat x|^2/2} + ε), \quad \hat x = x / m^{1/4},

    with rows ω of Ω drawn once, orthogonal in blocks and of the length of normal vectors. They are
    not learnt. The exponential of q is divided by its largest entry before ε is added.

    Args:
        d_model: d, width of tokens and outputs.
        d_state: n, random features per head.
        num_heads: H, divides d_model; heads share Ω.
        d_key: m, width of q and k per head, by default n.
        features_seed: Of the random features.
        init: "published": weights N(0, 1/d); "authors": N(0, 0.02²).

    Returns:
        The `Architecture`; state (H, n, p).

    Example:
        >>> import jax
        >>> arch = performer(d_model=8, d_state=4)
        >>> arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))).state_shape
        (1, 4, 8)
    """
    p = divide("performer", d_model, num_heads, "d_model")
    m = d_state if d_key is None else d_key
    omega = orthogonal_features(d_state, m, features_seed)

    def init_params(key: Array) -> Params:
        shape = (num_heads, m, d_model)
        return Params(**maps(key, init, W_q=shape, W_k=shape, W_v=(num_heads, p, d_model)))

    def signals(params: Params, u: Array) -> Signals:
        return Signals(*(affine(W, u) for W in (params.W_q, params.W_k, params.W_v)))

    def exponents(x: Array) -> Array:
        x = x.astype(state_dtype(x.dtype)) * m**-0.25
        turned = jnp.einsum("lhm,nm->lhn", x, jnp.asarray(omega, x.dtype), precision="highest")
        return turned - 0.5 * (x * x).sum(axis=-1, keepdims=True)

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        q, k = exponents(signals.q), exponents(signals.k)
        q = q - q.max(axis=-1, keepdims=True)
        phi, psi = ((jnp.exp(x) + STABILIZER) * d_state**-0.5 for x in (q, k))
        return separable_system(phi, psi, SummedNormalizer(), num_channels=p, reset=reset)

    bounds, normalizer = "unbounded (η reads q_t)", "recurrent, Σ φ(q)ᵀφ(k)"
    traits = Traits("scalar", "d · n", "yes: W_K and η", bounds, normalizer)
    return Architecture(init_params, signals, assemble, value_map, weights_decay, traits)


def orthogonal_features(count: int, width: int, seed: int) -> np.ndarray:
    """Ω (n, m): rows orthogonal within blocks of m, with the lengths of normal vectors.

    Example:
        >>> omega = orthogonal_features(2, 3, seed=0)
        >>> abs(float(omega[0] @ omega[1])) < 1e-12
        True
    """
    rng = np.random.default_rng(seed)
    blocks = [
        np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(-(-count // width))
    ]
    lengths = np.linalg.norm(rng.standard_normal((count, width)), axis=1, keepdims=True)
    return np.concatenate(blocks)[:count] * lengths
