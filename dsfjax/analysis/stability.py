r"""What is going wrong in a system, as numbers and in plain words."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dsfjax.analysis.lyapunov import lyapunov_exponents
from dsfjax.analysis.normalizer import has_finite_state, normalized, normalizers
from dsfjax.analysis.spectra import log_eigenvalues
from dsfjax.core import KernelSystem, System
from dsfjax.engines import scan

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
