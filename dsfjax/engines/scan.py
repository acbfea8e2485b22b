"""`scan` and `step`: run a system with the engine that fits it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax._util import names
from dsfjax.core.composition import flip_time
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, Diagonal, DiagonalPlusLowRank, Scalar
from dsfjax.engines import attention
from dsfjax.engines.associative import associative
from dsfjax.engines.chunked import chunked
from dsfjax.engines.guard import guarded, reverse_only
from dsfjax.engines.materialized import materialized
from dsfjax.engines.plan import by_matrix_products, plan
from dsfjax.engines.recurrence import (
    check_tokens,
    prepare,
    read_out,
    reads_states,
    split_time,
)
from dsfjax.engines.sequential import advance, sequential
from dsfjax.engines.varying import vary_alike

Method = Literal["auto", "sequential", "associative", "chunked", "materialized"]

ENGINES: dict[str, Callable[..., tuple[Array, Array]]] = {
    "sequential": sequential,
    "associative": associative,
    "chunked": chunked,
    "materialized": materialized,
}

# Which method runs which structure; the docstring of `scan` shows it and a test compares the two.
METHODS: dict[type, tuple[str, ...]] = {
    Scalar: ("sequential", "associative", "chunked", "materialized"),
    Diagonal: ("sequential", "associative", "chunked", "materialized"),
    DiagonalPlusLowRank: ("sequential", "chunked", "materialized"),
    Dense: ("sequential", "associative", "chunked", "materialized"),
    KernelSystem: ("sequential", "chunked", "materialized"),
}

_REASONS_AGAINST = {
    (
        DiagonalPlusLowRank,
        "associative",
    ): "products of such transitions are not closed: their rank grows",
    (KernelSystem, "associative"): "a kernel has no finite state",
}


def scan(
    system: System | KernelSystem,
    u: Float[Array, "L d"],
    h0: Array | KVCache | None = None,
    *,
    method: Method | str = "auto",
    reverse: bool = False,
    return_states: bool = False,
) -> tuple[Any, ...]:
    r"""Run a system over one sequence of tokens.

    .. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t .

    All methods give the same values, gradients, dtypes and pytrees, for every L ≥ 1, and splitting
    a sequence anywhere and carrying the state changes nothing. Which method runs which structure:

    ====================  ==========  ===========  =======  ============
    structure of A        sequential  associative  chunked  materialized
    ====================  ==========  ===========  =======  ============
    Scalar                yes         yes          yes      yes
    Diagonal              yes         yes          yes      yes
    DiagonalPlusLowRank   yes         no           yes      yes
    Dense                 yes         yes          yes      yes
    KernelSystem          yes         no           yes      yes
    ====================  ==========  ===========  =======  ============

    Args:
        system: The system of one sequence of length L (or constant in time).
        u: Tokens (L, d), float64, float32 or bfloat16. For a batch use `jax.vmap`.
        h0: Initial state (H, n, p), zero by default; (H, n, p + 1) with a summed normaliser, whose
            z is the last channel; a `KVCache` for a kernel system. Differentiable.
        method: "auto" (see `explain`), or one of the table.
        reverse: Run from the last step to the first. ``h0`` enters at the last step, the last state
            is that of the first step, and resets keep separating the same documents. (Going on to
            earlier steps, drop it if the first step has a reset.)
        return_states: Return all states as well.

    Returns:
        ``(y, h_last)`` or ``(y, h_last, states)``: y (L, d_out) in the dtype of ``u``; states
        (L, H, n, p), un-normalised, at least float32, complex where the system is.

    Raises:
        ValueError: While tracing: tokens or state of a wrong shape, an unknown method, or one that
            does not run this structure.

    Numerics:
        sequential O(L) steps; associative O(log L) depth and O(L H n p) memory; chunked O(L) work
        in matrix products; materialized O(L²). States and sums are float32 for bfloat16 inputs.
        Matrix products of float32 use full precision on every device.
        Every method but "sequential" keeps its inputs and O(L / chunk) states for the backward
        pass and computes the rest again. Forward mode (jvp, jacfwd, linearize) goes through
        "sequential"; the others refuse it.
        A NaN or ∞ reaches what its step feeds, up to the next reset, and nothing else: where there
        is one, or a sum overflows, every method gives the values of "sequential".

    References:
        Sieber et al. (2024), arXiv:2405.15731. Chunks: Dao & Gu (2024), arXiv:2405.21060; Yang et
        al. (2023), arXiv:2312.06635.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> y, h = scan(ema, jnp.ones((4, 1)), method="chunked")
        >>> y[:, 0].tolist(), h.shape
        ([1.0, 1.5, 1.75, 1.875], (1, 1, 1))
    """
    check_tokens("scan", system, u)
    if reverse:
        y, *rest = scan(flip_time(system), u[::-1], h0, method=method, return_states=return_states)
        states = [x[::-1] for x in rest[1:]]
        return (y[::-1], rest[0], *states)
    method_name = resolve_method(system, u.shape[0], method)
    if isinstance(system, KernelSystem):
        if return_states:
            raise ValueError(
                "scan: a KernelSystem has no finite states to return; its state is the KVCache."
            )
        return _run_kernel(system, u, _cache("scan", system, u, h0), method_name)
    h0 = initial_state("scan", system, u, h0)
    y, h_last, states = _run(system, u, h0, method_name, return_states)
    return (y, h_last, states) if return_states else (y, h_last)


# Compiled as a whole also where the caller compiles nothing: op by op, a first call takes ten times
# as long, and later ones a hundred times.
@partial(jax.jit, static_argnums=3)
def _run_kernel(
    system: KernelSystem, u: Array, cache: KVCache | None, method: str
) -> tuple[Array, KVCache]:
    if method != "sequential":
        system, u, cache = reverse_only((system, u, cache), method)
    return attention.run(system, u, cache, method=method)


@partial(jax.jit, static_argnums=(3, 4))
def _run(
    system: System, u: Array, h0: Array, method: str, return_states: bool
) -> tuple[Array, Array, Array | None]:
    needs_states = return_states or reads_states(system)
    problem = prepare(system, u, emit_states=needs_states)
    problem, h0 = vary_alike((problem, h0))
    if method == "sequential":
        out, h_last = sequential(problem, h0)
    else:
        problem, h0 = reverse_only((problem, h0), method)
        run = ENGINES[method]
        if method == "chunked" and plan(problem, h0.shape).exact:
            out, h_last = run(problem, h0)
        else:
            out, h_last = guarded(run, sequential, problem, h0)
    y = read_out(system, u, out, from_states=needs_states)
    return y, h_last, out if return_states else None


def step(
    system_t: System | KernelSystem, u_t: Float[Array, " d"], h: Array | KVCache | None
) -> tuple[Float[Array, " d_out"], Array | KVCache]:
    r"""Run one step of decoding.

    .. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t .

    Args:
        system_t: The system of one step (length 1), as an architecture gives it for one token, or
            as ``slice_time(system, t, t + 1)``.
        u_t: Token (d,).
        h: State of the step before, as `scan` returns it; None for the zero state.

    Returns:
        ``(y_t, h)``: output (d_out,) and the new state, of the same shape and dtype.

    Raises:
        ValueError: If the system covers more than one step, or shapes do not fit.

    Numerics:
        O(N) work and constant memory; through a `KVCache`, O(t).

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> y, h = step(ema, jnp.array([1.0]), None)
        >>> step(ema, jnp.array([0.0]), h)[0].tolist()
        [0.5]
    """
    if system_t.length != 1:
        raise ValueError(
            f"step: expected the system of one step, got one of length {system_t.length}. Use "
            "slice_time(system, t, t + 1), or scan for several steps."
        )
    if u_t.ndim != 1:
        raise ValueError(
            f"step: expected one token (d,), got {u_t.shape}. For a batch use jax.vmap."
        )
    u = u_t[None]
    check_tokens("step", system_t, u)
    if isinstance(system_t, KernelSystem):
        return _step_kernel(system_t, u, _cache("step", system_t, u, h))
    return _step(system_t, u, initial_state("step", system_t, u, h))


@jax.jit
def _step_kernel(system_t: KernelSystem, u: Array, cache: KVCache | None) -> tuple[Array, KVCache]:
    y, cache = attention.run(system_t, u, cache, method="sequential")
    return y[0], cache


@jax.jit
def _step(system_t: System, u: Array, h: Array) -> tuple[Array, Array]:
    problem = prepare(system_t, u, emit_states=reads_states(system_t))
    xs, rebuild = split_time(problem, 1)
    h, out = advance(rebuild([x[0] for x in xs], lambda x: x), h)
    return read_out(system_t, u, out[None], from_states=problem.emit_states)[0], h


def initial_state(owner: str, system: System, u: Array, h0: Array | KVCache | None) -> Array:
    """``h0`` checked and cast to the dtype of the state, or zeros."""
    dtype = state_dtype(system.dtype, u.dtype)
    if h0 is None:
        return jnp.zeros(system.carried_shape, dtype)
    if isinstance(h0, KVCache) or jnp.shape(h0) != system.carried_shape:
        got = "a KVCache" if isinstance(h0, KVCache) else jnp.shape(h0)
        raise ValueError(f"{owner}: expected a state of shape {system.carried_shape}, got {got}.")
    if jnp.iscomplexobj(h0) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"{owner}: the system is real, but its initial state is {h0.dtype}.")
    return jnp.asarray(h0).astype(dtype)


def _cache(
    owner: str, system: KernelSystem, u: Array, h0: Array | KVCache | None
) -> KVCache | None:
    """``h0`` checked as the past of a kernel system, with room for the steps of ``u``."""
    if h0 is None:
        return None
    if not isinstance(h0, KVCache):
        got = f"{type(h0).__name__} of shape {jnp.shape(h0)}"
        raise ValueError(f"{owner}: expected a KVCache, the state of a KernelSystem, got {got}.")
    expected = (system.k.shape[1:], (system.num_heads, system.num_channels))
    got = (h0.k.shape[1:], h0.v.shape[1:])
    if got != expected:
        raise ValueError(
            f"{owner}: expected a KVCache with keys and values of shapes (S, G, m), (S, H, p) with "
            f"(G, m), (H, p) = {expected}, got {got}."
        )
    attention.check_capacity(u.shape[0], h0)
    return h0


def resolve_method(system: System | KernelSystem, length: int, method: str) -> str:
    """The engine that will run, after checking that it runs this structure."""
    structure = KernelSystem if isinstance(system, KernelSystem) else type(system.A)
    if method == "auto":
        return choose(system, length)[0]
    names.choose("method of scan", method, ("auto", *ENGINES))
    if method not in METHODS[structure]:
        reason = _REASONS_AGAINST[structure, method]
        raise ValueError(
            f"scan: method {method!r} does not run {structure.__name__} ({reason}); "
            f"use one of {list(METHODS[structure])}."
        )
    return method


def choose(system: System | KernelSystem, length: int) -> tuple[str, str]:
    """What "auto" picks for this structure and length, and why."""
    if isinstance(system, KernelSystem):
        if length <= 2 * attention.BLOCK:
            return "materialized", "the L × L scores of a short sequence are small"
        return "chunked", "blocks of keys keep memory linear in L"
    if isinstance(system.A, Dense):
        return "chunked", "a dense transition runs step by step, one state kept per chunk"
    if reads_states(system):
        return "chunked", "a dense map reads every state: step by step, one kept per chunk"
    if isinstance(system.A, DiagonalPlusLowRank):
        return "chunked", "the WY form of a low-rank update turns chunks into matrix products"
    if system.state_shape[1] == 1 and jax.default_backend() == "cpu":
        return "sequential", "one state per channel: a step is little work, and a CPU has few cores"
    if system.state_shape[1] == 1:
        return "chunked", "one state per channel: step by step, chunks side by side"
    if not by_matrix_products(system.A):
        return "chunked", "a decay per channel runs step by step, one state kept per chunk"
    decay = "a scalar decay" if isinstance(system.A, Scalar) else "a decay per state"
    return "chunked", f"{decay} turns chunks into matrix products"
