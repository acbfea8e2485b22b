"""Linear attention on products of features: Based, ReBased."""

from __future__ import annotations

from functools import partial

from jax import Array
from jaxtyping import Float

from dsfjax.core import (
    SummedNormalizer,
    taylor_features,
)
from dsfjax.ops.batch import run, scaled, times, wide
from dsfjax.ops.linear import attention, no_decay
from dsfjax.ops.op import Assembled, op


def _based(
    q: Array,
    k: Array,
    v: Array,
    scale: float | None = None,
    use_norm: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    # Features cancel in the scores, so that they are not rounded to what the tokens are kept in.
    c, b = (taylor_features(wide(x), 2) for x in (scaled(q, scale), k))
    eta = SummedNormalizer(epsilon=1e-6) if use_norm else None
    return attention(no_decay(v), c, b, v, reset, eta)


@op(_based, "fla.ops.based", "fused_chunk_based")
def parallel_based(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    scale: float | None = None,
    use_norm: bool = True,
) -> Array:
    r"""Linear attention with the exponential up to its second order.

    .. math:: y_t = \frac{\sum_{r ≤ t} w_{tr} v_r}{\sum_{r ≤ t} w_{tr} + 10^{-6}}, \quad
              w_{tr} = 1 + x + x^2/2, \; x = s\, q_t^\top k_r .

    A = I, B = φ(k), C = φ(s q), D = 0 with the features φ(x) = (1, x, products x_i x_j of weights
    that make φ(q)ᵀφ(k) = w); η = cᵀz + 1e-6 (1 without ``use_norm``). n = 1 + K + K(K + 1)/2.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: s, by default K^(-1/2).
        use_norm: Whether to divide by the sum of the weights.

    Returns:
        o [B, T, HV, V].

    References:
        Arora et al. (2024), arXiv:2402.18668.
    """
    return run(partial(_based, scale=scale, use_norm=use_norm), (q, k, v), v.shape)[0]


fused_chunk_based = parallel_based


def _rebased(
    q: Array,
    k: Array,
    v: Array,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    # The second order of the Taylor features gives (qᵀk)²/2.
    first = 1 + q.shape[-1]
    q = scaled(q, None if use_scale else 1.0)
    c, b = (taylor_features(wide(x), 2)[..., first:] for x in (q, k))
    eta = SummedNormalizer(epsilon=eps) if use_normalize else None
    return attention(no_decay(v), times(c, 2.0), b, v, reset, eta)


@op(_rebased, "fla.ops.rebased")
def parallel_rebased(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    eps: float = 1e-5,
    use_scale: bool = True,
    use_normalize: bool = True,
) -> Array:
    r"""Linear attention with squared scores.

    .. math:: y_t = \frac{\sum_{r ≤ t} w_{tr} v_r}{\sum_{r ≤ t} w_{tr} + ε}, \quad
              w_{tr} = (s\, q_t^\top k_r)^2 .

    A = I, B = φ(k), C = φ(s q), D = 0 with φ the products x_i x_j, n = K(K + 1)/2; η = cᵀz + ε (1
    without ``use_normalize``).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        eps: ε.
        use_scale: Whether s is K^(-1/2), or 1; it is squared with the scores.
        use_normalize: Whether to divide by the sum of the weights.

    Returns:
        o [B, T, HV, V].

    References:
        Aksenov et al. (2024), arXiv:2402.10644.
    """
    assemble = partial(_rebased, eps=eps, use_scale=use_scale, use_normalize=use_normalize)
    return run(assemble, (q, k, v), v.shape)[0]
