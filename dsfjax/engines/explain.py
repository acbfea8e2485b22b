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
from dsfjax.engines.plan import Plan, by_matrix_products, plan
from dsfjax.engines.recurrence import prepare, reads_states
from dsfjax.engines.scan import Method, choose, resolve_method


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `scan` will do with a system; print it.

    Attributes:
        structure: Type of the transition and how the decay varies.
        method: The engine.
        form: How it goes about it: what a chunk is made of, or the name of the method again.
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
    form: str
    reason: str
    length: int
    state_size: int
    chunk: int | None
    flops: int
    bytes: int
    peak_memory: int
    precision: str

    def __str__(self) -> str:
        chunk = f" in chunks of {self.chunk} ({self.form})" if self.chunk else ""
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
        >>> b, A = jnp.ones((128, 1, 4)), dsfjax.Scalar(jnp.zeros((128, 1)))
        >>> B, C = dsfjax.OuterInput(b), dsfjax.InnerOutput(b)
        >>> explain(dsfjax.System(A, B, C, state_shape=(1, 4, 8))).method
        'chunked'
    """
    steps = length or system.length
    name = resolve_method(system, steps, method)
    reason = choose(system, steps)[1] if method == "auto" else "asked for"
    if isinstance(system, KernelSystem):
        return _explain_kernel(system, name, reason)
    form = _plan(system, steps)
    if name != "chunked":
        form = form._replace(name=name, chunk=steps, segment=steps)
    flops, memory = _cost(system, steps, name, form)
    if isinstance(system.B, OuterInput) and system.B.W is not None:
        flops += 2 * steps * math.prod(system.state_shape[::2]) * system.token_width
    width = jnp.dtype(system.dtype).itemsize
    io = _bytes(system) + steps * (system.token_width + system.output_width) * width
    low = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(system))
    products = "default (bfloat16 inputs), sums in float32" if low else "highest"
    return Explanation(
        structure=_structure(system),
        method=name,
        form=form.name,
        reason=reason,
        length=steps,
        state_size=system.num_states,
        chunk=form.chunk if name == "chunked" else None,
        flops=flops,
        bytes=io,
        peak_memory=memory * width,
        precision=f"matrix products {products}; state {system.dtype}",
    )


def _plan(system: System, steps: int) -> Plan:
    tokens = jax.ShapeDtypeStruct((steps, system.token_width), jnp.finfo(system.dtype).dtype)
    states = reads_states(system)
    problem = jax.eval_shape(lambda s, u: prepare(s, u, emit_states=states), system, tokens)
    return plan(problem, system.carried_shape)


def _cost(system: System, steps: int, name: str, form: Plan) -> tuple[int, int]:
    """Operations, and numbers in temporaries, of the forward pass."""
    A, (heads, n, p) = system.A, system.carried_shape
    states, chunk, segment = heads * n * p, min(form.chunk, steps), min(form.segment, steps)
    boundaries = math.ceil(steps / chunk) * states
    rank = A.w.shape[-1] if isinstance(A, DiagonalPlusLowRank) else 0
    if name == "associative":
        dense = isinstance(A, Dense)
        combine = 2 * heads * n**2 * (n + p) if dense else 3 * states
        map_size = heads * n * n if dense else states
        return steps * (2 * combine + 4 * states), 2 * steps * (map_size + states)
    if form.name == "matrix products" or (name == "materialized" and by_matrix_products(A)):
        rows = chunk * rank
        within = chunk**2 * (2 * n * (1 + rank) ** 2 + 2 * p)
        low_rank = rank and (
            2 * rows * chunk * p
            + rows**3 // 2
            + 2 * (rows**2 + chunk * rows + n * rows) * (n + p)
            + 2 * n * n * p
        )
        per_chunk = within + low_rank + 4 * chunk * n * p + 2 * n * p
        numbers = 2 * (chunk + rows) ** 2 + (3 * chunk + 2 * rows) * (n + p)
        count = math.ceil(steps / chunk)
        return count * heads * per_chunk, boundaries + segment // chunk * heads * numbers
    if name == "materialized":
        channels = p if isinstance(A, Diagonal) and not A.per_state else 1
        return (
            steps**2 * heads * (2 * n * channels + 2 * p),
            steps**2 * heads * channels + 2 * steps * heads * n * channels,
        )
    per_step = (5 if isinstance(A, Scalar | Diagonal) else 4) * states
    if isinstance(A, Dense):
        per_step += 2 * states * n
    elif rank:
        per_step += 2 * states + 4 * states * rank
    passes = 2 if form.name == "elementwise" and segment > chunk else 1  # chunks side by side
    held = boundaries + segment * heads * p if name == "chunked" else states
    return steps * per_step * passes, held


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
        structure="exponential kernel; no finite state, the cache grows with t",
        method=name,
        form="blocks of queries and keys" if chunk else name,
        reason=reason,
        length=steps,
        state_size=size,
        chunk=chunk,
        flops=flops,
        bytes=io,
        peak_memory=memory,
        precision=f"matrix products highest; sums {state_dtype(system.q.dtype)}",
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
