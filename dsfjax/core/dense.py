"""The paper's matrices: a `System` with every structure written out."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import DenseInput, DenseOutput, InnerOutput, OuterInput
from dsfjax.core.normalizers import Normalizer, SummedNormalizer
from dsfjax.core.pytree import map_time
from dsfjax.core.skips import DenseSkip, ValueSkip
from dsfjax.core.steps import steps
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, to_heads


class Matrices(NamedTuple):
    """A (L, N, N), B (L, N, d), C (L, d_out, N) and D (L, d_out, d)."""

    A: Array
    B: Array
    C: Array
    D: Array


def to_dense(system: System | KernelSystem, *, length: int | None = None) -> System:
    r"""The matrices of the paper, (L, N, N), (L, N, d), (L, d_out, N) and (L, d_out, d).

    The normaliser is folded in as the paper writes it, for the state h_t / η_t:

    .. math:: Λ_t = \frac{η_{t-1}}{η_t} A_t, \quad B_t / η_t, \quad C_t, \quad D_t.

    The first step and every reset step have no η before them; their Λ_t is 0, which is exact when
    the sequence starts from a zero state. N is the row-major flattening of (H, n, p). A C that
    reads the state before the update still does, as (η_{t−1}/η_t) C_t.

    Args:
        system: Any finite system.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        A `System` with `Dense`, `DenseInput`, `DenseOutput`, `DenseSkip`, state shape (1, N, 1), no
        normaliser and no resets; complex where the system is. ``np.asarray(dense.A)`` is (L, N, N).

    Raises:
        TypeError: For a `KernelSystem`, which has no finite matrices.

    Numerics:
        O(L N²) memory: for inspection and tests. Ratios of η may exceed 1 and their products can
        overflow; run the structured system instead.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> jnp.asarray(to_dense(ema, length=3).A)[2].tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    A, B, C, D = matrices(system, length)
    assert isinstance(system, System)
    return System(
        Dense(A),
        DenseInput(B),
        DenseOutput(C, system.C.conjugate_pairs, system.C.before_update),
        DenseSkip(D),
        state_shape=(1, system.num_states, 1),
        length=A.shape[0],
    )


@singledispatch
def matrices(system: Any, length: int | None = None) -> Matrices:
    """The arrays of `to_dense`."""
    raise TypeError(
        f"to_dense: a {type(system).__name__} (softmax attention) has no finite matrices. Use "
        "materialize for its attention map, or softmax_attention.taylor_system for a finite "
        "approximation."
    )


@matrices.register
def _(system: System, length: int | None = None) -> Matrices:
    count, states = steps(system, length, owner="to_dense"), system.num_states
    shape = system.state_shape
    A = jnp.broadcast_to(system.A.dense(shape).astype(system.dtype), (count, states, states))
    B = system.B.matrix(shape).astype(system.dtype)
    C = system.C.matrix(shape).astype(system.dtype)
    B = jnp.broadcast_to(B, (count, states, system.token_width))
    C = jnp.broadcast_to(C, (count, system.output_width, states))
    D = jnp.broadcast_to(skip_matrix(system), (count, system.output_width, system.token_width))
    before_update = system.C.before_update
    if system.reset is not None:
        A = jnp.where(system.reset[:, None, None], 0, A)
        if before_update:  # what is read there is the zero state
            C = jnp.where(system.reset[:, None, None], 0, C)
    if system.eta is not None:
        log_eta, sign = signed_log_eta(system.eta, system, count)
        if (bonus := bonus_skip(system, log_eta, sign)) is not None:
            D = D + bonus.matrix(system).astype(D.dtype)

        def per_state(x: Array) -> Array:
            x = jnp.broadcast_to(x, (count, system.num_heads)).astype(system.dtype)
            return jnp.repeat(x, states // system.num_heads, axis=1)[:, :, None]

        log_eta, sign = per_state(log_eta), per_state(sign)
        # η_{t−1}/η_t in logarithms, as either may be out of range where their ratio is not.
        ratio = jnp.exp(log_eta[:-1] - log_eta[1:]) * sign[:-1] * sign[1:]
        first = jnp.zeros_like(ratio[:1])  # there is no η before the first step
        # Selected and not multiplied: after a reset the ratio may be ∞, and 0 · ∞ is NaN.
        A = jnp.where(A == 0, 0, jnp.concatenate([first, ratio]) * A)
        if before_update:
            C = jnp.where(C == 0, 0, jnp.concatenate([first, ratio]).swapaxes(1, 2) * C)
        B = jnp.exp(-log_eta) * sign * B
    return Matrices(A, B, C, D)


@singledispatch
def signed_log_eta(eta: Normalizer, system: System, count: int) -> tuple[Array, Array]:
    """Logarithm of |η_t| and the sign of η_t, (T, H) each."""
    log_eta = eta.log()
    return log_eta, jnp.ones_like(log_eta)


@signed_log_eta.register
def _(eta: SummedNormalizer, system: System, count: int) -> tuple[Array, Array]:
    heads, n, _ = system.state_shape
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    one, b, c = jnp.ones((1, 1, 1), system.dtype), system.B.b, system.C.c
    b = one[None] if b is None else system.B.vectors().astype(system.dtype)  # type: ignore
    c = one if c is None else c.astype(system.dtype)
    b, c = to_heads(b.sum(axis=1), heads), to_heads(c, heads)
    b, c = (jnp.broadcast_to(x, (count, heads, n)) for x in (b, c))
    reset = jnp.zeros(count, bool) if system.reset is None else system.reset

    # z obeys the recurrence of the state with values of 1, in one channel.
    def advance(z: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        t, b, c, reset = step
        before = jnp.where(reset, 0, z)
        A = map_time(lambda x: x if x.shape[0] == 1 else x[t][None], system.A)
        z = A.apply(before[None])[0] + b[:, :, None]
        read = before if system.C.before_update else z
        return z, jnp.sum(c[:, :, None] * read, axis=(1, 2))

    xs = (jnp.arange(count), b, c, reset)
    _, summed = jax.lax.scan(advance, jnp.zeros((heads, n, 1), system.dtype), xs)
    values = eta.eta(summed)
    return jnp.log(jnp.abs(values)), jnp.where(values < 0, -1, 1).astype(values.dtype)


def bonus_skip(system: System, log_eta: Array, sign: Array) -> ValueSkip | None:
    """What the bonus of a summed normaliser is, divided by η (L, H): a skip from the values."""
    bonus = getattr(system.eta, "bonus", None)
    if bonus is None:
        return None
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    weight = (bonus.astype(log_eta.dtype) * jnp.exp(-log_eta) * sign)[:, :, None]
    for factor in (system.B.scale, system.C.gate):
        weight = weight if factor is None else weight * factor.astype(weight.dtype)
    return ValueSkip(weight)


def skip_matrix(system: System) -> Array:
    """D as matrices (T, d_out, d); zeros where there is no skip."""
    if system.D is None:
        return jnp.zeros((1, system.output_width, system.token_width), system.real_dtype)
    return system.D.matrix(system).astype(system.real_dtype)
