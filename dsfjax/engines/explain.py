"""`explain`: which engine runs a system, why, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import InputMap, OuterInput
from dsfjax.core.pytree import time_leaves
from dsfjax.core.steps import steps
from dsfjax.core.system import System
from dsfjax.engines import attention
from dsfjax.engines.plan import (
    CHECKPOINTED,
    Plan,
    by_matrix_products,
    has_chunks,
    low_rank,
    plan,
)
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
    count = steps(system, length, owner="explain")
    name = resolve_method(system, count, method)
    reason = choose(system, count)[1] if method == "auto" else "given"
    return _explain(system, name, reason, count)


@singledispatch
def _explain(system: Any, name: str, reason: str, steps: int) -> Explanation:
    raise TypeError(f"explain: expected a System or KernelSystem, got {type(system).__name__}.")


@_explain.register
def _(system: System, name: str, reason: str, steps: int) -> Explanation:
    form = CHECKPOINTED if name == "checkpointed" else _plan(system, steps)
    if name not in ("chunked", "checkpointed"):
        form = form._replace(name=name, chunk=steps, segment=steps)
    flops, memory = _cost(system, steps, name, form)
    flops += _cost_of_values(system.B, system, steps)
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
        chunk=form.chunk if name in ("chunked", "checkpointed") else None,
        flops=flops,
        bytes=io,
        peak_memory=memory * width,
        precision=f"matrix products {products}; state {system.dtype}",
    )


@singledispatch
def _cost_of_values(B: InputMap, system: System, steps: int) -> int:
    """Operations of the map from tokens to values; none for maps that have no values."""
    return 0


@_cost_of_values.register
def _(B: OuterInput, system: System, steps: int) -> int:
    return 0 if B.W is None else 2 * steps * B.W.shape[0] * B.W.shape[1]


def _plan(system: System, steps: int) -> Plan:
    tokens = jax.ShapeDtypeStruct((steps, system.token_width), system.real_dtype)
    states = reads_states(system)
    problem = jax.eval_shape(lambda s, u: prepare(s, u, emit_states=states), system, tokens)
    return plan(problem, system.carried_shape)


def _cost(system: System, steps: int, name: str, form: Plan) -> tuple[int, int]:
    """Operations, and numbers in temporaries, of the forward pass."""
    A, (heads, n, p) = system.A, system.carried_shape
    states, chunk, segment = heads * n * p, min(form.chunk, steps), min(form.segment, steps)
    boundaries = math.ceil(steps / chunk) * states
    rank = low_rank(A)
    if name == "associative":
        combine = 3 * states if A.is_diagonal else 2 * heads * n**2 * (n + p)
        map_size = states if A.is_diagonal else heads * n * n
        return steps * (2 * combine + 4 * states), 2 * steps * (map_size + states)
    if form.name == "matrix products" or (name == "materialized" and by_matrix_products(A)):
        rows = chunk * rank
        within = chunk**2 * (2 * n * (1 + rank) ** 2 + 2 * p)
        of_rank = rank and (
            2 * rows * chunk * p
            + rows**3 // 2
            + 2 * (rows**2 + chunk * rows + n * rows) * (n + p)
            + 2 * n * n * p
        )
        per_chunk = within + of_rank + 4 * chunk * n * p + 2 * n * p
        numbers = 2 * (chunk + rows) ** 2 + (3 * chunk + 2 * rows) * (n + p)
        count = math.ceil(steps / chunk)
        return count * heads * per_chunk, boundaries + segment // chunk * heads * numbers
    if name == "materialized":
        channels = p if A.per_channel else 1
        return (
            steps**2 * heads * (2 * n * channels + 2 * p),
            steps**2 * heads * channels + 2 * steps * heads * n * channels,
        )
    per_step = (5 if A.is_diagonal else 4) * states
    if not has_chunks(A):
        per_step += 2 * states * n
    elif rank:
        per_step += 2 * states + 4 * states * rank
    passes = 2 if form.name == "elementwise" and segment > chunk else 1  # chunks side by side
    held = boundaries + segment * heads * p if name in ("chunked", "checkpointed") else states
    return steps * per_step * passes, held


@_explain.register
def _(system: KernelSystem, name: str, reason: str, steps: int) -> Explanation:
    _, heads, m = system.q.shape
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
    fixed = system.length != 1 and all(x.shape[0] == 1 for x in time_leaves(A))
    constant = ", constant in time" if fixed and system.length is not None else ""
    return f"{kind}{A.describe()}{constant}"


def _bytes(system: System | KernelSystem) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(system))
