r"""How well finite systems approximate the exponential kernel: errors, bounds, state sizes.

A finite system replaces e^{qᵀk} by κ̃(q, k) = φ(q)ᵀψ(k), with its own normaliser. Errors are
measured against the exact kernel on the system's own queries, keys and values, row by row. Besides
Taylor features there are random ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from dsfjax._util.jitted import jitted
from dsfjax.analysis.phi import map_rows, scores_of_step, visible_to
from dsfjax.core import KernelSystem
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.features import check_even_order
from dsfjax.core.transitions import to_heads
from dsfjax.engines.attention import values
from dsfjax.systems.primitives import elu1


@jitted("num_features", "width", "orthogonal")
def random_projection(
    key: Key[Array, ""], num_features: int, width: int, *, orthogonal: bool = True
) -> Float[Array, "n m"]:
    r"""Rows w_i ~ N(0, I) for random features.

    Args:
        key: PRNG key.
        num_features: n.
        width: m, features of queries and keys.
        orthogonal: Make the rows of every block of m orthogonal: still N(0, I) each, but with a
            smaller variance of the sum over i.

    Returns:
        (n, m) in the default float dtype.

    References:
        Choromanski et al. (2020), arXiv:2009.14794.

    Example:
        >>> w = random_projection(jax.random.key(0), 2, 2)
        >>> round(float(jnp.abs(w[0] @ w[1])), 5)
        0.0
    """
    blocks = -(-num_features // width)
    normal = jax.random.normal(key, (2, blocks, width, width))
    if not orthogonal:
        return normal[0].reshape(-1, width)[:num_features]
    q = jnp.linalg.qr(normal[0])[0]
    # QR fixes the sign of R's diagonal; signs and norms of independent normal vectors undo it.
    rows = normal[1]
    length = jnp.linalg.norm(rows, axis=2, keepdims=True)
    sign = jnp.where(rows[:, :, :1] < 0, -1, 1).astype(rows.dtype)
    return (q.swapaxes(1, 2) * length * sign).reshape(-1, width)[:num_features]


@jitted()
def positive_features(x: Float[Array, "*lead m"], projection: Float[Array, "n m"]) -> Array:
    r"""Positive random features of the exponential kernel (FAVOR+).

    .. math:: φ_i(x) = e^{w_i^\top x - \|x\|^2 / 2} / \sqrt{n}, \qquad
       \mathbb{E}\, φ(q)^\top φ(k) = e^{q^\top k} .

    Args:
        x: Queries or keys, (…, m).
        projection: w, (n, m), of `random_projection`.

    Returns:
        (…, n), positive.

    Numerics:
        At most e^{‖w_i‖²/2}, and ‖w_i‖² is about m. The relative variance of one feature is
        e^{‖q+k‖²} − 1: it needs exponentially many for long queries and keys.

    References:
        Choromanski et al. (2020), arXiv:2009.14794, equation 5.

    Example:
        >>> q, k = 0.1 * jnp.ones(2), -0.1 * jnp.ones(2)
        >>> w = random_projection(jax.random.key(0), 64, 2)
        >>> round(float(positive_features(q, w) @ positive_features(k, w)), 3)
        0.98
    """
    w = projection.astype(x.dtype)
    half = jnp.sum(jnp.square(x), axis=-1, keepdims=True) / 2
    return jnp.exp(_project(w, x) - half) / jnp.sqrt(jnp.asarray(w.shape[0], x.dtype))


@jitted()
def elu_features(
    x: Float[Array, "*lead m"], projection: Float[Array, "n m"] | None = None
) -> Array:
    r"""The map elu(W x) + 1, which approximates no kernel but is cheap and positive.

    Args:
        x: Queries or keys, (…, m).
        projection: W (n, m), to compare at any state size; None for W = I, the map as published.

    Returns:
        (…, n), positive; n = m without a projection.

    References:
        Katharopoulos et al. (2020), arXiv:2006.16236.

    Example:
        >>> [round(x, 3) for x in elu_features(jnp.array([-1.0, 1.0])).tolist()]
        [0.368, 2.0]
    """
    return elu1(x if projection is None else _project(projection.astype(x.dtype), x))


def _project(w: Array, x: Array) -> Array:
    return jnp.einsum("...m,nm->...n", x, w, precision="highest")


Features = Callable[[Array], Array]


class KernelError(NamedTuple):
    """Errors of an approximation at every step t and head, all (L, H).

    Attributes:
        radius: max_s |q_tᵀk_s| over the visible s ≤ t.
        value_norm: max_s ‖v_s‖ over the visible s ≤ t.
        kernel: max_s |e^{q_tᵀk_s} − κ̃(q_t, k_s)|.
        output: ‖y_t − ỹ_t‖ of the attention output, Euclidean over the value channels.
    """

    radius: Float[Array, "L H"]
    value_norm: Float[Array, "L H"]
    kernel: Float[Array, "L H"]
    output: Float[Array, "L H"]


class FiniteState(NamedTuple):
    """One line of `finite_states`, largest errors over steps and heads.

    Attributes:
        features: "taylor", "positive" or "elu".
        order: Of the Taylor truncation that sets the state size.
        num_features: n per head.
        state_size: N = H·n·p.
        radius: R, the largest |qᵀk|.
        kernel_error: Of e^{qᵀk}; NaN for "elu", which does not approximate it.
        kernel_bound: Lagrange's bound on it; NaN but for "taylor".
        output_error: Of the attention output.
        output_bound: The bound 2 e^R ε max‖v‖ on it; NaN but for "taylor".
    """

    features: str
    order: int
    num_features: int
    state_size: int
    radius: float
    kernel_error: float
    kernel_bound: float
    output_error: float
    output_bound: float


@jitted("order")
def lagrange_bound(radius: Float[Array, "*shape"], order: int) -> Float[Array, "*shape"]:
    r"""Lagrange's bound ε on the Taylor remainder of the exponential.

    .. math:: \Big| e^x - \sum_{r \le P} x^r / r! \Big| \le ε = \frac{e^R R^{P+1}}{(P+1)!},
       \qquad |x| \le R .

    Args:
        radius: R ≥ 0.
        order: P ≥ 0.

    Returns:
        ε, of the shape of R.

    Numerics:
        Computed as one exponential of logarithms, so that no factor overflows before ε does. The
        error measured in floating point may exceed ε by `truncation_rounding`.

    Example:
        >>> round(float(lagrange_bound(jnp.array(1.0), 4)), 4)
        0.0227
    """
    return jnp.exp(radius + (order + 1) * jnp.log(radius) - math.lgamma(order + 2))


@jitted("order")
def output_bound(
    radius: Float[Array, "*shape"], order: int, value_norm: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Bound on the attention output of an even truncation with its own normaliser.

    .. math:: \|y_t - ỹ_t\| \le 2 e^R ε \max_s \|v_s\| .

    Since :math:`y - ỹ = \sum_s (a_s - ã_s)(v_s - ỹ) / \sum_s a_s`, with weights a_s ≥ e^{−R}; ỹ is
    a convex combination of the values because an even truncation is positive.

    Args:
        radius: R.
        order: P, even.
        value_norm: max‖v‖, of the shape of R.

    Returns:
        The bound.

    Raises:
        ValueError: If the order is odd or negative.

    Example:
        >>> round(float(output_bound(jnp.array(0.5), 4, jnp.array(1.0))), 5)
        0.00142
    """
    check_even_order("output_bound", order)
    return 2 * jnp.exp(radius) * lagrange_bound(radius, order) * value_norm


@jitted("order")
def truncation_rounding(radius: Float[Array, "*shape"], order: int) -> Float[Array, "*shape"]:
    r"""Rounding of e^x and of its truncation in the dtype of R, at most, for |x| ≤ R.

    .. math:: 4 (P + 2)\, u\, e^R ,

    u the unit roundoff: Horner's scheme has 3 P roundings relative to the sum of moduli, which is
    at most e^R. The output inherits 2 e^R max‖v‖ times it, and 4 (L + P) u max‖v‖ of its own sums.

    Example:
        >>> float(truncation_rounding(jnp.array(0.0), 2)) == 16 * 2.0**-24
        True
    """
    roundoff = jnp.finfo(radius.dtype).eps / 2
    return 4 * (order + 2) * roundoff * jnp.exp(radius)


@jitted("order", "block")
def truncation_error(
    system: KernelSystem, u: Float[Array, "L d"], order: int, *, block: int = 16
) -> KernelError:
    r"""Errors of the Taylor truncation of the kernel, of any order, without its features.

    The output is that of ``scan(truncate_kernel(system, order), u)``, computed from the scores:
    κ̃ = Σ_{r ≤ P} (qᵀk)^r / r! needs no n = binom(m + P, P) features per head.

    Args:
        system: A kernel system.
        u: Tokens (L, d).
        order: P, even.
        block: Rows of scores held at a time.

    Returns:
        A `KernelError` in the wider dtype of system and tokens, at least float32; bounds are
        ``lagrange_bound(e.radius, order)`` and ``output_bound(e.radius, order, e.value_norm)``.

    Raises:
        ValueError: If the order is odd or negative.

    Numerics:
        O(block · L H) memory, O(L² H (m + p + P)) work. e^{qᵀk} itself overflows beyond 88
        (float32) or 709 (float64); errors are then inf or NaN.

    References:
        Sieber et al. (2024), arXiv:2405.15731.

    Example:
        >>> q = 0.5 * jnp.ones((3, 1, 2))
        >>> s = KernelSystem(q, -q, num_channels=1)
        >>> error = truncation_error(s, jnp.arange(3.0)[:, None], 2)
        >>> bool((error.kernel <= lagrange_bound(error.radius, 2)).all())
        True
    """
    check_even_order("truncation_error", order)

    def polynomial(t: Array, x: Array) -> Array:
        y = jnp.ones_like(x)
        for r in range(order, 0, -1):  # Horner
            y = 1 + x * y / r
        return y

    return _errors("truncation_error", system, u, polynomial, block)


@jitted("block", functions=("phi", "psi"))
def feature_error(
    system: KernelSystem,
    u: Float[Array, "L d"],
    phi: Features,
    psi: Features | None = None,
    *,
    block: int = 16,
) -> KernelError:
    """Errors of a feature map that replaces the kernel, as in `dsfjax.core.feature_system`.

    Args:
        system: A kernel system.
        u: Tokens (L, d).
        phi: Feature map from (L, H, m) to (L, H, n), positive.
        psi: Feature map of the keys, by default φ.
        block: Rows of scores held at a time.

    Returns:
        A `KernelError` in the wider dtype of system and tokens, at least float32.

    Numerics:
        O(L H n + block · L H) memory, O(L² H (m + n + p)) work.

    Example:
        >>> q = jnp.zeros((3, 1, 2))
        >>> s = KernelSystem(q, q, num_channels=1)
        >>> constant = lambda x: jnp.ones((*x.shape[:-1], 1))
        >>> feature_error(s, jnp.arange(3.0)[:, None], constant).output.max().tolist()
        0.0
    """
    features_q = phi(system.q)
    features_k = (psi or phi)(system.k)

    def kernel(t: Array, x: Array) -> Array:
        return scores_of_step(features_q.astype(x.dtype)[t], features_k.astype(x.dtype))

    return _errors("feature_error", system, u, kernel, block)


def finite_states(
    system: KernelSystem,
    u: Float[Array, "L d"],
    orders: Sequence[int] = (0, 2, 4),
    *,
    key: Key[Array, ""],
    max_features: int = 2**14,
    block: int = 16,
) -> list[FiniteState]:
    """How much state a finite approximation needs: feature maps side by side at equal state size.

    For every order P, with n = binom(m + P, P) features per head: the Taylor truncation, n positive
    random features, and elu + 1 of n random projections.

    Args:
        system: A kernel system of concrete arrays.
        u: Tokens (L, d).
        orders: Even Taylor orders.
        key: For the random projections.
        max_features: Above this n the random maps are not measured, and their errors are NaN: they
            take O(L H n) memory, where the truncation is measured without its features.
        block: Rows of scores held at a time.

    Returns:
        Three `FiniteState` per order.

    Raises:
        ValueError: If an order is odd or negative.

    References:
        Sieber et al. (2024), arXiv:2405.15731. Choromanski et al. (2020), arXiv:2009.14794.

    Example:
        >>> q = 0.3 * jnp.ones((4, 1, 2))
        >>> s = KernelSystem(q, q, num_channels=1)
        >>> lines = finite_states(s, jnp.arange(4.0)[:, None], (2,), key=jax.random.key(0))
        >>> [(line.features, line.state_size) for line in lines]
        [('taylor', 6), ('positive', 6), ('elu', 6)]
    """
    for order in orders:
        check_even_order("finite_states", order)
    lines, m = [], system.q.shape[-1]
    for order in orders:
        n = math.comb(m + order, order)
        taylor = truncation_error(system, u, order, block=block)
        positive = elu = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), taylor)
        if n <= max_features:
            w = random_projection(key, n, m)
            positive = feature_error(
                system, u, Partial(positive_features, projection=w), block=block
            )
            elu = feature_error(system, u, Partial(elu_features, projection=w), block=block)
        bounds = {
            "kernel_bound": float(lagrange_bound(taylor.radius, order).max()),
            "output_bound": float(output_bound(taylor.radius, order, taylor.value_norm).max()),
        }
        for name, error in (("taylor", taylor), ("positive", positive), ("elu", elu)):
            none = {"kernel_bound": math.nan, "output_bound": math.nan}
            lines.append(
                FiniteState(
                    features=name,
                    order=order,
                    num_features=n,
                    state_size=system.num_heads * n * system.num_channels,
                    radius=float(taylor.radius.max()),
                    kernel_error=math.nan if name == "elu" else float(error.kernel.max()),
                    output_error=float(error.output.max()),
                    **(bounds if name == "taylor" else none),
                )
            )
    return lines


def _errors(
    owner: str,
    system: KernelSystem,
    u: Array,
    kernel: Callable[[Array, Array], Array],
    block: int,
) -> KernelError:
    """Errors of ``kernel(t, scores of step t (L, H)) -> (L, H)``."""
    system.expect_plain(owner)
    v = to_heads(values(system, u), system.num_heads)
    v = v.astype(state_dtype(v.dtype, system.q.dtype))
    q, k = system.q.astype(v.dtype), system.k.astype(v.dtype)
    norm, visible_from = jnp.linalg.norm(v, axis=2), visible_to(system)

    def row(t: Array) -> KernelError:
        visible = visible_from(t)[:, None]
        x = jnp.where(visible, scores_of_step(q[t], k), 0)
        weights = jnp.where(visible, jnp.exp(x - x.max(axis=0, keepdims=True)), 0)
        finite = jnp.where(visible, kernel(t, x), 0)
        difference = _read(weights, v) - _read(finite, v)
        return KernelError(
            radius=jnp.abs(x).max(axis=0),
            value_norm=jnp.where(visible, norm, 0).max(axis=0),
            kernel=jnp.where(visible, jnp.abs(jnp.exp(x) - finite), 0).max(axis=0),
            output=jnp.linalg.norm(difference, axis=1),
        )

    return map_rows(row, system.length, block)


def _read(weights: Array, v: Array) -> Array:
    """The normalised sum of values (L, H, p), (H, p)."""
    total = weights.sum(axis=0)[:, None]
    return jnp.einsum("sh,shp->hp", weights, v, precision="highest") / total
