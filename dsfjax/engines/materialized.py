r"""The kernel Φ_{t,s} = c_tᵀ A_t ⋯ A_{s+1} b_s written out: attention as a matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.dense import matrices, skip_matrix
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import (
    DenseOutput,
    GivenNormalizer,
    InnerOutput,
    OuterInput,
    SummedNormalizer,
    to_heads,
)
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense
from dsfjax.engines import attention
from dsfjax.engines.guard import finite
from dsfjax.engines.plan import by_matrix_products
from dsfjax.engines.products import chunk_map, kernel
from dsfjax.engines.recurrence import Recurrence, prepare, read_states, split_time
from dsfjax.engines.varying import zeros_as


def materialize(
    system: System | KernelSystem, *, full: bool = False, length: int | None = None
) -> Float[Array, "*axes"]:
    r"""The causal kernel Φ of a system, the "attention map" of any model.

    Without ``full`` it acts on the values v = W u and contains everything but W and D:

    .. math:: y_{t,h} = \sum_{s \le t} Φ_{h,t,s} \, (W u_s)_h + D_t u_t, \qquad
       Φ_{h,t,s} = o_t \frac{c_t^\top A_t \cdots A_{s+1} b_s}{η_t} s_s .

    Args:
        system: A finite or kernel system.
        full: Give the map from tokens instead, value map and skip included:
            :math:`y_{t} = \sum_s Φ_{t,·,s,·} u_s`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        Φ of shape (H, L, L), indexed [head, t, s]; (H, p, L, L) if decay, scale or gate vary over
        the value channels p; with ``full`` (L, d_out, L, d). Real, in the dtype of the state.

    Raises:
        ValueError: Without ``full``, if B or C is dense: there is no value between W and Φ.

    Numerics:
        O(L²) memory and O(L² n) work per kernel entry; exact zeros above the diagonal.

    References:
        Sieber et al. (2024), arXiv:2405.15731, equation of Φ.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> dsfjax.materialize(ema, length=3)[0].tolist()
        [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """
    if isinstance(system, System) and _is_dense(system) and not full:
        raise ValueError(
            "materialize: with a dense B or C the kernel has no values to act on; use "
            "materialize(system, full=True) for the map from tokens, (L, d_out, L, d)."
        )
    return _phi(system, full, length or system.length)


def _is_dense(system: System) -> bool:
    return not isinstance(system.B, OuterInput) or isinstance(system.C, DenseOutput)


@partial(jax.jit, static_argnums=(1, 2))
def _phi(system: System | KernelSystem, full: bool, steps: int) -> Array:
    if isinstance(system, KernelSystem):
        phi = attention.attention_map(system)
        return _with_value_map(phi, system.W, system.token_width) if full else phi
    if _is_dense(system):
        return _full_from_matrices(system, steps)
    phi = _kernel_on_values(system, steps)
    if not full:
        return phi
    phi = _with_value_map(phi, system.B.W, system.token_width)  # type: ignore[union-attr]
    t = jnp.arange(steps)
    return phi.at[t, :, t, :].add(skip_matrix(system).astype(phi.dtype))


@jax.checkpoint
def materialized(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence by its kernel. O(L²); every structure; keeps only its inputs."""
    problem, h0 = finite((problem, h0))
    if problem.f is not None or problem.emit_states:
        return _superposition(problem, h0)
    if by_matrix_products(problem.A):
        maps = chunk_map(problem, h0.shape[0])
        out = maps.out + jnp.matmul(maps.reader, h0, precision=problem.precision)
        return out.swapaxes(0, 1), maps.apply(h0, problem.precision)
    (phi, carried), impulses, h = _kernel(problem, h0)
    phi = jnp.broadcast_to(phi, (*phi.shape[:3], h0.shape[-1]))
    within = jnp.einsum("tshp,shp->thp", phi, problem.x, precision=problem.precision)
    return within + carried, jnp.sum(impulses * problem.x[:, :, None, :], axis=0) + h


def _kernel(problem: Recurrence, h0: Array) -> tuple[tuple[Array, Array], Array, Array]:
    """Rows of Φ, (L, L, H, p or 1), and cᵀ times the decayed h0; then as `_transport`."""
    heads, n, p = h0.shape
    channels = 1 if isinstance(problem.A, Dense) else p
    one = jnp.ones((1, 1), h0.dtype)

    def impulse(now: Recurrence) -> Array:
        b = to_heads(one if now.b is None else now.b, heads)
        return jnp.broadcast_to(b[..., None], (heads, n, channels))

    def row(now: Recurrence, impulses: Array, h: Array) -> tuple[Array, Array]:
        c = to_heads(one if now.c is None else now.c, heads)[..., None]
        return jnp.sum(c[None] * impulses, axis=2), jnp.sum(c * h, axis=1)

    return _transport(problem, h0, impulse, row)


def _superposition(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """States, or their read-out, as the sum over s of the decayed forcings f_s."""

    def impulse(now: Recurrence) -> Array:
        return jnp.broadcast_to(now.forcing(), h0.shape)

    def row(now: Recurrence, impulses: Array, h: Array) -> Array:
        state = impulses.sum(axis=0) + h
        return state if now.emit_states else read_states(now.c, state, now.precision)

    out, impulses, h = _transport(problem, h0, impulse, row)
    return out, impulses.sum(axis=0) + h


def _transport(
    problem: Recurrence,
    h0: Array,
    impulse: Callable[[Recurrence], Array],
    row: Callable[[Recurrence, Array, Array], Any],
) -> tuple[Any, Array, Array]:
    """Carry the impulse of every step s along the transition, all s at once.

    Returns:
        What ``row(step, impulses, decayed h0)`` gives at each step, stacked; the impulses
        A_L ⋯ A_{s+1} impulse_s after the last step (L, …); the decayed h0.
    """
    xs, rebuild = split_time(problem, problem.length)

    def body(
        carry: tuple[Array, Array], step: tuple[Array, list[Array]]
    ) -> tuple[tuple[Array, Array], Any]:
        t, arrays = step
        now = rebuild(arrays, lambda v: v[0])
        if (reset := now.reset) is not None:
            carry = jax.tree.map(lambda v: jnp.where(reset, 0, v), carry)
        impulses, h = jax.vmap(now.A.apply)(carry[0]), now.A.apply(carry[1])
        impulses = impulses.at[t].set(impulse(now))
        return (impulses, h), row(now, impulses, h)

    first = jax.eval_shape(impulse, rebuild([x[0] for x in xs], lambda v: v[0]))
    start = (zeros_as(h0, (problem.length, *first.shape)), h0)
    (impulses, h), rows = jax.lax.scan(body, start, (jnp.arange(problem.length), xs))
    return rows, impulses, h


def _kernel_on_values(system: System, steps: int) -> Array:
    """Φ with scale, gate and normaliser, (H, L, L) or (H, p, L, L)."""
    heads, n, _ = system.state_shape
    tokens = jnp.zeros((steps, system.token_width), jnp.finfo(system.dtype).dtype)
    problem = prepare(system, tokens, emit_states=False)
    if not by_matrix_products(system.A):
        h0 = jnp.zeros((heads, n, problem.x.shape[-1]), problem.x.dtype)
        phi = _kernel(problem, h0)[0][0].transpose(2, 3, 0, 1)
    else:
        phi = kernel(problem, heads)[:, None]
    assert isinstance(system.C, InnerOutput) and isinstance(system.B, OuterInput)
    if n == 1:  # b and c are not in the recurrence then
        one = jnp.ones((1, 1, 1), phi.dtype)
        b, c = (one if v is None else v for v in (system.B.b, system.C.c))
        b, c = (to_heads(v, heads).transpose(1, 2, 0).astype(phi.dtype) for v in (b, c))
        phi = phi * c[..., None] * b[:, :, None]
    if jnp.iscomplexobj(phi):
        phi = phi.real * (2 if system.C.conjugate_pairs else 1)
    if isinstance(system.eta, SummedNormalizer):
        phi = phi / phi.sum(axis=-1, keepdims=True)
    elif isinstance(system.eta, GivenNormalizer):
        phi = phi * jnp.exp(-system.eta.log_eta.astype(phi.dtype)).T[:, None, :, None]
    if system.B.scale is not None:
        phi = phi * system.B.scale.astype(phi.dtype).transpose(1, 2, 0)[:, :, None, :]
    if system.C.gate is not None:
        phi = phi * system.C.gate.astype(phi.dtype).transpose(1, 2, 0)[:, :, :, None]
    return phi[:, 0] if phi.shape[1] == 1 else phi


def _with_value_map(phi: Array, W: Array | None, d: int) -> Array:
    """(L, d_out, L, d) from Φ on values and the value map."""
    heads, steps = phi.shape[0], phi.shape[-1]
    W = jnp.eye(d, dtype=phi.dtype) if W is None else W.astype(phi.dtype)
    W = W.reshape(heads, -1, d)
    phi = phi[:, None] if phi.ndim == 3 else phi
    full = phi.transpose(2, 0, 1, 3)[..., None] * W[None, :, :, None, :]
    return full.reshape(steps, -1, steps, d)


def _full_from_matrices(system: System, steps: int) -> Array:
    """(L, d_out, L, d) from the dense matrices, for dense input or output maps."""
    A, B, C, D = matrices(system, steps)

    def body(impulses: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        t, A, B, C = step
        impulses = jnp.einsum("nm,smd->snd", A, impulses, precision="highest").at[t].set(B)
        return impulses, jnp.einsum("on,snd->osd", C, impulses, precision="highest")

    start = zeros_as(B, (steps, *B.shape[1:]))
    t = jnp.arange(steps)
    _, full = jax.lax.scan(body, start, (t, A, B, C))
    if jnp.iscomplexobj(full):
        full = full.real * (2 if system.C.conjugate_pairs else 1)
    return full.at[t, :, t, :].add(D)
