"""`scan` and `step`: run a system with the engine that fits it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Shaped

from dsfjax._util.varying import vary_alike
from dsfjax.core.composition import flip_time
from dsfjax.core.dtypes import state_dtype, whole_numbers
from dsfjax.core.kernel import KernelSystem, KVCache
from dsfjax.core.policy import DEFAULT, Precision
from dsfjax.core.resets import starts
from dsfjax.core.system import System
from dsfjax.engines import attention
from dsfjax.engines.dispatch import Method, resolve
from dsfjax.engines.engine import Engine
from dsfjax.engines.entering import Entering
from dsfjax.engines.guard import guarded, reverse_only
from dsfjax.engines.recurrence import (
    Recurrence,
    check_tokens,
    is_tied,
    observe,
    prepare,
    read_out,
    reads_states,
)
from dsfjax.engines.sequential import InPlace, advance


def scan(
    system: System | KernelSystem,
    u: Shaped[Array, "L d"],
    h0: Array | KVCache | None = None,
    *,
    method: Engine | Method | str = "auto",
    reverse: bool = False,
    return_states: bool | Shaped[Array | np.ndarray, " K"] | Sequence[int] = False,
    precision: Precision | None = None,
) -> tuple[Any, ...]:
    r"""Run a system over one sequence of tokens.

    .. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t .

    All methods give the same values, gradients, dtypes and pytrees, for every L ≥ 1, and splitting
    a sequence anywhere and carrying the state changes nothing. Which method runs which structure:

    ====================  ==========  ===========  =======  ============  ============
    structure of A        sequential  associative  chunked  checkpointed  materialized
    ====================  ==========  ===========  =======  ============  ============
    Scalar                yes         yes          yes      yes           yes
    Diagonal              yes         yes          yes      yes           yes
    DiagonalPlusLowRank   yes         yes          yes      yes           yes
    Dense                 yes         yes          no       yes           yes
    your Transition       yes         yes          no       yes           yes
    KernelSystem          yes         no           yes      no            yes
    ====================  ==========  ===========  =======  ============  ============

    "chunked" has no algorithm either for `DiagonalPlusLowRank` where all states are in use: with
    ``return_states=True``, or around a dense B or C.

    Args:
        system: The system of one sequence of length L (or constant in time).
        u: Tokens (L, d), float64, float32 or bfloat16; integers become real numbers of the dtype
            of the state. For a batch use `jax.vmap`.
        h0: Initial state (H, n, p), zero by default; (H, n, p + 1) with a summed normaliser, whose
            z is the last channel; a `KVCache` for a kernel system. Differentiable. With one axis
            more, (S, H, n, p): row i is the state before the i-th segment of the system's
            ``reset``, the first of which starts at step 0; rows beyond the last segment are not
            used. In reverse row i enters at the end of segment i.
        method: "auto" (`select` says which engine that is), the name of one of the table, or an
            `Engine`, which may be one of your own.
        reverse: Run from the last step to the first. ``h0`` enters at the last step, the last state
            is that of the first step, and resets keep separating the same documents. (Going on to
            earlier steps, drop it if the first step has a reset.)
        return_states: Return all states as well; or those after some steps, integers (K,) in any
            order (the ends of segments, every hundredth).
        precision: Dtypes, where they are not to follow from the inputs. The sums of softmax are at
            full precision whatever it says of matrix products.

    Returns:
        ``(y, h_last)`` or ``(y, h_last, states)``: y (L, d_out) in the dtype of ``u``; states
        (L, H, n, p) or (K, H, n, p), un-normalised, at least float32, complex where the system is.

    Raises:
        ValueError: While tracing: tokens or state of a wrong shape, an unknown method, or one that
            does not run this structure.
        TypeError: For complex tokens, or an engine that cannot be hashed.

    Numerics:
        sequential O(L) steps; associative O(log L) depth and O(L H n p) memory; chunked O(L) work
        in matrix products; materialized O(L²). States and sums are float32 for bfloat16 inputs.
        Matrix products of float32 use full precision on every device.
        For the states after K steps "chunked" and "checkpointed" run K chunks once more, step by
        step; "associative" and "materialized" hold all states. An initial state per segment is n
        more steps in "chunked"; "associative", "checkpointed" and "materialized" hold as much as
        all states for it.
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
    u = check_tokens("scan", system, u)
    policy = DEFAULT if precision is None else precision
    given = system
    system, u = policy.cast(system, u)
    length, every = u.shape[0], isinstance(return_states, bool | np.bool_) and bool(return_states)
    some = not isinstance(return_states, bool | np.bool_)
    if isinstance(system, KernelSystem):
        if every or some:
            raise ValueError(
                "scan: a KernelSystem has no finite states to return; its state is the KVCache."
            )
        engine, _ = resolve(system, length, method)
        cache = _cache("scan", system, u, h0)
        with _mesh_of_context():
            if not reverse:
                return _run_kernel(system, u, cache, engine)
            y, cache = _run_kernel(flip_time(system), u[::-1], cache, engine)
            return y[::-1], cache
    steps = _steps(return_states, length) if some else None
    per_segment = h0 is not None and not isinstance(h0, KVCache) and jnp.ndim(h0) == 4
    h0 = initial_state("scan", system, u, h0, per_segment=per_segment)
    segment = _segments(system.reset, length, h0.shape[0]) if per_segment else None
    engine, _ = resolve(system, length, method, states=every or ("some" if some else False))
    if reverse:
        system, u = flip_time(system), u[::-1]
        segment = None if segment is None else segment[::-1]
        steps = None if steps is None else length - 1 - steps
    assert isinstance(given, System)
    tied = engine.takes_tied and is_tied(given, system)
    with _mesh_of_context():
        y, h_last, states = _run(system, u, h0, segment, steps, engine, every, policy, tied)
    if reverse:
        y = y[::-1]
        states = states[::-1] if every and states is not None else states
    return (y, h_last) if states is None else (y, h_last, states)


def _mesh_of_context() -> AbstractContextManager[Any]:
    """The mesh of the context, set once more: it changes what JAX finds in its cache, no more.

    For a gradient JAX traces what is under `jax.jit` a second time, and there the mesh is set. So
    the second trace finds the first only if it was set for that as well: with a gradient a fifth of
    the time of tracing.
    """
    return jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh())


# Compiled as a whole also where the caller compiles nothing: op by op, a first call takes ten times
# as long, and later ones a hundred times.
@partial(jax.jit, static_argnums=3)
def _run_kernel(
    system: KernelSystem, u: Array, cache: KVCache | None, engine: Engine
) -> tuple[Array, KVCache]:
    if not engine.has_forward_mode:
        system, u, cache = reverse_only((system, u, cache), engine.name)
    return attention.run(system, u, cache, method=engine.name)


@partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _run(
    system: System,
    u: Array,
    h0: Array,
    segment: Array | None,
    steps: Array | None,
    engine: Engine,
    every: bool,
    policy: Precision,
    tied: bool,
) -> tuple[Array, Array, Array | None]:
    every_state = every or reads_states(system)
    problem = prepare(system, u, emit_states=every_state, policy=policy, tied=tied)
    before = h0 if segment is None else Entering.of(h0, segment)
    problem, before = vary_alike((problem, before))
    if not engine.has_forward_mode:
        problem, before = reverse_only((problem, before), engine.name)
    run, exact = (partial(_by, x) for x in (engine, InPlace()))
    arguments = (problem, before, steps if steps is not None and steps.shape[0] else None)
    found = run(*arguments) if engine.is_stepwise else guarded(run, exact, *arguments)
    out, h_last, *kept = found
    first = (before.rows, before.starts) if isinstance(before, Entering) else (h0[None],)
    y = read_out(system, u, observe(system, problem, out, *first), policy)
    states = None if steps is None else kept[0] if kept else h_last[None][:0]
    return y, h_last, out if every else states


def _by(
    engine: Engine, problem: Recurrence, before: Array | Entering, steps: Array | None
) -> tuple[Array, ...]:
    """What an engine gives for a recurrence, from one state or one for every segment."""
    problem = problem if engine.takes_tied else problem.untie()
    if isinstance(before, Entering):
        return engine.run_segments(problem, before, steps)
    if steps is None:
        return engine.run(problem, before)
    return engine.states_at(problem, before, steps)


def step(
    system_t: System | KernelSystem,
    u_t: Shaped[Array, " d"],
    h: Array | KVCache | None,
    *,
    precision: Precision | None = None,
) -> tuple[Float[Array, " d_out"], Array | KVCache]:
    r"""Run one step of decoding.

    .. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t .

    Args:
        system_t: The system of one step (length 1), as an architecture gives it for one token, or
            as ``slice_time(system, t, t + 1)``.
        u_t: Token (d,).
        h: State of the step before, as `scan` returns it; None for the zero state.
        precision: As of `scan`.

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
    if system_t.length not in (None, 1):
        raise ValueError(
            f"step: expected the system of one step, got one of length {system_t.length}. Use "
            "slice_time(system, t, t + 1), or scan for several steps."
        )
    if u_t.ndim != 1:
        raise ValueError(
            f"step: expected one token (d,), got {u_t.shape}. For a batch use jax.vmap."
        )
    policy = DEFAULT if precision is None else precision
    system_t, u = policy.cast(system_t, check_tokens("step", system_t, u_t[None]))
    if isinstance(system_t, KernelSystem):
        return _step_kernel(system_t, u, _cache("step", system_t, u, h))
    return _step(system_t, u, initial_state("step", system_t, u, h), policy)


@jax.jit
def _step_kernel(system_t: KernelSystem, u: Array, cache: KVCache | None) -> tuple[Array, KVCache]:
    y, cache = attention.run(system_t, u, cache, method="sequential")
    return y[0], cache


@partial(jax.jit, static_argnums=3)
def _step(system_t: System, u: Array, h: Array, policy: Precision) -> tuple[Array, Array]:
    problem = prepare(system_t, u, emit_states=reads_states(system_t), policy=policy)
    h_last, out = advance(problem, h)
    return read_out(system_t, u, observe(system_t, problem, out[None], h[None]), policy)[0], h_last


def initial_state(
    owner: str,
    system: System,
    u: Array,
    h0: Array | KVCache | None,
    *,
    per_segment: bool = False,
) -> Array:
    """``h0`` checked and cast to the dtype of the state, or zeros."""
    dtype = state_dtype(system.dtype, u.dtype)
    if h0 is None:
        return jnp.zeros(system.carried_shape, dtype)
    shape = None if isinstance(h0, KVCache) else jnp.shape(h0)[int(per_segment) :]
    if isinstance(h0, KVCache) or shape != system.carried_shape:
        got = "a KVCache" if isinstance(h0, KVCache) else jnp.shape(h0)
        raise ValueError(f"{owner}: expected a state of shape {system.carried_shape}, got {got}.")
    if jnp.iscomplexobj(h0) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"{owner}: the system is real, but its initial state is {h0.dtype}.")
    return jnp.asarray(h0).astype(dtype)


def _segments(reset: Array | None, length: int, number: int) -> Array:
    """The number of the segment of every step, (L,)."""
    if reset is None:
        return jnp.zeros(length, jnp.int32)
    if not isinstance(reset, Tracer):
        found = 1 + int(np.sum(np.asarray(reset)[1:]))
        if found > number:
            raise ValueError(
                f"scan: expected h0 to have a state for each of the {found} segments of reset, got "
                f"{number}."
            )
    return jnp.cumsum(starts(length, reset), dtype=jnp.int32) - 1


def _steps(wanted: Any, length: int) -> Array:
    """The steps after which states are wanted, (K,), checked where they are known."""
    steps = whole_numbers("scan", "return_states", wanted).astype(jnp.int32)
    known = np.zeros(0) if isinstance(wanted, Tracer) else np.asarray(wanted)
    if steps.ndim != 1 or ((known < 0) | (known >= length)).any():
        what = f"shape {steps.shape}" if steps.ndim != 1 else f"{known.tolist()}"
        raise ValueError(
            f"scan: expected return_states to be True or False, or steps (K,) from 0 to "
            f"{length - 1}, got {what}."
        )
    return steps


def _cache(
    owner: str, system: KernelSystem, u: Array, h0: Array | KVCache | None
) -> KVCache | None:
    """``h0`` checked as the past of a kernel system, with room for the steps of ``u``."""
    if h0 is None:
        return None
    if not isinstance(h0, KVCache):
        got = f"{type(h0).__name__} of shape {jnp.shape(h0)}"
        raise ValueError(f"{owner}: expected a KVCache, the state of a KernelSystem, got {got}.")
    expected = (
        (system.key_heads, system.k.shape[2]),
        system.value_shape,
    )
    got = (h0.k.shape[1:], h0.v.shape[1:])
    if got != expected:
        raise ValueError(
            f"{owner}: expected a KVCache with keys and values of shapes (S, G, m), (S, V, p) with "
            f"(G, m), (V, p) = {expected}, got {got}."
        )
    if (h0.log_weight is None) != (system.weight_log_decay is None):
        expected, got = (
            ("without", "with") if system.weight_log_decay is None else ("with", "without")
        )
        raise ValueError(
            f"{owner}: expected a KVCache {expected} log_weight, as the KernelSystem is {expected} "
            f"decays, got one {got}. system.cache(capacity) makes one that fits."
        )
    attention.check_capacity(system, u.shape[0], h0)
    return h0
