r"""What explodes or vanishes: Lyapunov exponents, gradients through time, signs of trouble.

Lyapunov exponents say how fast the product of the transitions grows or shrinks, gradients to the
state of every step how a loss reaches back in time.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from dsfjax._util.factor import one_by_one
from dsfjax._util.jitted import jitted
from dsfjax.analysis.horizon import mean_log_modulus
from dsfjax.analysis.normalizer import finite, has_finite_state, normalized, normalizers
from dsfjax.analysis.spectrum import log_eigenvalues, starts
from dsfjax.core import (
    DenseInput,
    InnerOutput,
    InputMap,
    KernelSystem,
    OuterInput,
    OutputMap,
    System,
    steps,
)
from dsfjax.core.pytree import map_time
from dsfjax.engines import scan
from dsfjax.engines.recurrence import by_steps


@jitted("length")
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


FORGETS = 1e-3  # a decay below this leaves nothing of the state
KEEPS = 1e-4  # a decay this close to 1 takes 10,000 steps to forget
MOST = 0.95  # share of decays from which on a head does only one thing
SOME = 0.01  # share of eigenvalues above 1 from which on it is worth a word
SWING = 1e4  # factor between the extremes of a normaliser over one sequence
# Sums over the tokens grow linearly at most, by 2 from one half of a sequence to the other.
GROWTH = 10.0
EXPONENT = 1e-3  # doubles a perturbation in 700 steps


class Stability(NamedTuple):
    """Signs of trouble in one sequence, arrays (H,); further axes in front for a batch.

    Attributes:
        forgetting: Share of eigenvalues with |λ| < ``FORGETS``.
        keeping: Share within ``KEEPS`` of |λ| = 1.
        growing: Share with |λ| > 1 + ``KEEPS``.
        largest: The largest log |λ|.
        exponent: The largest of the `lyapunov_exponents`.
        swing: Natural logarithm of the largest over the smallest |η|.
        trend: Natural logarithm of the last |η| over the first.
        negative: Share of steps at which η is not positive.
        growth: Largest norm of the state h_t/η_t in the last quarter of the sequence over that in
            the second quarter; NaN for a `KernelSystem`, and for L < 8.
        finite: Whether all states and outputs are finite.
    """

    forgetting: Array
    keeping: Array
    growing: Array
    largest: Array
    exponent: Array
    swing: Array
    trend: Array
    negative: Array
    growth: Array
    finite: Array


@jitted()
def stability(system: System | KernelSystem, u: Float[Array, "L d"]) -> Stability:
    """Look for decays that saturate, normalisers that run away and states that explode.

    Args:
        system: A system of one sequence of length L (or constant in time); batches by `jax.vmap`.
        u: Its tokens (L, d).

    Returns:
        `Stability`, per head; `warnings_of` puts it in words.

    Raises:
        ValueError: If the tokens do not fit the system.

    Numerics:
        One `scan` with all states, O(L N) memory, and the cost of `eigenvalues` and
        `lyapunov_exponents`.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[1.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> found = stability(s, jnp.ones((16, 1)))
        >>> found.growing.item(), bool(found.growth > 10)
        (1.0, True)
    """
    steps = u.shape[0]
    log_modulus = log_eigenvalues(system, length=steps).log_modulus
    log_eta, sign = normalizers(system, length=steps)
    counted = ~jnp.isnan(log_modulus)
    total = counted.sum(axis=(0, 2)).astype(log_modulus.dtype)

    def share(condition: Array) -> Array:
        return jnp.sum(condition & counted, axis=(0, 2)).astype(total.dtype) / total

    heads = log_eta.shape[1]
    if not has_finite_state(system):
        growth = jnp.full(heads, jnp.nan, log_eta.dtype)
        finite = jnp.isfinite(scan(system, u)[0]).reshape(steps, heads, -1).all(axis=(0, 2))
    else:
        y, _, states = scan(normalized(system, length=steps), u, return_states=True)
        size = jnp.linalg.norm(states.reshape(steps, heads, -1), axis=-1)
        finite = jnp.isfinite(size).all(axis=0) & jnp.isfinite(y).all()
        growth = jnp.full(heads, jnp.nan, size.dtype)
        if steps >= 8:
            quarter = steps // 4
            growth = size[-quarter:].max(axis=0) / size[quarter : 2 * quarter].max(axis=0)
    return Stability(
        forgetting=share(log_modulus < math.log(FORGETS)),
        keeping=share(jnp.abs(log_modulus) <= KEEPS),
        growing=share(log_modulus > KEEPS),
        largest=jnp.nanmax(log_modulus, axis=(0, 2)),
        exponent=lyapunov_exponents(system, length=steps)[:, 0],
        swing=log_eta.max(axis=0) - log_eta.min(axis=0),
        trend=log_eta[-1] - log_eta[0],
        negative=jnp.zeros_like(total) if sign is None else (sign <= 0).mean(axis=0),
        growth=growth,
        finite=finite,
    )


def warnings_of(found: Stability) -> list[str]:
    """What a `Stability` means, one sentence per finding; an empty list is good news.

    Args:
        found: Of `stability`, for one sequence or stacked over a batch: shares are averaged, of
            sizes the worst sequence counts.

    Returns:
        Sentences in the order of the heads.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[1e-5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> for sentence in warnings_of(stability(s, jnp.ones((16, 1)))):
        ...     print(sentence)
        head 0: 100 % of the decays are below 0.001: hardly anything is carried to the next token.
    """
    heads = found.finite.shape[-1]
    parts: list[Any] = [np.asarray(x).reshape(-1, heads) for x in found]
    sentences = []
    for head in range(heads):
        one = Stability(*(x[:, head] for x in parts))
        sentences += [f"head {head}: {text}" for text in _of_head(one)]
    return sentences


def _of_head(one: Stability) -> list[str]:
    """Findings of one head from arrays (batch,)."""
    forgetting, keeping, growing = (float(x.mean()) for x in one[:3])
    exponent, swing = float(one.exponent.max()), float(one.swing.max())
    texts = []
    if not one.finite.all():
        texts.append(
            "states or outputs are infinite or not a number: the recursion has overflowed."
        )
    if forgetting > MOST:
        texts.append(
            f"{100 * forgetting:.0f} % of the decays are below {FORGETS:g}: hardly anything is "
            "carried to the next token."
        )
    if keeping > MOST:
        texts.append(
            f"{100 * keeping:.0f} % of the decays are within {KEEPS:g} of 1: nothing is ever "
            "forgotten, and old tokens crowd out new ones."
        )
    if growing > SOME:
        texts.append(
            f"{100 * growing:.0f} % of the eigenvalues exceed 1, the largest is "
            f"{_power(float(one.largest.max()))}: what is stored is amplified at these tokens."
        )
    if exponent > EXPONENT:
        texts.append(
            f"a disturbance of the state doubles every {math.log(2) / exponent:.3g} steps: states "
            "and gradients explode over long sequences."
        )
    if swing > math.log(SWING):
        trend = float(np.mean(one.trend))
        way = "grows" if trend > swing / 2 else "shrinks" if trend < -swing / 2 else "swings"
        texts.append(
            f"the normaliser {way} by a factor of {_power(swing)} within one sequence: keep it in "
            "logarithms, and expect eigenvalues far from 1."
        )
    if (negative := float(one.negative.mean())) > 0:
        texts.append(
            f"the normaliser is not positive at {100 * negative:.2g} % of the steps: outputs "
            "change sign or blow up there."
        )
    growth = one.growth[~np.isnan(one.growth)]
    if growth.size and float(growth.max()) > GROWTH:
        texts.append(
            f"the state grows {float(growth.max()):.3g}-fold from the first half of a sequence to "
            "its end, faster than a sum over the tokens can."
        )
    return texts


def _power(log: float) -> str:
    """exp(log), as a power of ten where that is shorter."""
    return f"{math.exp(log):.3g}" if log < math.log(1e4) else f"10^{log / math.log(10):.1f}"


@jitted()
def state_gradients(
    system: System | KernelSystem, dy: Float[Array, "L d_out"]
) -> Inexact[Array, "L H n p"]:
    r"""Gradient of a loss to the state of every step, given its gradient to the outputs.

    .. math:: \frac{∂\mathcal L}{∂h_t} = C_t^\top \frac{∂\mathcal L}{∂y_t}
              + Λ_{t+1}^\top \frac{∂\mathcal L}{∂h_{t+1}},

    in the paper's coordinates h_t/η_t: what changes if the state of step t is disturbed, and all
    later states follow. The recursion is again a system, with b and c exchanged, that `scan` runs
    from the last step to the first.

    Args:
        system: A finite system of one sequence of length L (or constant in time).
        dy: ∂L/∂y_t, (L, d_out).

    Returns:
        (L, H, n, p) in the dtype of the state. For complex states the derivative without
        conjugation, whose modulus is the size of the gradient.

    Raises:
        ValueError: For a `KernelSystem`.

    Numerics:
        One `scan` with all states: O(L N) memory.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> state_gradients(s, jnp.array([[0.0], [0.0], [1.0]]))[:, 0, 0, 0].tolist()
        [0.25, 0.5, 1.0]
    """
    paper = normalized(finite("state_gradients", system), length=dy.shape[0])
    C = paper.C
    if C.before_update:  # the output of a step reads the state of the step before
        C, dy = map_time(_following, C), jnp.concatenate([dy[1:], jnp.zeros_like(dy[:1])])
        if paper.reset is not None:
            dy = jnp.where(_following(paper.reset)[:, None], 0, dy)
    return scan(_adjoint(paper, C), dy[::-1], return_states=True)[2][::-1]


@jitted()
def gradient_norms(
    system: System | KernelSystem, dy: Float[Array, "L d_out"]
) -> Float[Array, "L H"]:
    """Norms of the `state_gradients` of every step and head.

    Where they fall towards early steps gradients vanish, where they grow they explode.

    Args:
        system: A finite system of one sequence of length L (or constant in time).
        dy: ∂L/∂y_t, (L, d_out).

    Returns:
        (L, H), real.

    Raises:
        ValueError: For a `KernelSystem`.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> gradient_norms(s, jnp.array([[0.0, 0.0], [0.0, 2.0]]))[:, 0].tolist()
        [1.0, 2.0]
    """
    G = state_gradients(system, dy)
    return jnp.linalg.norm(G.reshape(*G.shape[:2], -1), axis=-1)


def _adjoint(system: System, C: OutputMap) -> System:
    """The system of G_t = C_tᵀ dy_t + A_{t+1}ᵀ G_{t+1}, in reversed time, without outputs."""
    n = system.state_shape[1]
    B = _transposed(C, system)
    # Step t of the recursion uses the transition of t + 1; the last one meets a zero gradient.
    A = map_time(_following, system.A.transpose())
    reset = None if system.reset is None else _following(system.reset)
    none = InnerOutput(None if n == 1 else jnp.zeros((1, 1, n), system.dtype))
    shape = system.state_shape
    flipped = System(A, B, none, reset=reset, state_shape=shape, length=system.length)
    return map_time(lambda x: x[::-1], flipped)


@singledispatch
def _transposed(C: OutputMap, system: System) -> InputMap:
    """The input map Cᵀ, twice it for a state of one of each conjugate pair."""
    factor = 2 if system.is_complex and C.conjugate_pairs else 1
    return DenseInput(factor * C.matrix(system.state_shape).swapaxes(1, 2))


@_transposed.register
def _(C: InnerOutput, system: System) -> InputMap:
    if C.over == "p":
        return _transposed.dispatch(OutputMap)(C, system)
    gate = C.gate
    if system.is_complex and C.conjugate_pairs:
        shape = (1, system.num_heads, 1) if C.rank == 1 else (1, C.rank, system.num_heads, 1)
        two = jnp.full(shape, 2, system.real_dtype)
        gate = two if gate is None else 2 * gate
    return OuterInput(C.c, gate, rank=C.rank)


def _following(x: Array) -> Array:
    return x if x.shape[0] == 1 else jnp.concatenate([x[1:], x[-1:]])
