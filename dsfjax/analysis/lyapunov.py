r"""Lyapunov exponents: how fast the product of the transitions grows or shrinks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dsfjax._util.factor import one_by_one
from dsfjax.analysis.horizon import mean_log_modulus
from dsfjax.analysis.normalizer import has_finite_state, normalized
from dsfjax.analysis.spectra import starts
from dsfjax.core import KernelSystem, System, steps
from dsfjax.engines.recurrence import by_steps


def lyapunov_exponents(
    system: System | KernelSystem, *, length: int | None = None
) -> Float[Array, "H k"]:
    r"""Mean growth per step, in natural logarithms, of the directions of the state.

    .. math:: \lim_{L \to \infty} \frac{1}{L} \log σ_i(Λ_L \cdots Λ_1),

    estimated over the steps of the sequence that carry a state over (all but the first and resets).
    Negative exponents forget, with time constant −1/exponent; a positive one lets states and
    gradients explode.

    Args:
        system: A system of one sequence; batches come from `jax.vmap`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        (H, k), descending, k as in `eigenvalues`. −∞ where a decay is exactly 0 at some step.

    Raises:
        ValueError: If ``length`` contradicts that of the system.

    Numerics:
        Exact sums of logarithms for diagonal transitions, where the product is diagonal. For
        all others the QR method: Q_t R_t = Λ_t Q_{t−1}, and the logarithms
        of the diagonals of R_t are averaged, O(L H n³).

    References:
        Benettin, Galgani, Giorgilli, Strelcyn (1980), Meccanica 15.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Dense(jnp.array([[[0.0, 2.0], [0.5, 0.0]]]))
        >>> maps = dsfjax.OuterInput(jnp.ones((1, 1, 2))), dsfjax.InnerOutput(jnp.ones((1, 1, 2)))
        >>> s = dsfjax.System(A, *maps, state_shape=(1, 2, 1))
        >>> [round(x, 3) + 0.0 for x in lyapunov_exponents(s, length=41)[0].tolist()]
        [0.0, 0.0]
    """
    if not has_finite_state(system) or system.A.is_diagonal:
        mean = mean_log_modulus(system, length=length)
        return jnp.sort(mean, axis=-1)[:, ::-1]
    length = steps(system, length, owner="lyapunov_exponents")
    paper = normalized(system, length=length)
    heads, n, _ = paper.state_shape
    A = paper.A
    kept = ~starts(paper, length)
    xs, step_of = by_steps(A, length)

    def advance(Q: Array, step: tuple[Array, list[Array]]) -> tuple[Array, Array]:
        carries, arrays = step
        new, R = one_by_one(jnp.linalg.qr, step_of(arrays).apply(Q[None])[0])
        growth = jnp.log(jnp.abs(jnp.diagonal(R, axis1=-2, axis2=-1)))
        return jnp.where(carries, new, Q), jnp.where(carries, growth, 0)

    eye = jnp.broadcast_to(jnp.eye(n, dtype=paper.dtype), (heads, n, n))
    _, growth = jax.lax.scan(advance, eye, (kept, xs))
    mean = growth.sum(axis=0) / kept.sum().astype(growth.dtype)
    return jnp.sort(mean, axis=-1)[:, ::-1]
