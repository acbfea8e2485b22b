r"""Exponential gates in coordinates that follow their running maximum.

A recurrence h_t = e^{f_t} h_{t−1} + e^{i_t} k_t ⊗ v_t whose gates f, i are the results of a network
overflows as soon as one of them is large. With

.. math:: m_t = \max(f_t + m_{t-1}, i_t)

the state e^{−m_t} h_t has the decay e^{f_t + m_{t−1} − m_t} and the input e^{i_t − m_t}, both at
most 1. What is divided by a normaliser that is summed along does not see the coordinates at all,
and a floor of η becomes e^{−m_t} times what it was.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


class Stabilized(NamedTuple):
    """Gates in stabilised coordinates, arrays (L, H).

    Attributes:
        log_a: log of the decay, f_t + m_{t−1} − m_t ≤ 0.
        log_b: log of the input gate, i_t − m_t ≤ 0.
        log_max: m_t, the logarithm of what the coordinates are scaled down by after step t.
        log_max_prev: m_{t−1}, the same before step t; −∞ before the first step and at resets.
    """

    log_a: Array
    log_b: Array
    log_max: Array
    log_max_prev: Array


def stabilized(
    log_a: Float[Array, "L H"],
    log_b: Float[Array, "L H"],
    *,
    reset: Bool[Array, " L"] | None = None,
    before: Float[Array, " H"] | None = None,
) -> Stabilized:
    r"""Gates in the coordinates of their running maximum m_t = max(log_a_t + m_{t−1}, log_b_t).

    Args:
        log_a: Logarithm of the decay; it may be positive.
        log_b: Logarithm of the input gate, of any size.
        reset: Boolean (L,) or None, that of the `System`: there the maximum starts anew.
        before: m before the first step, if a state is carried in; by default there is none, −∞.

    Returns:
        `Stabilized`. Carry ``log_max[-1]`` along with the last state.

    Numerics:
        One associative scan, O(L H log L). No exponential of a positive number is ever formed from
        the results.

    References:
        Beck et al. (2024), arXiv:2405.04517; Peng et al. (2023), arXiv:2305.13048.

    Example:
        >>> found = stabilized(jnp.zeros((3, 1)), jnp.array([[200.0], [100.0], [300.0]]))
        >>> found.log_a[:, 0].tolist(), found.log_b[:, 0].tolist(), found.log_max[:, 0].tolist()
        ([-inf, 0.0, -100.0], [0.0, -100.0, 0.0], [200.0, 200.0, 300.0])
    """
    no = jnp.asarray(-jnp.inf, log_b.dtype)
    carried = log_a if reset is None else jnp.where(reset[:, None], no, log_a)
    # What is carried in enters with the first step, so that the maps of the scan begin from −∞.
    first = no if before is None else jnp.where(jnp.isneginf(carried[0]), no, carried[0] + before)
    start = log_b.at[0].set(jnp.maximum(log_b[0], first))

    def combine(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        # The maps m ↦ max(a + m, b) compose. Selected and not added where a is −∞: a NaN before a
        # reset, such as padding leaves, would else pass it.
        (a_early, b_early), (a, b) = early, late
        cut = jnp.isneginf(a)
        both = jnp.where(cut, b, jnp.maximum(b_early + a, b))
        return jnp.where(cut, a, a_early + a), both

    log_max = jax.lax.associative_scan(combine, (carried, start))[1]
    first_row = jnp.full_like(log_max[:1], -jnp.inf) if before is None else before[None]
    previous = jnp.concatenate([first_row, log_max[:-1]])
    if reset is not None:
        previous = jnp.where(reset[:, None], no, previous)
    # m_t is at least f_t + m_{t−1} and at least i_t, so neither difference below is positive. Where
    # both gates are closed m is −∞, and nothing was or is in the state: −∞ − (−∞) is avoided.
    shift = jnp.where(jnp.isneginf(log_max), 0, log_max)
    return Stabilized(log_a + previous - shift, log_b - shift, log_max, previous)
