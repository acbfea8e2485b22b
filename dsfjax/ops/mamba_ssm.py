r"""The scans of mamba_ssm: S6 with channels before time, SSD with time before heads."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Inexact, Int

from dsfjax.core import (
    Diagonal,
    InnerOutput,
    OuterInput,
    Scalar,
    System,
    ValueSkip,
    reset_from_segment_ids,
)
from dsfjax.core.dtypes import state_dtype as _wide_dtype
from dsfjax.engines import scan
from dsfjax.ops.batch import Cache, CuSeqlens, Indices, checked, flat, wide
from dsfjax.ops.op import Assembled, op


def _steps(
    dt: Array,
    bias: Array | None,
    softplus: bool,
    limit: tuple[float, float] | None = None,
) -> Array:
    """Δ from what is projected, in the dtype of states; ``bias`` has the axes of dt.

    With a limit Δ stays between its two numbers, and has no gradient where it would not.
    """
    dt = wide(dt)
    dt = dt if bias is None else dt + bias.astype(dt.dtype)
    dt = jax.nn.softplus(dt) if softplus else dt
    if limit is None or (softplus and limit[0] <= 0 and limit[1] == math.inf):
        return dt  # a softplus is positive
    low, high = (jnp.asarray(x, dt.dtype) for x in limit)
    # Not `jnp.clip`, which halves the gradient at the limits, such as of steps that are 0.
    return jnp.where(dt < low, low, jnp.where(dt > high, high, dt))


def gated(y: Array, z: Array | None) -> Array:
    """Y silu(z)."""
    return y if z is None else y * jax.nn.silu(wide(z)).astype(y.dtype)


def _selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    *,
    reset: Array | None = None,
) -> Assembled:
    channels, length = u.shape
    of_channels = B.ndim == 2 and B.shape[0] == channels and not _in_time(B, A, length)
    read_by_channels = C.ndim == 2 and C.shape[0] == channels and not _in_time(C, A, length)
    b, c = (_vectors(x, A, length, own) for x, own in ((B, of_channels), (C, read_by_channels)))
    # Groups of channels that share b and c are heads; where they share none, every channel is one.
    heads = b.shape[1] if b.shape[1] == c.shape[1] else channels
    p = channels // heads
    # Transposed before all else: of a product that was transposed for this call nothing is moved.
    bias = None if delta_bias is None else delta_bias[None]
    step = _steps(delta.T, bias, delta_softplus).reshape(length, heads, p)
    rate = wide(A).reshape(heads, p, -1).swapaxes(1, 2)
    pairs = jnp.iscomplexobj(A)
    system = System(
        Diagonal.factored(step.astype(rate.dtype) if pairs else step, rate),
        OuterInput(b, step),
        InnerOutput(c, conjugate_pairs=pairs),
        None if D is None else ValueSkip(D.reshape(1, heads, p)),
        reset=reset,
        state_shape=(heads, A.shape[1], p),
        length=length,
    )
    return Assembled(system, u.T)


def _in_time(x: Array, A: Array, length: int) -> bool:
    """Whether a two-axis B or C is [N, L] and not [D, N]; the latter where it could be both."""
    wide_time = length * (2 if jnp.iscomplexobj(A) else 1)
    return x.shape != A.shape and x.shape == (A.shape[1], wide_time)


def _vectors(x: Array, A: Array, length: int, of_channels: bool) -> Array:
    """B or C as vectors (T or 1, G, n)."""
    if of_channels:
        return x[None]
    x = x if x.ndim == 3 else x[None]
    if jnp.iscomplexobj(A):  # real and imaginary parts alternate along time
        parts = x.reshape(*x.shape[:2], length, 2)
        x = jax.lax.complex(wide(parts[..., 0]), wide(parts[..., 1]))
    return jnp.moveaxis(x, 2, 0)


@op(_selective_scan, "mamba_ssm.ops.selective_scan_interface")
def selective_scan_fn(
    u: Float[Array, "B D T"],
    delta: Float[Array, "B D T"],
    A: Inexact[Array, "D N"],
    B: Array,
    C: Array,
    D: Float[Array, " D"] | None = None,
    z: Float[Array, "B D T"] | None = None,
    delta_bias: Float[Array, " D"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Array | tuple[Array, Array]:
    r"""The selective scan of Mamba (S6), time last.

    .. math:: h_t = e^{Δ_t A} h_{t-1} + Δ_t B_t u_t, \quad
              y_t = (C_t h_t + D u_t) \, \mathrm{silu}(z_t) .

    A = e^{ΔA} diagonal, B = Δ B, C, D; the gate silu(z) acts on y and is not in the System.

    Args:
        u: Inputs.
        delta: Δ, before its bias and softplus.
        A: Rates, negative; real, or complex for states of conjugate pairs.
        B: [B, G, N, T] or [B, N, T], with G groups of channels, or [D, N], constant. With a complex
            A those in time are real, 2T long, real and imaginary parts in turn; constant ones are
            complex.
        C: As B.
        D: Skip.
        z: Gate, before its silu.
        delta_bias: Added to Δ.
        delta_softplus: Whether Δ is a softplus.
        return_last_state: Whether to return the state at the end; unlike the peer's it has a
            gradient.

    Returns:
        y [B, D, T] in the dtype of u; with ``return_last_state`` also [B, D, N]. Of complex states
        y is 2 Re(·).

    References:
        Gu & Dao (2023), arXiv:2312.00752.

    Example:
        >>> one = jnp.ones((1, 1, 3))
        >>> selective_scan_fn(one, one, jnp.log(jnp.array([[0.5]])), one, one)[0, 0].tolist()
        [1.0, 1.5, 1.75]
    """
    (batch, channels, length), n = u.shape, A.shape[1]
    time, times = (2 * length, "2T") if jnp.iscomplexobj(A) else (length, "T")
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[1] if x.ndim == 4 else 1
        if x.shape not in (A.shape, (batch, n, time), (batch, groups, n, time)):
            raise ValueError(
                f"selective_scan_fn: expected {name} of shape [B, G, N, {times}], [B, N, {times}] "
                f"or [D, N] with B = {batch}, N = {n}, T = {length} and D = {channels}, got "
                f"{list(x.shape)}."
            )
        if not groups or channels % groups:
            raise ValueError(
                f"selective_scan_fn: expected D to be a multiple of G, the groups of {name}, got "
                f"D = {channels} and G = {groups}."
            )
    B, C = (x[:, None] if x.ndim == 3 else x for x in (B, C))
    axes = tuple(None if x.ndim == 2 else 0 for x in (B, C))
    given = partial(_selective_scan, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)

    def one(u: Array, delta: Array, B: Array, C: Array) -> tuple[Array, Array]:
        y, last = scan(*given(u, delta, A, B, C))
        return y.T, last.swapaxes(1, 2).reshape(channels, -1)

    y, last = jax.vmap(one, (0, 0, *axes))(u, delta, B, C)
    y = gated(wide(y), z).astype(u.dtype).reshape(batch, channels, -1)
    return (y, last) if return_last_state else y


def ssd_system(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    *,
    reset: Array | None = None,
) -> Assembled:
    """The System of SSD on one sequence, as `mamba_chunk_scan_combined` has it."""
    length, heads, p = x.shape
    step = _steps(dt, None if dt_bias is None else dt_bias[None], dt_softplus, dt_limit)
    skip = None if D is None else ValueSkip(D.reshape(1, heads, -1))
    system = System(
        Scalar(step * wide(A)[None].astype(step.dtype)),
        OuterInput(B, step[:, :, None]),
        InnerOutput(C),
        skip,
        reset=reset,
        state_shape=(heads, B.shape[2], p),
        length=length,
    )
    return Assembled(system, flat(x))


@op(ssd_system, "mamba_ssm.ops.triton.ssd_combined")
def mamba_chunk_scan_combined(
    x: Float[Array, "B T H P"],
    dt: Float[Array, "B T H"],
    A: Float[Array, " H"],
    B: Float[Array, "B T G N"],
    C: Float[Array, "B T G N"],
    chunk_size: int | None = None,
    D: Float[Array, " H"] | Float[Array, "H P"] | None = None,
    z: Float[Array, "B T H P"] | None = None,
    dt_bias: Float[Array, " H"] | None = None,
    initial_states: Float[Array, "B H P N"] | None = None,
    seq_idx: Int[Array, "B T"] | None = None,
    cu_seqlens: CuSeqlens | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: DTypeLike | None = None,
) -> Array | tuple[Array, ...]:
    r"""SSD, the scan of Mamba-2.

    .. math:: S_t = e^{Δ_t A} S_{t-1} + Δ_t x_t B_t^\top, \quad
              y_t = (S_t C_t + D x_t) \, \mathrm{silu}(z_t) .

    A = e^{ΔA} I, B = Δ B, C, D; the gate silu(z) acts on y and is not in the System.

    Args:
        x: Values.
        dt: Δ, before its bias, softplus and limits, in this order.
        A: Rate of every head, negative.
        B: Keys of G groups; head h has those of group h // (H / G).
        C: Queries, alike.
        chunk_size: No number depends on it; the engine chooses its own.
        D: Skip [H] or [H, P].
        z: Gate, before its silu.
        dt_bias: Added to Δ.
        initial_states: [B, H, P, N], for the tokens with ``seq_idx`` 0.
        seq_idx: Documents of each row, from 0 on: the state restarts where it changes.
        cu_seqlens: Where packed sequences begin, and the end [K + 1]; only for
            ``return_varlen_states``. What is run is told by ``seq_idx``.
        dt_softplus: Whether Δ is a softplus.
        dt_limit: Between which Δ is clipped, by default to at least 0; beyond it has no gradient.
        return_final_states: Whether to return the state at the end of each row.
        return_varlen_states: Whether to return those at the ends of the packed sequences, of a
            batch of 1; zero for an empty one.
        state_dtype: That of the states, at least float32; no other is there.

    Returns:
        y [B, T, H, P] in the dtype of x; then [B, H, P, N], and [K, H, P, N], as wanted.

    Raises:
        ValueError: If shapes do not fit, or ``return_varlen_states`` lacks ``cu_seqlens``.

    References:
        Dao & Gu (2024), arXiv:2405.21060.

    Example:
        >>> one, A = jnp.ones((1, 3, 1, 1)), jnp.log(jnp.array([0.5]))
        >>> mamba_chunk_scan_combined(one, one[..., 0], A, one, one, 64).ravel().tolist()
        [1.0, 1.5, 1.75]
    """
    _check_chunk("mamba_chunk_scan_combined", chunk_size)
    check_state_dtype("mamba_chunk_scan_combined", state_dtype, x)
    given = partial(ssd_system, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit)
    if return_varlen_states and cu_seqlens is None:
        raise ValueError(
            "mamba_chunk_scan_combined: expected cu_seqlens with return_varlen_states, got None."
        )
    ends = None if cu_seqlens is None else jnp.asarray(checked(cu_seqlens, *x.shape[:2]))
    ends = ends if return_varlen_states else None

    def one(arrays: Any, ids: Array | None, h0: Array | None) -> tuple[Array, ...]:
        x, dt, B, C = arrays
        # The initial state is that of the document 0.
        reset = None if ids is None else reset_from_segment_ids(ids, 0)
        system, u = given(x, dt, A, B, C, reset=reset)
        if ends is None:
            return scan(system, u, h0)
        return scan(system, u, h0, return_states=jnp.clip(ends[1:] - 1, 0, x.shape[0] - 1))

    h0 = None if initial_states is None else initial_states.swapaxes(2, 3)
    y, last, *states = jax.vmap(one)((x, dt, B, C), seq_idx, h0)
    y = gated(wide(y).reshape(x.shape), z).astype(x.dtype)
    found = [y]
    if return_final_states:
        found.append(last.swapaxes(2, 3))
    if ends is not None:
        full = (ends[1:] > ends[:-1])[:, None, None, None]
        found.append(jnp.where(full, states[0][0].swapaxes(2, 3), 0))
    return found[0] if len(found) == 1 else tuple(found)


def check_state_dtype(owner: str, dtype: DTypeLike | None, x: Array) -> None:
    """Raise `ValueError` for another dtype than states have: a System has no narrower ones."""
    own = _wide_dtype(x.dtype)
    if dtype is not None and jnp.dtype(dtype) != own:
        raise ValueError(
            f"{owner}: expected state_dtype to be None or {own}, that of states of {x.dtype} "
            f"inputs, got {jnp.dtype(dtype)}."
        )


def _check_chunk(owner: str, size: int | None) -> None:
    if size is not None and size < 1:
        raise ValueError(f"{owner}: expected chunk_size >= 1, got {size}.")


def _ssd_discrete(
    X: Array, A: Array, B: Array, C: Array, *, reset: Array | None = None
) -> Assembled:
    length, heads, p = X.shape
    shape = (heads, B.shape[2], p)
    parts = Scalar(wide(A)), OuterInput(B), InnerOutput(C)
    return Assembled(System(*parts, reset=reset, state_shape=shape, length=length), flat(X))


@op(_ssd_discrete, "mamba_ssm.modules.ssd_minimal")
def ssd_minimal_discrete(
    X: Float[Array, "B T H P"],
    A: Float[Array, "B T H"],
    B: Float[Array, "B T H N"],
    C: Float[Array, "B T H N"],
    block_len: int,
    initial_states: Float[Array, "B 1 H P N"] | Float[Array, "B H P N"] | None = None,
) -> tuple[Array, Array]:
    r"""SSD in discrete form, as the listing of the Mamba-2 paper.

    .. math:: S_t = e^{A_t} S_{t-1} + X_t B_t^\top, \quad Y_t = S_t C_t .

    Args:
        X: Values times Δ.
        A: Log decays, the rate times Δ.
        B: Keys of every head.
        C: Queries of every head.
        block_len: Divides T, as the listing wants it; no number depends on it.
        initial_states: [B, 1, H, P, N] or [B, H, P, N]; by default 0.

    Returns:
        ``(Y, final_state)``: [B, T, H, P] in the dtype of X and [B, H, P, N].

    Raises:
        ValueError: If ``block_len`` does not divide T.

    References:
        Dao & Gu (2024), arXiv:2405.21060, listing 1.
    """
    batch, length, heads, p = X.shape
    if block_len < 1 or length % block_len:
        raise ValueError(
            f"ssd_minimal_discrete: expected block_len to divide T = {length}, got {block_len}."
        )
    h0 = initial_states
    if h0 is not None:
        h0 = h0.reshape(batch, heads, p, -1).swapaxes(2, 3)
    y, last = jax.vmap(lambda arrays, h0: scan(*_ssd_discrete(*arrays), h0))((X, A, B, C), h0)
    return y.reshape(X.shape), last.swapaxes(2, 3)


def _state_update(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
) -> Assembled:
    """One step: x, dt (H, P), A (H, P, N), B, C (G, N), D, dt_bias (H, P)."""
    heads, p, n = A.shape
    step = _steps(dt, dt_bias, dt_softplus)[None]
    system = System(
        Diagonal.factored(step, wide(A).swapaxes(1, 2)),
        OuterInput(B[None], step),
        InnerOutput(C[None]),
        None if D is None else ValueSkip(D[None]),
        state_shape=(heads, n, p),
        length=1,
    )
    return Assembled(system, x.reshape(1, -1))


@op(_state_update, "mamba_ssm.ops.triton.selective_state_update")
def selective_state_update(
    state: Array,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Indices | None = None,
) -> tuple[Array, Array]:
    r"""One step of `selective_scan_fn` or, with heads, of `mamba_chunk_scan_combined`.

    .. math:: h \leftarrow e^{Δ A} h + Δ B x, \quad y = (C h + D x) \, \mathrm{silu}(z) .

    Args:
        state: [N, D, N'], or with heads [N, H, P, N'].
        x: Inputs [B, D], or [B, H, P].
        dt: Δ like x.
        A: Rates [D, N'], or [H, P, N'].
        B: [B, N'], or [B, G, N'] with G groups of heads.
        C: As B.
        D: Skip [D], or [H, P].
        z: Gate like x.
        dt_bias: Like D.
        dt_softplus: Whether Δ is a softplus.
        state_batch_indices: The row of the state of each row of x; by default the same, N = B. Rows
            of x with a negative one are padding, with outputs 0 and no state; so are those beyond
            the last if that is not known while tracing.

    Returns:
        ``(y, state)``: outputs like x, and the new state, which the peer's writes in place. The
        ``system`` of one row takes arrays with heads.

    Raises:
        ValueError: If shapes do not fit, or an index is beyond the last state.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> y, h = selective_state_update(one[None], one, one, jnp.log(one / 2), one, one)
        >>> y.tolist(), h.tolist()
        ([[1.5]], [[[1.5]]])
    """
    heads = state.ndim == 4
    if state.ndim not in (3, 4) or x.ndim != state.ndim - 1:
        raise ValueError(
            "selective_state_update: expected state [N, D, N'] and x [B, D], or with heads [N, H, "
            f"P, N'] and [B, H, P], got {list(state.shape)} and {list(x.shape)}."
        )
    batch, channels, n = x.shape[0], state.shape[1:-1], state.shape[-1]
    shapes = {"x": (batch, *channels), "dt": (batch, *channels), "z": (batch, *channels)}
    shapes |= {"A": (*channels, n), "D": channels, "dt_bias": channels}
    groups = B.shape[1] if B.ndim == 3 else 1
    shapes |= dict.fromkeys("BC", (batch, n) if B.ndim == 2 else (batch, groups, n))
    given = {"x": x, "dt": dt, "z": z, "A": A, "D": D, "dt_bias": dt_bias, "B": B, "C": C}
    for name, v in given.items():
        if v is not None and v.shape != shapes[name]:
            raise ValueError(
                f"selective_state_update: expected {name} of shape {list(shapes[name])} with a "
                f"state {list(state.shape)} and {batch} rows of x, got {list(v.shape)}."
            )
    if not groups or (channels[0] if heads else 1) % groups:
        raise ValueError(
            "selective_state_update: expected the heads to be a multiple of the groups of B and C, "
            f"got {channels[0] if heads else 1} and {groups}."
        )
    cache = Cache.of(
        "selective_state_update", "state_batch_indices", state, state_batch_indices, batch
    )

    def lifted(x: Any, axis: int) -> Any:
        return x if heads or x is None else jnp.expand_dims(x, axis)

    step = partial(
        _state_update, D=lifted(D, 0), dt_bias=lifted(dt_bias, 0), dt_softplus=dt_softplus
    )

    def one(h: Any, x: Any, dt: Any, B: Any, C: Any) -> tuple[Array, Array]:
        return scan(*step(x, dt, lifted(A, 0), B, C), h)

    h0: Any = lifted(cache.rows, 1)
    B, C = (v if v.ndim == 3 else v[:, None] for v in (B, C))
    y, last = jax.vmap(one)(h0.swapaxes(2, 3), lifted(x, 1), lifted(dt, 1), B, C)
    last = last.swapaxes(2, 3).reshape(batch, *state.shape[1:])
    y = gated(wide(y).reshape(x.shape), z).astype(x.dtype)
    return cache.padded(y), cache.updated(last)
