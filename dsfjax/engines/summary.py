r"""What a stretch of steps does to the state before it, and sequences cut over devices.

Any number of steps act on the state as one affine map,

.. math:: h_{after} = P \, h_{before} + Q, \qquad P = A_t ⋯ A_s,

which `summarize` finds. Summaries of neighbouring stretches `combine` to that of both, and the
operation is associative: prefixes over chunks, devices or files follow from the summaries alone.
`scan_shards` is built on this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact, Shaped

from dsfjax.core.maps import InnerOutput, OuterInput
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, Transition
from dsfjax.engines.recurrence import check_tokens
from dsfjax.engines.scan import initial_state, scan
from dsfjax.engines.varying import vary_alike


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


def summarize(system: System, u: Shaped[Array, "L d"], *, method: str = "auto") -> Summary:
    """Summarise all steps of a system.

    Args:
        system: The system of L steps.
        u: Tokens (L, d). For a batch use `jax.vmap`.
        method: Of `scan`, which finds Q.

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
    _, Q = scan(system, u, method=method)
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
    """The summary of the steps of ``early`` followed by those of ``late``.

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


def scan_shards(
    system: System,
    u: Shaped[Array, "L d"],
    h0: Array | None = None,
    *,
    axis_name: str,
    method: str = "auto",
) -> tuple[Array, Array]:
    """Scan a sequence whose steps are cut over devices, inside `jax.shard_map`.

    Every device summarises its steps, the summaries (and nothing of length L) are exchanged, each
    device finds the state before its steps and scans them.

    Args:
        system: The system of this device's steps.
        u: This device's tokens (L / devices, d), in the order of the axis.
        h0: State before the whole sequence, the same on all devices; zero by default.
        axis_name: Axis of the mesh along which time is cut.
        method: Of `scan`.

    Returns:
        ``(y, h_last)``: outputs of this device's steps, and the state after the whole sequence, the
        same on all devices. Values and gradients are those of `scan` on the whole sequence.

    Raises:
        ValueError: As `scan`.

    Numerics:
        Twice the work of `scan` per step (the summary, then the outputs), on L / devices steps.
        One all-gather of P and Q per device.

    Example:
        >>> import dsfjax
        >>> from functools import partial
        >>> from jax.sharding import Mesh, PartitionSpec as Spec
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> mesh = Mesh(jax.devices()[:1], ("time",))
        >>> run = partial(scan_shards, ema, axis_name="time")
        >>> specs = {"in_specs": Spec("time"), "out_specs": (Spec("time"), Spec())}
        >>> y, h = jax.shard_map(run, mesh=mesh, **specs)(jnp.ones((4, 1)))
        >>> y[:, 0].tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    u = check_tokens("scan_shards", system, u)
    h0 = initial_state("scan_shards", system, u, h0)
    mine = summarize(system, u, method=method)
    shards, h0 = vary_alike((jax.lax.all_gather(mine, axis_name), h0))
    _, before = jax.lax.scan(lambda h, shard: (shard.apply(h), h), h0, shards)
    index = jax.lax.axis_index(axis_name)
    y, h = scan(system, u, before[index], method=method)
    is_last = index == jax.lax.axis_size(axis_name) - 1
    return y, jax.lax.psum(jnp.where(is_last, h, 0), axis_name)
