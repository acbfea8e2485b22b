r"""The kernel Φ_{t,s} = c_tᵀ A_t ⋯ A_{s+1} b_s written out: attention as a matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax._util.varying import zeros_as
from dsfjax.core.dense import matrices, skip_matrix
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import InnerOutput, OuterInput
from dsfjax.core.normalizers import Normalizer, SummedNormalizer
from dsfjax.core.pytree import map_time
from dsfjax.core.steps import steps
from dsfjax.core.system import System
from dsfjax.core.transitions import to_heads
from dsfjax.engines import attention
from dsfjax.engines.chunks.affine import cost_of_products
from dsfjax.engines.chunks.products import MATRIX_PRODUCTS
from dsfjax.engines.chunks.wy import WY, chunk_length
from dsfjax.engines.engine import Cost, Engine
from dsfjax.engines.guard import finite, guarded
from dsfjax.engines.recurrence import Recurrence, by_steps, prepare


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
        the value channels p; (R, r, H, …, L, L) if input or output have a rank r or R above 1; with
        ``full`` (L, d_out, L, d). Real, in the dtype of the state.

    Raises:
        ValueError: Without ``full``, if B or C is dense, or the output over p: there is no value
            between W and Φ.

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
    return _phi(system, full, steps(system, length, owner="materialize"))


@partial(jax.jit, static_argnums=(1, 2))
def _phi(system: System | KernelSystem, full: bool, length: int) -> Array:
    return _kernel_of(system, full, length)


@singledispatch
def _kernel_of(system: Any, full: bool, length: int) -> Array:
    raise TypeError(f"materialize: expected a System or KernelSystem, got {type(system).__name__}.")


@_kernel_of.register
def _(system: KernelSystem, full: bool, length: int) -> Array:
    phi = attention.attention_map(system)
    if not full:
        return phi
    return _with_value_map(phi[None, None, :, None], system.map_of_heads(), system.token_width)


@_kernel_of.register
def _(system: System, full: bool, length: int) -> Array:
    if not system.acts_on_values:
        if full:
            return _full_from_matrices(system, length)
        raise ValueError(
            "materialize: with a dense B or C, or an output over p, the kernel has no values to "
            "act on; use materialize(system, full=True) for the map from tokens, (L, d_out, L, d)."
        )
    phi = _kernel_on_values(system, length)
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    if full:
        full_phi = _with_value_map(phi, system.B.W, system.token_width)
        t = jnp.arange(length)
        return full_phi.at[t, :, t, :].add(skip_matrix(system).astype(phi.dtype))
    phi = phi[:, :, :, 0] if phi.shape[3] == 1 else phi
    return phi[0, 0] if system.B.rank * system.C.rank == 1 else phi


@dataclasses.dataclass(frozen=True)
class Materialized(Engine):
    """The recurrence by its kernel: O(L²); every structure; keeps only its inputs."""

    name: ClassVar[str] = "materialized"

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """Run the recurrence; see `Engine.run`."""
        return _materialized(recurrence, h0)

    def cost(self, system: System, length: int) -> Cost:
        """What a forward pass costs; see `Engine.cost`."""
        if MATRIX_PRODUCTS.against(system.A) is None or system.A.low_rank:
            return cost_of_products(system, length, length, length)
        heads, n, p = system.carried_shape
        channels = p if system.A.per_channel else 1
        return Cost(
            length**2 * heads * (2 * n * channels + 2 * p),
            length**2 * heads * channels + 2 * length * heads * n * channels,
        )


@jax.checkpoint
def _materialized(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence by its kernel. O(L²); every structure; keeps only its inputs."""
    problem, h0 = finite((problem.in_dtype(h0.dtype), h0))
    if problem.f is not None or problem.emit_states:
        return _superposition(problem, h0)
    p = h0.shape[2]
    if problem.A.low_rank:
        (phi, carried), impulses, h = _responses(problem, h0)
        within = jnp.einsum("tkhsr,srhp->tkhp", phi, problem.x, precision=problem.precision)
        h_last = jnp.einsum("hnsr,srhp->hnp", impulses, problem.x, precision=problem.precision)
        return within + carried, h_last + h
    # The whole sequence as one chunk, whose map has Φ in it; h0 enters as any state before a chunk.
    if MATRIX_PRODUCTS.against(problem.A) is None:
        return MATRIX_PRODUCTS.forward(problem, h0, problem.length)[:2]
    (phi, carried), impulses, h = _kernel(problem, h0)
    # One weight for all channels where the decay does not vary over them.
    phi = jnp.broadcast_to(phi, (*phi.shape[:-1], p))
    within = jnp.einsum("tsrkhp,srhp->tkhp", phi, problem.x, precision=problem.precision)
    h_last = jnp.sum(impulses * problem.x[:, :, :, None, :], axis=(0, 1)) + h
    return within + carried, h_last


def _responses(problem: Recurrence, h0: Array) -> tuple[tuple[Array, Array], Array, Array]:
    """Rows of Φ, (L, R, H, L, r), for a transition with a low-rank part, as answers to impulses.

    One inverse over all steps loses digits where steps nearly undo one another (reflections along
    near-parallel keys), and costs O(L³). So the recurrence is run in short chunks: every step
    writes 1 into a channel of its own, and ``h0`` stands in channels next to them.

    Returns:
        Φ, and cᵀ times the decayed h0 (L, R, H, p); the states that the impulses leave
        (H, n, L, r); the decayed h0.
    """
    (length, rank, heads, _), (_, n, p) = problem.x.shape, h0.shape
    count, dtype = length * rank, problem.x.dtype
    units = jnp.eye(count, dtype=dtype).reshape(length, rank, 1, count)
    units = jnp.broadcast_to(units, (length, rank, heads, count))
    silent = jnp.zeros((length, rank, heads, p), dtype)
    answered = dataclasses.replace(problem, x=jnp.concatenate([units, silent], axis=-1))
    # Channels of values do not mix, so L·r impulses and the p channels of h0 are one recurrence.
    h = jnp.concatenate([zeros_as(h0, (heads, n, count)), h0], axis=-1)
    chunk, outs = min(length, chunk_length(problem.A)), []
    # Whole chunks, and what is left as one more.
    whole = length - length % chunk
    for start, stop in ((0, whole), (whole, length)):
        if start < stop:
            part = map_time(lambda x: x if x.shape[0] == 1 else x[start:stop], answered)  # noqa: B023
            out, h, _ = WY.forward(part, h, min(chunk, stop - start))
            outs.append(out)
    out = jnp.concatenate(outs)
    phi = out[..., :count].reshape(*out.shape[:-1], length, rank)
    impulses = h[..., :count].reshape(heads, n, length, rank)
    return (phi, out[..., count:]), impulses, h[..., count:]


def _kernel(problem: Recurrence, h0: Array) -> tuple[tuple[Array, Array], Array, Array]:
    """Rows of Φ, (L, L, r, R, H, p or 1), and cᵀ times the decayed h0; then as `_transport`."""
    heads, n, p = h0.shape
    channels = p if problem.A.per_channel else 1
    one = jnp.ones((1, 1, 1, 1), h0.dtype)

    def vectors(v: Array | None) -> Array:
        return to_heads(one if v is None else v, heads)[0]

    def impulse(now: Recurrence) -> Array:
        b = vectors(now.b)
        return jnp.broadcast_to(b[..., None], (b.shape[0], heads, n, channels))

    def row(now: Recurrence, impulses: Array, h: Array) -> tuple[Array, Array]:
        c = vectors(now.c)
        weights = jnp.sum(c[None, None, ..., None] * impulses[:, :, None], axis=4)
        return weights, jnp.sum(c[..., None] * h[None], axis=2)

    return _transport(problem, h0, impulse, row)


def _low_rank_by_chunks(problem: Recurrence) -> Array:
    """Φ (R, r, H, 1, L, L)."""
    h0 = _no_channels(problem)
    return _responses(problem, h0)[0][0].transpose(1, 4, 2, 0, 3)[:, :, :, None]


def _low_rank_by_steps(problem: Recurrence) -> Array:
    """The same, with NaN and ∞ where they belong."""
    h0 = _no_channels(problem)
    return _kernel(problem, h0)[0][0].transpose(3, 2, 4, 5, 0, 1)


def _no_channels(problem: Recurrence) -> Array:
    """A state (H, n, 0), where only the responses to impulses are wanted."""
    assert problem.b is not None
    return jnp.zeros((problem.x.shape[2], problem.b.shape[-1], 0), problem.x.dtype)


def _superposition(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """States, or their read-out, as the sum over s of the decayed forcings f_s."""

    def impulse(now: Recurrence) -> Array:
        return jnp.broadcast_to(now.forcing(), (1, *h0.shape))

    def row(now: Recurrence, impulses: Array, h: Array) -> Array:
        return now.read((impulses.sum(axis=(0, 1)) + h)[None])[0]

    out, impulses, h = _transport(problem, h0, impulse, row)
    return out, impulses.sum(axis=(0, 1)) + h


def _transport(
    problem: Recurrence,
    h0: Array,
    impulse: Callable[[Recurrence], Array],
    row: Callable[[Recurrence, Array, Array], Any],
) -> tuple[Any, Array, Array]:
    """Carry the impulse of every step s along the transition, all s at once.

    Returns:
        What ``row(step, impulses, decayed h0)`` gives at each step, stacked; the impulses
        A_L ⋯ A_{s+1} impulse_s after the last step (L, r, H, n, ·); the decayed h0.
    """
    xs, rebuild = by_steps(problem, problem.length)

    def body(
        carry: tuple[Array, Array], step: tuple[Array, list[Array]]
    ) -> tuple[tuple[Array, Array], Any]:
        t, arrays = step
        now = rebuild(arrays)
        # Earlier impulses and h0 end at a reset; that of the step itself is put in afterwards.
        if (reset := now.reset) is not None:
            carry = jax.tree.map(lambda v: jnp.where(reset[0], 0, v), carry)
        impulses, h = carry
        # All impulses as a batch, in the place that `apply` has for time; A_t is one for all.
        moved = now.A.apply(impulses.reshape(-1, *impulses.shape[2:]), now.precision).reshape(
            impulses.shape
        )
        h = now.A.apply(h[None], now.precision)[0]
        impulses = moved.at[t].set(impulse(now))
        return (impulses, h), row(now, impulses, h)

    first = jax.eval_shape(impulse, rebuild([x[0] for x in xs]))
    start = (zeros_as(h0, (problem.length, *first.shape)), h0)
    (impulses, h), rows = jax.lax.scan(body, start, (jnp.arange(problem.length), xs))
    return rows, impulses, h


def _kernel_on_values(system: System, length: int) -> Array:
    """Φ with scale, gate and normaliser, (R, r, H, p or 1, L, L)."""
    heads, n, p = system.state_shape
    assert isinstance(system.C, InnerOutput) and isinstance(system.B, OuterInput)
    B, C = system.B, system.C
    tokens = jnp.zeros((length, system.token_width), system.real_dtype)
    problem = prepare(system, tokens, emit_states=False)
    dtype = problem.dtype
    problem = problem.in_dtype(dtype)
    if n == 1:  # there b and c are not in the recurrence; here they are
        b, c = B.vectors(), C.vectors()
        c = c if c is None or not C.before_update else jnp.roll(c, -1, axis=0)
        b, c = (v if v is None else v.astype(dtype) for v in (b, c))
        x = jnp.zeros((length, B.rank, heads, p), dtype)
        b = jnp.ones((1, B.rank, 1, 1), dtype) if b is None else b
        c = jnp.ones((1, C.rank, 1, 1), dtype) if c is None else c
        problem = dataclasses.replace(problem, b=b, c=c, x=x)
    if system.A.low_rank:
        phi = guarded(_low_rank_by_chunks, _low_rank_by_steps, problem)
    elif MATRIX_PRODUCTS.against(system.A) is None:
        phi = MATRIX_PRODUCTS.kernel(problem, heads).reshape(heads, length, C.rank, length, B.rank)
        phi = phi.transpose(2, 4, 0, 1, 3)[:, :, :, None]
    else:
        h0 = jnp.zeros((heads, n, p), dtype)
        phi = _kernel(problem, h0)[0][0].transpose(3, 2, 4, 5, 0, 1)
    # What is read before step t is read after step t − 1: rows move down by one, and Φ has no
    # diagonal. A row that a reset starts has nothing before it.
    if C.before_update:
        phi = jnp.pad(phi, [(0, 0)] * 4 + [(1, 0), (0, 0)])[..., :-1, :]
        if system.reset is not None:
            phi = jnp.where(system.reset[:, None], 0, phi)
    phi = C.real(phi)
    phi = phi if system.eta is None else _normalized(system.eta, phi)
    # The scale belongs to the step that writes, s, the last axis; gate and η to the one that reads.
    if (scale := B.scales()) is not None:
        scale = scale.astype(phi.dtype).transpose(1, 2, 3, 0)  # (r, H, p or 1, T)
        phi = phi * scale[None, :, :, :, None, :]
    if (gate := C.gates()) is not None:
        gate = gate.astype(phi.dtype).transpose(1, 2, 3, 0)
        phi = phi * gate[:, None, :, :, :, None]
    return phi


@singledispatch
def _normalized(eta: Normalizer, phi: Array) -> Array:
    """Φ (1, r, H, ·, L, L) divided by the normaliser."""
    return phi * jnp.exp(-eta.log().astype(phi.dtype)).T[None, None, :, None, :, None]


@_normalized.register
def _(eta: SummedNormalizer, phi: Array) -> Array:
    # What is read of z is what Φ makes of values of 1; its decays do not vary over p.
    summed = phi.sum(axis=(0, 1, 3, 5)).T
    if eta.bonus is not None:
        length = phi.shape[-1]
        bonus = jnp.broadcast_to(eta.bonus, (length, phi.shape[2])).T  # type: ignore[arg-type]
        t = jnp.arange(length)
        phi = phi.at[..., t, t].add(bonus[None, None, :, None].astype(phi.dtype))
    return phi / eta.eta(summed).T[None, None, :, None, :, None]


def _with_value_map(phi: Array, W: Array | None, d: int) -> Array:
    """(L, d_out, L, d) from Φ on values, (R, r, H, p or 1, L, L), and the value map."""
    rank, heads, length = phi.shape[1], phi.shape[2], phi.shape[-1]
    W = jnp.eye(d, dtype=phi.dtype) if W is None else W.astype(phi.dtype)
    W = W.reshape(rank, heads, -1, d)
    phi = jnp.broadcast_to(phi, (*phi.shape[:3], W.shape[2], length, length))
    full = jnp.einsum("krhpts,rhpd->tkhpsd", phi, W, precision="highest")
    return full.reshape(length, -1, length, d)


def _full_from_matrices(system: System, length: int) -> Array:
    """(L, d_out, L, d) from the dense matrices, for maps that read or write states."""
    A, B, C, D = matrices(system, length)
    before_update = system.C.before_update

    def body(impulses: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        t, A, B, C = step
        after = jnp.einsum("nm,smd->snd", A, impulses, precision="highest").at[t].set(B)
        seen = impulses if before_update else after
        return after, jnp.einsum("on,snd->osd", C, seen, precision="highest")

    start = zeros_as(B, (length, *B.shape[1:]))
    t = jnp.arange(length)
    _, full = jax.lax.scan(body, start, (t, A, B, C))
    return system.C.real(full).at[t, :, t, :].add(D)
