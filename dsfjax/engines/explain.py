"""`explain`: which engine runs a system, why, and what it costs."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import OuterInput
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense, Diagonal, DiagonalPlusLowRank, Factored, Scalar
from dsfjax.engines import attention
from dsfjax.engines.plan import plan
from dsfjax.engines.recurrence import prepare, reads_states
from dsfjax.engines.scan import Method, choose, resolve_method


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `scan` will do with a system; print it.

    Attributes:
        structure: Type of the transition and how the decay varies.
        method: The engine.
        reason: Why this one.
        length: L.
        state_size: N, numbers carried from step to step (for a kernel: the cache after L steps).
        chunk: Steps per chunk; None if the method has no chunks here.
        flops: Floating-point operations of the forward pass of one sequence, multiply and add
            counted as two; a model of the leading terms, not a measurement.
        bytes: Bytes of the system, tokens and outputs, read or written once.
        peak_memory: Bytes of the largest temporaries of the forward pass, by the same model.
        precision: Of matrix products and of the state.
    """

    structure: str
    method: str
    reason: str
    length: int
    state_size: int
    chunk: int | None
    flops: int
    bytes: int
    peak_memory: int
    precision: str

    def __str__(self) -> str:
        chunk = f" in chunks of {self.chunk}" if self.chunk else ""
        io, peak = self.bytes / 2**20, self.peak_memory / 2**20
        return "\n".join(
            (
                f"structure    {self.structure}",
                f"state size   N = {self.state_size:,}",
                f"method       {self.method}{chunk}: {self.reason}",
                f"cost         {self.flops / 1e6:,.2f} Mflop, {io:,.3f} MiB in and out, "
                f"{peak:,.3f} MiB temporaries (L = {self.length:,}, model, forward)",
                f"precision    {self.precision}",
            )
        )


def explain(
    system: System | KernelSystem, *, method: Method | str = "auto", length: int | None = None
) -> Explanation:
    """Say which engine `scan` uses for a system, why, and at what cost. Runs nothing.

    Args:
        system: A finite or kernel system; abstract arrays (`jax.eval_shape`) will do.
        method: As in `scan`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        An `Explanation`.

    Raises:
        ValueError: As `scan` does for a method that does not run the structure.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.zeros((128, 1)))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 8))
        >>> explain(s).method
        'chunked'
    """
    steps = length or system.length
    name = resolve_method(system, steps, method)
    reason = choose(system, steps)[1] if method == "auto" else "asked for"
    if isinstance(system, KernelSystem):
        return _explain_kernel(system, name, reason)
    width = jnp.dtype(system.dtype).itemsize
    low = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(system))
    heads, n, p = system.state_shape
    N, chunk = system.num_states, None
    io = _bytes(system) + steps * (system.token_width + system.output_width) * width
    step_flops = 5 * N if isinstance(system.A, Scalar | Diagonal) else 4 * N
    if isinstance(system.A, Dense):
        step_flops += 2 * N * n
    elif isinstance(system.A, DiagonalPlusLowRank):
        step_flops += 2 * N + 4 * N * system.A.w.shape[-1]
    flops, memory = steps * step_flops, N * width
    if name == "associative":
        a = n * n * heads if isinstance(system.A, Dense) else N
        combine = (2 * n**3 * heads + 2 * N * n) if isinstance(system.A, Dense) else 3 * N
        flops, memory = steps * (2 * combine + 4 * N), 2 * steps * (a + N) * width
    elif name == "chunked":
        body, size = _plan(system, steps)
        size = min(size, steps)
        memory = math.ceil(steps / size) * N * width
        if body == "elementwise_states":
            memory = 2 * steps * N * width
        else:
            chunk = size
        if body in ("scalar_chunk", "per_state_chunk"):
            weight = 2 * n if body == "scalar_chunk" else 4 * n
            flops = steps * (size * heads * (weight + 2 * p) + 6 * N)
            memory += size * size * heads * (2 if body == "scalar_chunk" else n) * width
    elif name == "materialized":
        varies = isinstance(system.A, Diagonal) and not system.A.per_state
        flops = steps * steps * heads * (2 * n * (p if varies else 1) + 2 * p)
        memory = steps * steps * heads * (p if varies else 1) * width
    if isinstance(system.B, OuterInput) and system.B.W is not None:
        flops += 2 * steps * heads * p * system.token_width
    products = "default (bfloat16 inputs), sums in float32" if low else "highest"
    return Explanation(
        _structure(system),
        name,
        reason,
        steps,
        N,
        chunk,
        flops,
        io,
        memory,
        f"matrix products {products}; state {system.dtype}",
    )


def _plan(system: System, steps: int) -> tuple[str, int]:
    tokens = jax.ShapeDtypeStruct((steps, system.token_width), jnp.finfo(system.dtype).dtype)
    states = reads_states(system)
    problem = jax.eval_shape(lambda s, u: prepare(s, u, emit_states=states), system, tokens)
    form = plan(problem, system.carried_shape)
    return form.name, form.chunk


def _explain_kernel(system: KernelSystem, name: str, reason: str) -> Explanation:
    steps, heads, m = system.q.shape
    p, width = system.num_channels, max(4, jnp.dtype(system.q.dtype).itemsize)
    chunk = attention.BLOCK if name == "chunked" else None
    flops = steps * steps * heads * (2 * m + 2 * p) + (
        0 if system.W is None else 2 * steps * heads * p * system.token_width
    )
    memory = heads * width * (chunk * chunk if chunk else steps * steps)
    size = steps * (system.k.shape[1] * m + heads * p)
    io = _bytes(system) + steps * (system.token_width + heads * p) * width
    return Explanation(
        "exponential kernel; no finite state, the cache grows with t",
        name,
        reason,
        steps,
        size,
        chunk,
        flops,
        io,
        memory,
        f"matrix products highest; sums {state_dtype(system.q.dtype)}",
    )


def _structure(system: System) -> str:
    A = system.A
    kind = "complex " if system.is_complex else ""
    constant = (
        ", constant in time"
        if all(x.shape[0] == 1 for x in jax.tree.leaves(A)) and system.length > 1
        else ""
    )
    if isinstance(A, Scalar):
        return f"{kind}scalar decay per head{constant}"
    if isinstance(A, Diagonal):
        n_varies, p_varies = (size > 1 for size in A.log_a.shape[-2:])
        over = {(1, 1): "full", (1, 0): "per state", (0, 1): "per channel", (0, 0): "per head"}
        factored = ", factored as step × rate" if isinstance(A.log_a, Factored) else ""
        return f"{kind}diagonal, {over[int(n_varies), int(p_varies)]}{factored}{constant}"
    if isinstance(A, Dense):
        return f"{kind}dense{constant}"
    return f"{kind}diagonal plus rank {A.w.shape[-1]}{constant}"


def _bytes(system: System | KernelSystem) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(system))
