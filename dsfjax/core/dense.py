"""The paper's matrices: a `System` with every structure written out."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import (
    DenseInput,
    DenseOutput,
    DenseSkip,
    GivenNormalizer,
    InnerOutput,
    OuterInput,
    TokenSkip,
    to_heads,
)
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, Diagonal, Scalar


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
    the sequence starts from a zero state. N is the row-major flattening of (H, n, p).

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
        DenseOutput(C, system.C.conjugate_pairs),
        DenseSkip(D),
        state_shape=(1, system.num_states, 1),
    )


def matrices(system: System | KernelSystem, length: int | None = None) -> Matrices:
    """The arrays of `to_dense`."""
    if isinstance(system, KernelSystem):
        raise TypeError(
            "to_dense: a KernelSystem (softmax attention) has no finite matrices. Use materialize "
            "for its attention map, or softmax_attention.taylor_system for a finite approximation."
        )
    steps = length or system.length
    A = jnp.broadcast_to(_transition(system), (steps, system.num_states, system.num_states))
    B = jnp.broadcast_to(_input(system), (steps, system.num_states, system.token_width))
    C = jnp.broadcast_to(_output(system), (steps, system.output_width, system.num_states))
    D = jnp.broadcast_to(skip_matrix(system), (steps, system.output_width, system.token_width))
    A = A.astype(system.dtype)
    if system.reset is not None:
        A = jnp.where(system.reset[:, None, None], 0, A)
    if system.eta is not None:
        log_eta = jnp.broadcast_to(_log_eta(system, steps), (steps, system.state_shape[0]))
        per_head = system.num_states // system.state_shape[0]
        log_eta = jnp.repeat(log_eta, per_head, axis=1).astype(system.dtype)[:, :, None]
        first = jnp.zeros_like(A[:1])
        A = jnp.concatenate(
            [first, jnp.where(A[1:] == 0, 0, jnp.exp(log_eta[:-1] - log_eta[1:]) * A[1:])]
        )
        B = jnp.exp(-log_eta) * B
    return Matrices(A, B, C, D)


def _transition(system: System) -> Array:
    heads, n, p = system.state_shape
    if isinstance(system.A, Scalar | Diagonal):
        a = jnp.exp(system.A.log_decay())
        a = jnp.broadcast_to(a, (a.shape[0], heads, n, p)).reshape(a.shape[0], -1)
        return jax.vmap(jnp.diag)(a)
    m = system.A.with_heads() if isinstance(system.A, Dense) else system.A.matrix_of_step()
    m = jnp.broadcast_to(m, (m.shape[0], heads, n, n))
    eye_h, eye_p = jnp.eye(heads, dtype=m.dtype), jnp.eye(p, dtype=m.dtype)
    full = jnp.einsum("thij,hg,qr->thiqgjr", m, eye_h, eye_p)
    return full.reshape(m.shape[0], heads * n * p, heads * n * p)


def _input(system: System) -> Array:
    heads, n, p = system.state_shape
    B, dtype = system.B, system.dtype
    if isinstance(B, DenseInput):
        return B.matrix.astype(dtype)
    one = jnp.ones((1, heads, 1), dtype)
    b = one if B.b is None else to_heads(B.b, heads).astype(dtype)
    s = one if B.scale is None else B.scale.astype(dtype)
    W = _value_map(system).astype(dtype).reshape(heads, p, -1)
    full = b[:, :, :, None, None] * s[:, :, None, :, None] * W[None, :, None, :, :]
    full = jnp.broadcast_to(full, (*full.shape[:3], p, full.shape[4]))
    return full.reshape(full.shape[0], heads * n * p, -1)


def _output(system: System) -> Array:
    heads, n, p = system.state_shape
    C, dtype = system.C, system.dtype
    if isinstance(C, DenseOutput):
        return C.matrix.astype(dtype)
    one = jnp.ones((1, heads, 1), dtype)
    c = one if C.c is None else to_heads(C.c, heads).astype(dtype)
    gate = jnp.broadcast_to(one, (1, heads, p)) if C.gate is None else C.gate.astype(dtype)
    gate = jnp.broadcast_to(gate, (gate.shape[0], heads, p))
    rows = (
        c[:, :, :, None] * gate[:, :, None, :]
    )  # (T, H, n, p): weight of state (h, i, q) in y[h, q]
    eye_h, eye_p = jnp.eye(heads, dtype=dtype), jnp.eye(p, dtype=dtype)
    full = jnp.einsum("thiq,hg,qr->tgrhiq", rows, eye_h, eye_p)
    return full.reshape(rows.shape[0], heads * p, heads * n * p)


def skip_matrix(system: System) -> Array:
    """D as matrices (T, d_out, d); zeros where there is no skip."""
    heads, _, p = system.state_shape
    real = jnp.finfo(system.dtype).dtype
    if system.D is None:
        return jnp.zeros((1, system.output_width, system.token_width), real)
    if isinstance(system.D, DenseSkip):
        return system.D.matrix.astype(real)
    if isinstance(system.D, TokenSkip):
        return jax.vmap(jnp.diag)(system.D.d.astype(real))
    d = jnp.broadcast_to(system.D.d, (system.D.d.shape[0], heads, p)).astype(real)
    return d.reshape(-1, heads * p, 1) * _value_map(system)[None].astype(real)


def _value_map(system: System) -> Array:
    """W as a matrix (H·p, d), the identity where the token is the value."""
    assert isinstance(system.B, OuterInput)
    W = system.B.W
    return jnp.eye(system.token_width, dtype=system.dtype) if W is None else W


def _log_eta(system: System, steps: int) -> Array:
    """Logarithm of η_t per head, (T, H)."""
    if isinstance(system.eta, GivenNormalizer):
        return system.eta.log_eta
    heads, n, _ = system.state_shape
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    ones = dataclasses.replace(
        system,
        B=OuterInput(system.B.b, W=None),
        C=InnerOutput(system.C.c),
        D=None,
        eta=None,
        state_shape=(heads, n, 1),
    )
    A, B, C, _ = matrices(ones, steps)

    def advance(z: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        A, B, C = step
        z = A @ z + B.sum(axis=1)
        return z, C @ z

    _, eta = jax.lax.scan(advance, jnp.zeros(heads * n, A.dtype), (A, B, C))
    return jnp.log(eta)
