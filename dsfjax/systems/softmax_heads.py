r"""Heads of softmax attention as language models have them: groups, norms and rotary positions.

A query at step t and a key at step s of its document give the score

.. math:: x_{ts} = \hat q_t^\top R_{t-s}^\top \hat k_s / \sqrt{m}, \qquad
          \hat q = w_q ⊙ q / \mathrm{rms}(q), \quad \hat k = w_k ⊙ k / \mathrm{rms}(k),

with a rotation R of pairs of channels (Su et al. 2021, arXiv:2104.09864) and norms per head (Henry
et al. 2020, arXiv:2010.04245; as in Qwen3, arXiv:2505.09388). H/G heads share a key and a value
(Ainslie et al. 2023, arXiv:2305.13245).

q and k are rotated to their places before the scores, R_t q and R_s k, so that a cache keeps keys
that no later step has to touch. What is carried next to it (`Architecture.past`) is the `Place` of
the step that follows in its document.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from dsfjax.core.norms import rms_norm
from dsfjax.core.resets import positions
from dsfjax.systems.architecture import Place
from dsfjax.systems.primitives import divide, rotary_frequencies, rotated

EPSILON = 1e-6
NORMS = ("q_norm", "k_norm")


def groups_of(name: str, num_heads: int, num_groups: int | None) -> int:
    """G, which divides H; by default H."""
    groups = num_heads if num_groups is None else num_groups
    divide(name, num_heads, groups, "num_heads")
    return groups


def frequencies(name: str, d_state: int, rope_base: float | None) -> tuple[float, ...]:
    """Of the rotation of q and k, in radians per step; none without a base.

    Raises:
        ValueError: If the channels are no pairs, or the base is not above 0.
    """
    if rope_base is None:
        return ()
    if d_state % 2:
        raise ValueError(
            f"{name}: expected an even d_state with rope_base, which rotates pairs of channels, "
            f"got d_state = {d_state}; the nearest even number is {d_state + 1}."
        )
    if not rope_base > 0:
        raise ValueError(
            f"{name}: expected rope_base > 0, got {rope_base}; 10000 is usual, and None rotates "
            "nothing."
        )
    return rotary_frequencies(d_state, rope_base)


def norms(d_state: int, qk_norm: bool) -> dict[str, Any]:
    """The weights of the norms, ones (m,), by name; None without norms."""
    return dict.fromkeys(NORMS, jnp.ones(d_state) if qk_norm else None)


def start(params: Any) -> Place:
    """The place of the first token, 0, as `Architecture.past`."""
    del params
    return Place(jnp.zeros((), jnp.int32))


def placed(
    params: Any,
    q: Array,
    k: Array,
    angles: tuple[float, ...],
    *,
    reset: Array | None,
    past: Place | None,
) -> tuple[Array, Array, Place | None]:
    """Q (L, H, m) and k (L, G, m) with their norms, rotated to their places.

    Args:
        params: With the weights q_norm and k_norm, or None there.
        q: Queries.
        k: Keys.
        angles: `frequencies`.
        reset: Boolean (L,) or None.
        past: Place of the first step, unless it starts a document; None for 0.

    Returns:
        Queries, keys, and the place of the step that follows; ``past`` without a rotation.
    """
    if params.q_norm is not None:
        q, k = rms_norm(q, params.q_norm, EPSILON), rms_norm(k, params.k_norm, EPSILON)
    if not angles:
        return q, k, past
    places = positions(q.shape[0], reset, 0 if past is None else past.index)
    q, k = (rotated(x, places, angles) for x in (q, k))
    return q, k, Place(places[-1] + 1)
