r"""What a stretch of steps does to the state before it.

Any number of steps act on the state as one affine map,

.. math:: h_{after} = P \, h_{before} + Q, \qquad P = A_t ⋯ A_s,

which `summarize` finds. Summaries of neighbouring stretches `combine` to that of both, and the
operation is associative: prefixes over chunks, devices or files follow from the summaries alone.
`dsfjax.scan_shards` is built on this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact, Shaped

from dsfjax.core.maps import InnerOutput, OuterInput
from dsfjax.core.policy import Precision
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, Transition
from dsfjax.engines.recurrence import check_tokens
from dsfjax.engines.scan import scan


class Summary(NamedTuple):
    """Steps as one affine map of the state, h ↦ P h + Q.

    Attributes:
        P: Transition over all of the steps, one time step long; `Dense` where products have no
            structure, as those of `DiagonalPlusLowRank`.
        Q: State after the steps from the zero state, (H, n, p); with a summed normaliser
            (H, n, p + 1), as `scan` carries it.
        cut: Whether a reset lies among the steps, (): nothing of the state before is left, not even
            a NaN.
    """

    P: Transition
    Q: Array
    cut: Array

    def apply(self, h: Inexact[Array, "H n p"]) -> Inexact[Array, "H n p"]:
        """The state after the steps, (H, n, p), from the state before them."""
        return jnp.where(self.cut, 0, self.P.apply(h[None])[0]) + self.Q


def summarize(
    system: System,
    u: Shaped[Array, "L d"],
    *,
    method: str = "auto",
    precision: Precision | None = None,
) -> Summary:
    """Summarise all steps of a system.

    Args:
        system: The system of L steps.
        u: Tokens (L, d). For a batch use `jax.vmap`.
        method: Of `scan`, which finds Q.
        precision: Of `scan`.

    Returns:
        The summary; differentiable in everything.

    Raises:
        ValueError: As `scan`.

    Numerics:
        One scan without outputs; for mixing transitions another one from n initial states.
        Sums of logs for diagonal transitions: a decay of 0 is exact.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> two = summarize(ema, jnp.ones((2, 1)))
        >>> float(two.apply(jnp.full((1, 1, 1), 8.0))[0, 0, 0])  # 8/4 + 1/2 + 1
        3.5
    """
    u = check_tokens("summarize", system, u)
    _, Q = scan(system, u, method=method, precision=precision)
    cut = jnp.zeros((), bool) if system.reset is None else system.reset.any()
    return Summary(_product(system, u.shape[0], Q.dtype), Q, cut)


def _product(system: System, length: int, dtype: Any) -> Transition:
    """A_L ⋯ A_1 without regard to resets, one step long."""
    if system.A.is_diagonal:
        return system.A.product(length)
    heads, n, _ = system.state_shape
    nothing = jnp.zeros((1, 1, n), dtype)
    maps = OuterInput(nothing), InnerOutput(nothing)
    unforced = System(system.A, *maps, state_shape=(heads, n, n), length=system.length)
    eye = jnp.broadcast_to(jnp.eye(n, dtype=dtype), (heads, n, n))
    zeros = jnp.zeros((length, heads * n), jnp.finfo(dtype).dtype)
    return Dense(scan(unforced, zeros, eye)[1][None])


def combine(early: Summary, late: Summary) -> Summary:
    """The summary of two stretches of steps, ``early`` and then ``late``.

    Associative, so that it can be given to `jax.lax.associative_scan` (under `jax.vmap`).

    Args:
        early: Summary of the first steps.
        late: Of the steps after them, of the same system.

    Returns:
        The summary of both.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> one = summarize(ema, jnp.ones((1, 1)))
        >>> combine(one, one).Q.tolist(), jnp.exp(combine(one, one).P.log_a).round(2).tolist()
        ([[[1.5]]], [[0.25]])
    """
    return Summary(early.P.compose(late.P), late.apply(early.Q), early.cut | late.cut)
