r"""Equivalence of systems: the same kernel Φ, hence the same outputs from a zero state.

Where two systems are the same map, there may be a change of coordinates T_t between them: attention
⇔ SSM. Written with one head per value channel, a diagonal system is four arrays: decay, input
vector, output vector (normaliser and gate folded in) and value map. Under T_t = τ_t I per channel

.. math:: a_t ↦ \frac{τ_t}{τ_{t-1}} a_t, \qquad b_t ↦ τ_t b_t, \qquad c_t ↦ c_t / τ_t,

so τ can be read off b (or c), and what remains to be seen is whether the other two agree. Lemma 1,
that separable attention is a linear time-varying system, is checked on numbers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import (
    channel_maps,
    has_finite_state,
    normalized,
    normalizers,
)
from dsfjax.analysis.phi import map_rows, scores_of_step, token_rows
from dsfjax.core import (
    GivenNormalizer,
    KernelSystem,
    SummedNormalizer,
    System,
    separable_system,
    steps,
)
from dsfjax.core.dense import skip_matrix
from dsfjax.core.transitions import to_heads
from dsfjax.engines import scan


class Equivalence(NamedTuple):
    """How far two systems are from being the same map of tokens to outputs.

    Attributes:
        equal: Whether ``kernel`` and ``outputs`` are within the tolerance.
        kernel: Largest difference of Φ over the largest entry of Φ of the first.
        outputs: Largest difference of the outputs on the given tokens, in the same way.
        at: Where Φ differs most: [t, output channel, s, token channel].
    """

    equal: Bool[Array, ""]
    kernel: Float[Array, ""]
    outputs: Float[Array, ""]
    at: Int[Array, " 4"]


@jitted("tolerance", "length", "block")
def equivalent(
    a: System | KernelSystem,
    b: System | KernelSystem,
    u: Float[Array, "L d"] | None = None,
    *,
    tolerance: float | None = None,
    length: int | None = None,
    block: int = 1,
) -> Equivalence:
    r"""Compare two systems of any structures by what they do.

    .. math:: \max_{t, s} \| Φ^a_{t,s} - Φ^b_{t,s} \|_\infty \le τ \max_{t,s} \|Φ^a_{t,s}\|_\infty ,

    Φ being the map from tokens, value maps and skips included. States, their number and their
    coordinates play no part.

    Args:
        a: A finite or kernel system.
        b: Another of the same widths and length (or constant in time).
        u: Tokens for the second test, which runs both by `scan` from a zero state; by default
            normal ones from a fixed key.
        tolerance: τ, by default √ε of the dtype: half of its digits.
        length: L, needed only if nothing varies in time in both.
        block: Rows of Φ compared at a time.

    Returns:
        An `Equivalence`.

    Raises:
        ValueError: If widths or lengths differ.

    Numerics:
        O(block · L d d_out) memory: Φ is never held whole. Its rows come from backward passes of
        `scan`, one per step, or one per step and output channel where B or C is dense.

    References:
        Sieber et al. (2024), arXiv:2405.15731.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> found = equivalent(s, dsfjax.rescale(s, jnp.array([0.3, -1.0, 2.0])))
        >>> bool(found.equal)
        True
    """
    widths = [(s.token_width, s.output_width) for s in (a, b)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"equivalent: expected systems of equal widths, got (d, d_out) = {widths[0]} and "
            f"{widths[1]}."
        )
    count = common_steps("equivalent", a, b, length)
    if u is None:
        u = jax.random.normal(jax.random.key(0), (count, a.token_width), a.real_dtype)
    row_a, row_b = token_rows(a, count), token_rows(b, count)

    def compare(t: Array) -> tuple[Array, Array, Array]:
        one = row_a(t)
        difference = jnp.abs(one - row_b(t).astype(one.dtype))
        return difference.max(), jnp.argmax(difference), jnp.abs(one).max()

    difference, where, scale = map_rows(compare, count, block)
    t = jnp.argmax(difference)
    shape = (a.output_width, count, a.token_width)
    at = jnp.stack([t, *jnp.unravel_index(where[t], shape)])
    kernel = _relative(difference.max(), scale.max())
    y = scan(a, u)[0]
    outputs = _relative(jnp.abs(y - scan(b, u)[0]).max(), jnp.abs(y).max())
    if tolerance is None:
        tolerance = math.sqrt(jnp.finfo(kernel.dtype).eps)
    return Equivalence((kernel <= tolerance) & (outputs <= tolerance), kernel, outputs, at)


def common_steps(
    owner: str, a: System | KernelSystem, b: System | KernelSystem, length: int | None
) -> int:
    """L of two systems, either of which may be constant in time."""
    length = steps(a if b.length is None else b, length, owner=owner)
    return steps(a, length, owner=owner)


def _relative(difference: Array, scale: Array) -> Array:
    """The quotient, 0 where there is no difference."""
    return jnp.where(difference == 0, 0, difference / scale)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The answer of `find_coordinates`.

    Attributes:
        log_t: log τ_t per step and head of the first system, (L, H), for `dsfjax.rescale`; None if
            there is none.
        order: Which state of the first system each state of the second is, (N,), both flattened
            row-major: ``h_b = (T h_a)[order]``. None if there is no T.
        reason: Why there is none, in words; empty if there is.
    """

    log_t: Array | None
    order: np.ndarray | None
    reason: str

    def __bool__(self) -> bool:
        return self.log_t is not None


@dataclasses.dataclass(frozen=True)
class _Channels:
    """One head per value channel, E = H·p: decay, input, output (L, E, n); value map (E, d)."""

    decay: np.ndarray
    input: np.ndarray
    output: np.ndarray
    W: np.ndarray


def find_coordinates(
    a: System | KernelSystem,
    b: System | KernelSystem,
    *,
    tolerance: float | None = None,
    length: int | None = None,
) -> Coordinates:
    r"""The T_t = τ_t I per head that turns one system into another, or why there is none.

    With it ``dsfjax.rescale(a, log_t)`` has the matrices of ``b``, with states in another order if
    the two split N differently into heads and channels (`Coordinates.order`). This covers the
    paper's cases: attention in its own and in un-normalised form (τ_t = 1/η_t), attention and SSD
    (τ_t the product of the decays), SSD with one channel per head and S6 with equal rates.

    Args:
        a: A system with `Scalar` or `Diagonal` A, `OuterInput` and `InnerOutput`; a kernel system
            or another number of states gives a reason.
        b: Another one.
        tolerance: Relative, per step and channel; by default √ε of the dtype.
        length: L, needed only if nothing varies in time in both.

    Returns:
        `Coordinates`, true if T exists. Transitions into a zero state (the first step, resets) are
        free and not compared.

    Raises:
        ValueError: If lengths do not fit.
        TypeError: For other structures, or traced arrays: the answer is structure, not a value.

    Numerics:
        O(L N) memory on the host. If no T is found, the reason quotes `equivalent`, which costs a
        backward pass of `scan` per step.

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 1 and the section on attention and SSMs.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> t = jnp.array([0.5, 0.25, -1.0])
        >>> [round(x, 3) for x in find_coordinates(s, dsfjax.rescale(s, t)).log_t[:, 0].tolist()]
        [0.5, 0.25, -1.0]
    """
    if not (has_finite_state(a) and has_finite_state(b)):
        return _none("a kernel system has no finite state, so no T_t relates it to another system.")
    for system in (a, b):
        _check(system)
    steps = common_steps("find_coordinates", a, b, length)
    if mismatch := _sizes(a, b):
        return _none(mismatch)
    if tolerance is None:
        tolerance = math.sqrt(jnp.finfo(a.dtype).eps)
    first, second = (_channels(s, steps) for s in (a, b))
    tau = _read_off(first, second, _restarts(a, steps))
    reason = _disagreement(a, b, first, second, tau, tolerance, steps)
    heads, _, p = a.state_shape
    per_head = tau.reshape(steps, heads, p)
    if not reason and not (np.abs(per_head - per_head[:, :, :1]) <= tolerance * per_head).all():
        reason = (
            "T_t differs between the value channels of a head, and rescale has one factor per "
            "head: write the first system with one head per channel."
        )
    if reason:
        return _none(f"{reason} {_verdict(a, b, steps)}")
    log_t = jnp.asarray(np.log(per_head[:, :, 0]), jnp.finfo(a.dtype).dtype)
    return Coordinates(log_t, _order(a, b), "")


def _none(reason: str) -> Coordinates:
    return Coordinates(None, None, reason)


def _check(system: System) -> None:
    plain = system.A.is_diagonal and system.acts_on_values and not system.C.before_update
    if not plain or system.B.rank * system.C.rank > 1:
        names = [type(x).__name__ for x in (system.A, system.B, system.C)]
        raise TypeError(
            "find_coordinates: expected Scalar or Diagonal A, OuterInput and InnerOutput of rank 1 "
            f"that reads after the update, got {', '.join(names)}. Compare such systems by "
            "equivalent."
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(system)):
        raise TypeError("find_coordinates: expected concrete arrays; call it outside jit and vmap.")


def _sizes(a: System, b: System) -> str:
    """Why the sizes rule T out, or nothing."""
    if (a.token_width, a.output_width) != (b.token_width, b.output_width):
        return (
            f"the systems have widths (d, d_out) = {(a.token_width, a.output_width)} and "
            f"{(b.token_width, b.output_width)}."
        )
    if a.state_shape[1] != b.state_shape[1]:
        small, large = sorted((a.state_shape[1], b.state_shape[1]))
        return (
            f"the state expansions n = {a.state_shape[1]} and {b.state_shape[1]} differ, and T_t "
            f"is square. pad_state embeds n = {small} in {large} with the same Φ (Lemma 2)."
        )
    if (a.reset is None) != (b.reset is None) or (
        a.reset is not None and not np.array_equal(a.reset, np.asarray(b.reset))
    ):
        return "the resets differ."
    return ""


def _channels(system: System, steps: int) -> _Channels:
    heads, n, p = system.state_shape
    B, C = channel_maps(system)

    def full(x: Array) -> np.ndarray:
        """An array that broadcasts to (L, H, n, p) as (L, H·p, n)."""
        x = jnp.broadcast_to(x, (steps, heads, n, p))
        return np.asarray(x.swapaxes(2, 3)).reshape(steps, heads * p, n)

    def vector(x: Array | None) -> Array:
        return jnp.ones((1, 1, 1, 1)) if x is None else to_heads(x, heads)[..., None]

    def channel(x: Array | None) -> Array:
        return jnp.ones((1, 1, 1, 1)) if x is None else x[:, :, None, :]

    eta = normalizers(system, length=steps)
    one_over = np.asarray(jnp.exp(-eta.log))
    if eta.sign is not None:
        one_over = one_over * np.asarray(eta.sign)
    W = np.eye(system.token_width) if B.W is None else np.asarray(B.W)
    norm = np.linalg.norm(W, axis=1)
    # The sign of a row is fixed by its first entry of more than half the largest modulus.
    first = np.argmax(np.abs(W) > 0.5 * np.abs(W).max(axis=1, keepdims=True), axis=1)
    norm = norm * np.where(W[np.arange(len(W)), first] < 0, -1, 1)
    inputs = full(vector(B.b)) * full(channel(B.scale)) * norm[:, None]
    outputs = full(vector(C.c)) * full(channel(C.gate)) * np.repeat(one_over, p, axis=1)[..., None]
    if system.is_complex and C.conjugate_pairs:
        outputs = 2 * outputs
    W = W / np.where(norm == 0, 1, norm)[:, None]
    return _Channels(full(system.A.decay()), inputs, outputs, W)  # type: ignore[attr-defined]


def _restarts(system: System, steps: int) -> np.ndarray:
    """Steps before which the state is zero, (L,)."""
    reset = np.zeros(steps, bool) if system.reset is None else np.array(system.reset)
    reset[0] = True
    return reset


def _read_off(a: _Channels, b: _Channels, restarts: np.ndarray) -> np.ndarray:
    """τ (L, E), real: from the inputs, where they vanish from the outputs, else from the decays."""

    def quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The factor of x that gives y in the least-squares sense, NaN where x or y vanishes."""
        along, norm = np.real((np.conj(x) * y).sum(axis=2)), (np.abs(x) ** 2).sum(axis=2)
        defined = (norm > 0) & (along != 0)
        return np.where(defined, along / np.where(norm > 0, norm, 1), np.nan)

    tau = quotient(a.input, b.input)
    tau = np.where(np.isnan(tau), 1 / quotient(a.output, b.output), tau)
    for t, restart in enumerate(restarts):
        before = np.ones_like(tau[t])
        if not restart:
            ratio = quotient(a.decay[t : t + 1], b.decay[t : t + 1])[0]
            before = tau[t - 1] * np.where(np.isnan(ratio), 1, ratio)
        tau[t] = np.where(np.isnan(tau[t]), before, tau[t])
    return tau


def _disagreement(
    a: System,
    b: System,
    first: _Channels,
    second: _Channels,
    tau: np.ndarray,
    tolerance: float,
    steps: int,
) -> str:
    """The first matrix that τ does not bring into agreement, in words, or nothing."""
    apart = np.abs(first.W - second.W).max(axis=1) > tolerance
    silent = (first.input == 0).all(axis=(0, 2)) & (second.input == 0).all(axis=(0, 2))
    if (apart & ~silent).any():
        return f"the value maps W are not parallel in row {np.argmax(apart & ~silent)}."
    if (tau < 0).any():
        t, e = np.argwhere(tau < 0)[0]
        return f"T_t would be negative at step {t}, channel {e}, and rescale has positive factors."
    ratio = tau / np.concatenate([np.ones_like(tau[:1]), tau[:-1]])
    decay = np.where(_restarts(a, steps)[:, None, None], 0, ratio[..., None] * first.decay)
    wanted = np.where(_restarts(b, steps)[:, None, None], 0, second.decay)
    for what, got, expected in (
        ("inputs B_t", tau[..., None] * first.input, second.input),
        ("transitions Λ_t", decay, wanted),
        ("outputs C_t", first.output / tau[..., None], second.output),
    ):
        scale = np.maximum(np.abs(got), np.abs(expected)).max(axis=2)
        apart = np.abs(got - expected).max(axis=2) > tolerance * scale
        if apart.any():
            t, e = np.argwhere(apart)[0]
            return (
                f"in the coordinates that fit B and C best, the {what} differ first at step {t}, "
                f"channel {e}."
            )
    skips = [np.asarray(skip_matrix(s)) for s in (a, b)]
    if np.abs(skips[0] - skips[1]).max() > tolerance * max(np.abs(x).max() for x in skips):
        return "the skips D_t differ, and no change of coordinates touches them."
    return ""


def _verdict(a: System, b: System, steps: int) -> str:
    found = equivalent(a, b, length=steps)
    if bool(found.equal):
        return (
            "Φ is the same all the same: either the systems are not minimal, or T_t is not a "
            "multiple of the identity per head."
        )
    return (
        f"Φ differs by {float(found.kernel):.1e} of its largest entry: no T_t of any kind exists."
    )


def _order(a: System, b: System) -> np.ndarray:
    """Flat states of ``a`` in the order in which ``b`` has them."""
    heads, n, p = a.state_shape
    of_channel = np.arange(heads * n * p).reshape(heads, n, p).swapaxes(1, 2).reshape(-1, n)
    heads, n, p = b.state_shape
    return of_channel.reshape(heads, p, n).swapaxes(1, 2).reshape(-1)


class Lemma1(NamedTuple):
    """Attention as a sum over all pairs, and how far its systems are from it.

    Attributes:
        attention: The quadratic sum (L, H, p).
        unnormalized: Largest deviation of the system Λ = I, η at read-out, over the largest output.
        paper: The same for the paper's form, Λ_t = (η_{t−1}/η_t) I, B_t/η_t.
    """

    attention: Float[Array, "L H p"]
    unnormalized: Float[Array, ""]
    paper: Float[Array, ""]


@jitted("block")
def lemma_1(
    phi: Float[Array, "L H n"],
    psi: Float[Array, "L G n"],
    v: Float[Array, "L H p"],
    log_eta: Float[Array, "L H"] | None = None,
    *,
    block: int = 16,
) -> Lemma1:
    r"""Compare separable attention, given as (φ, ψ, η), with the systems that Lemma 1 says it is.

    .. math:: y_t = \frac{1}{η_t} \sum_{s \le t} φ(q_t)^\top ψ(k_s)\, v_s \quad ⇔ \quad
       h_t = \frac{η_{t-1}}{η_t} h_{t-1} + \frac{1}{η_t} ψ(k_t) ⊗ v_t, \; y_t = φ(q_t)^\top h_t .

    Args:
        phi: φ(q_t).
        psi: ψ(k_s), with G groups of heads.
        v: Values.
        log_eta: log η_t of any positive normaliser; None for the sum of the weights,
            :math:`η_t = φ(q_t)^\top \sum_{s \le t} ψ(k_s)`.
        block: Rows of weights held at a time.

    Returns:
        A `Lemma1`; both deviations are of the size of rounding.

    Raises:
        ValueError: If shapes do not fit together.

    Numerics:
        O(block · L H) memory, O(L² H (n + p)) work for the sum. The paper's form multiplies by 1/η:
        |log η| must stay below 700 (float64) or 80 (float32).

    References:
        Sieber et al. (2024), arXiv:2405.15731, Lemma 1.

    Example:
        >>> x = jnp.exp(jnp.arange(6.0).reshape(3, 1, 2) / 6)
        >>> found = lemma_1(x, x, x)
        >>> bool(found.unnormalized < 1e-6), bool(found.paper < 1e-6)
        (True, True)
    """
    steps = jnp.arange(v.shape[0])
    eta = SummedNormalizer() if log_eta is None else GivenNormalizer(log_eta)
    system = separable_system(phi, psi, eta, num_channels=v.shape[2])

    def row(t: Array) -> Array:
        weights = jnp.where((steps <= t)[:, None], scores_of_step(phi[t], psi), 0)
        total = weights.sum(axis=0) if log_eta is None else jnp.exp(log_eta[t])
        return jnp.einsum("sh,shp->hp", weights, v, precision="highest") / total[:, None]

    attention = map_rows(row, v.shape[0], block)

    def deviation(y: Array) -> Array:
        return jnp.abs(y.reshape(v.shape) - attention).max() / jnp.abs(attention).max()

    tokens = v.reshape(v.shape[0], -1)
    return Lemma1(
        attention,
        deviation(scan(system, tokens)[0]),
        deviation(scan(normalized(system), tokens)[0]),
    )
