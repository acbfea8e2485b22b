"""`explain`: which engine runs a system, why, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp

from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import InputMap, OuterInput
from dsfjax.core.pytree import time_leaves
from dsfjax.core.steps import steps
from dsfjax.core.system import System
from dsfjax.engines import attention
from dsfjax.engines.checkpointed import Checkpointed
from dsfjax.engines.chunked import Chunked
from dsfjax.engines.dispatch import Method, resolve
from dsfjax.engines.engine import Engine


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
    system: System | KernelSystem,
    *,
    method: Engine | Method | str = "auto",
    length: int | None = None,
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
    engine, reason = resolve(system, count, method)
    return _explain(system, engine, reason, count)


@singledispatch
def _explain(system: Any, engine: Engine, reason: str, steps: int) -> Explanation:
    raise TypeError(f"explain: expected a System or KernelSystem, got {type(system).__name__}.")


@_explain.register
def _(system: System, engine: Engine, reason: str, steps: int) -> Explanation:
    form, chunk = engine.name, None
    if isinstance(engine, Chunked) and engine.algorithm is not None:
        form, chunk = engine.algorithm.name, engine.chunk
    elif isinstance(engine, Checkpointed):
        form, chunk = "step by step", engine.chunk
    cost = engine.cost(system, steps)
    width = jnp.dtype(system.dtype).itemsize
    io = _bytes(system) + steps * (system.token_width + system.output_width) * width
    low = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(system))
    products = "default (bfloat16 inputs), sums in float32" if low else "highest"
    return Explanation(
        structure=_structure(system),
        method=engine.name,
        form=form,
        reason=reason,
        length=steps,
        state_size=system.num_states,
        chunk=chunk,
        flops=cost.flops + _cost_of_values(system.B, system, steps),
        bytes=io,
        peak_memory=cost.numbers * width,
        precision=f"matrix products {products}; state {system.dtype}",
    )


@singledispatch
def _cost_of_values(B: InputMap, system: System, steps: int) -> int:
    """Operations of the map from tokens to values; none for maps that have no values."""
    return 0


@_cost_of_values.register
def _(B: OuterInput, system: System, steps: int) -> int:
    return 0 if B.W is None else 2 * steps * B.W.shape[0] * B.W.shape[1]


@_explain.register
def _(system: KernelSystem, engine: Engine, reason: str, steps: int) -> Explanation:
    name = engine.name
    _, heads, m = system.q.shape
    p, width = system.num_channels, max(4, jnp.dtype(system.q.dtype).itemsize)
    moving = system.key_transition is not None
    chunk = (attention.CHUNK if moving else attention.BLOCK) if name == "chunked" else None
    seen = steps if system.most_slots is None else min(steps, system.most_slots)
    # Chunks form the scores of whole blocks of keys, the other methods all of them.
    columns = min(steps, seen + chunk) if chunk else steps
    flops = steps * columns * heads * (2 * m + 2 * p) + (
        0 if system.W is None else 2 * steps * system.W.size
    )
    memory = heads * width * (chunk * chunk if chunk else steps * steps)
    io = _bytes(system) + steps * (system.token_width + heads * p) * width
    return Explanation(
        structure=_kernel_structure(system),
        method=name,
        form="blocks of queries and keys" if chunk else name,
        reason=reason,
        length=steps,
        state_size=system.state_size(steps),
        chunk=chunk,
        flops=flops,
        bytes=io,
        peak_memory=memory,
        precision=f"matrix products highest; sums {system.dtype}",
    )


def _kernel_structure(system: KernelSystem) -> str:
    parts = ["exponential kernel"]
    if system.key_transition is not None:
        parts.append(f"keys moved by a transition ({system.key_transition.describe()})")
    if system.weight_log_decay is not None:
        parts.append("weights with a decay per head")
    if system.soft_cap is not None:
        parts.append(f"soft cap {system.soft_cap}")
    if system.sink is not None:
        parts.append("a sink per head")
    if system.window is None:
        return f"{', '.join(parts)}; no finite state, the cache grows with t"
    first = f"the first {system.keep_first} steps of a document and " if system.keep_first else ""
    return f"{', '.join(parts)}; the cache holds {first}a window of {system.window} steps"


def _structure(system: System) -> str:
    A = system.A
    kind = "complex " if system.is_complex else ""
    fixed = system.length != 1 and all(x.shape[0] == 1 for x in time_leaves(A))
    constant = ", constant in time" if fixed and system.length is not None else ""
    return f"{kind}{A.describe()}{constant}"


def _bytes(system: System | KernelSystem) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(system))
