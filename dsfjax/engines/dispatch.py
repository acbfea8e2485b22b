"""Which engine runs a system: the only place that looks at structure, sizes and platform.

Nothing is timed at the user's expense. The sizes follow from what was measured with `dsfjax bench`:

* A chunk of c steps by matrix products costs per step about c (n + p) operations within the chunk,
  2 n p operations for the state whatever c is, and n p / c numbers to read and write. The first and
  the last balance near c = √(n p). A CPU multiplies small matrices as fast as large ones, so there
  half of that is faster.
* A low-rank part adds products and an inverse of c r rows: shorter chunks.
* On a CPU a segment should stay in the caches; an accelerator wants many chunks at once.
* Step by step, a step should have some thousand numbers to work on: as many chunks side by side.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, Literal

import jax

from dsfjax._util import names
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.pytree import time_leaves
from dsfjax.core.system import System
from dsfjax.engines import attention
from dsfjax.engines.associative import Associative
from dsfjax.engines.checkpointed import Checkpointed
from dsfjax.engines.chunked import Chunked
from dsfjax.engines.chunks.elementwise import ELEMENTWISE
from dsfjax.engines.chunks.products import MATRIX_PRODUCTS
from dsfjax.engines.chunks.wy import WY, chunk_length
from dsfjax.engines.engine import Engine
from dsfjax.engines.materialized import Materialized
from dsfjax.engines.recurrence import reads_states
from dsfjax.engines.sequential import Sequential

States = bool | Literal["some"]
Method = Literal["auto", "sequential", "associative", "chunked", "checkpointed", "materialized"]

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (Sequential(), Associative(), Chunked(), Checkpointed(), Materialized())
}
"""The engines that have a name in `scan`, the slowest first."""

# If the states of all steps have at least this many numbers, they no longer fit in the caches of a
# CPU, and to keep one state per chunk is faster: `dsfjax bench --cases rg_lru` times both.
_MANY = 1 << 20

OF_KERNELS = {
    "associative": "KernelSystem (a kernel has no finite state)",
    "checkpointed": "KernelSystem (a kernel has no finite state to keep)",
}
"""Why an engine of the table does not run a kernel system; the others name a way of attention."""


def select(
    system: System | KernelSystem, length: int, *, states: States = False
) -> tuple[Engine, str]:
    """The engine that ``scan(…, method="auto")`` takes, and why. The only such decision.

    Args:
        system: A finite or kernel system; abstract arrays (`jax.eval_shape`) will do.
        length: L, the number of steps.
        states: Whether all states are wanted, or "some" of them.

    Returns:
        ``(engine, reason)``. The engine can be given to `scan`, changed with `dataclasses.replace`.

    Example:
        >>> import jax.numpy as jnp, dsfjax
        >>> b, A = jnp.ones((128, 1, 4)), dsfjax.Scalar(jnp.zeros((128, 1)))
        >>> B, C = dsfjax.OuterInput(b), dsfjax.InnerOutput(b)
        >>> engine, reason = select(dsfjax.System(A, B, C, state_shape=(1, 4, 8)), 128)
        >>> engine.name, engine.chunk, reason
        ('chunked', 32, 'a scalar decay turns chunks into matrix products')
    """
    if not isinstance(length, int):  # symbolic, under jax.export
        return ENGINES["sequential"], "it runs any length, also an unknown one"
    name, reason = _choose(system, length, states)
    return _sized(ENGINES[name], system, states), reason


def resolve(
    system: System | KernelSystem, length: int, method: Engine | str, *, states: States = False
) -> tuple[Engine, str]:
    """The engine that will run for what was given as ``method``, and why.

    Raises:
        ValueError: For an unknown name, or an engine that does not run the system.
        TypeError: For an engine that cannot be hashed, or anything else.
    """
    if isinstance(method, str):
        if method == "auto":
            return select(system, length, states=states)
        names.choose("method of scan", method, ("auto", *ENGINES))
        if not isinstance(length, int) and method != "sequential":
            raise ValueError(
                f"scan: expected a known number of steps for method {method!r}, got the symbolic "
                f'length {length}. Use method="sequential", which runs any length.'
            )
        engine = ENGINES[method]
    elif isinstance(method, Engine):
        engine = method
        try:
            hash(engine)
        except TypeError as error:
            raise TypeError(
                f"scan: expected an engine that can be hashed, got {type(engine).__name__}. Make "
                "it a frozen dataclass with fields that can be hashed."
            ) from error
    else:
        raise TypeError(
            f"scan: expected method to be a name or an Engine, got {type(method).__name__}. Known "
            f"names: {', '.join(('auto', *ENGINES))}."
        )
    if reason := against(engine, system, states=states):
        raise ValueError(
            f"scan: method {engine.name!r} does not run {reason}; "
            f"use one of {list(methods(system, states=states))}."
        )
    return _sized(engine, system, states), "given"


def methods(system: System | KernelSystem, *, states: States = False) -> tuple[str, ...]:
    """The names of the engines that run a system, the slowest first.

    Args:
        system: The system.
        states: Whether all states are wanted as well, or "some" of them.

    Example:
        >>> import jax.numpy as jnp, dsfjax
        >>> A = dsfjax.Dense(jnp.eye(2)[None])
        >>> e = jnp.ones((1, 1, 2))
        >>> B, C = dsfjax.OuterInput(e), dsfjax.InnerOutput(e)
        >>> methods(dsfjax.System(A, B, C, state_shape=(1, 2, 1)))
        ('sequential', 'associative', 'checkpointed', 'materialized')
    """
    return tuple(
        name for name, engine in ENGINES.items() if against(engine, system, states=states) is None
    )


def against(engine: Engine, system: System | KernelSystem, *, states: States = False) -> str | None:
    """Why an engine does not run a system, or None if it does."""
    if isinstance(system, KernelSystem):
        if ENGINES.get(engine.name) != engine:
            return "KernelSystem (a kernel has no recurrence)"
        return OF_KERNELS.get(engine.name)
    if states == "some":
        states = not engine.keeps_states
    return engine.against(system, states=states or reads_states(system))


@singledispatch
def _choose(system: Any, length: int, states: States) -> tuple[str, str]:
    """The name of the engine for this structure and length, and why."""
    raise TypeError(f"scan: expected a System or a KernelSystem, got {type(system).__name__}.")


@_choose.register
def _(system: KernelSystem, length: int, states: States) -> tuple[str, str]:
    if length <= 2 * attention.BLOCK:
        return "materialized", "the L × L scores of a short sequence are small"
    return "chunked", "blocks of keys keep memory linear in L"


@_choose.register
def _(system: System, length: int, states: States) -> tuple[str, str]:
    A, n = system.A, system.state_shape[1]
    if ENGINES["chunked"].against(system, states=False):
        return "checkpointed", "a dense transition runs step by step, one state kept per chunk"
    if against(ENGINES["chunked"], system, states=states):
        return "checkpointed", "every state is wanted: step by step, one kept per chunk"
    if reads_states(system):
        return "chunked", "a dense map reads every state: step by step, one kept per chunk"
    if A.low_rank:
        return "chunked", "the WY form of a low-rank update turns chunks into matrix products"
    if n == 1 and jax.default_backend() == "cpu":
        if length * system.num_states >= _MANY:
            return "checkpointed", "one state per channel: step by step, one state kept per chunk"
        return "sequential", "one state per channel: a step is little work, and a CPU has few cores"
    if n == 1:
        return "chunked", "one state per channel: step by step, chunks side by side"
    if A.per_channel:
        return "chunked", "a decay per channel runs step by step, one state kept per chunk"
    decay = "a scalar decay" if A.decay_axes() == (1, 1) else "a decay per state"
    return "chunked", f"{decay} turns chunks into matrix products"


def _sized(engine: Engine, system: System | KernelSystem, states: States) -> Engine:
    """The engine with algorithm and sizes of chunks, where they are left open."""
    if not isinstance(engine, Chunked) or isinstance(system, KernelSystem):
        return engine
    planned = _plan(system, states is True or reads_states(system))
    return Chunked(
        engine.algorithm or planned.algorithm,
        engine.chunk or planned.chunk,
        engine.segment or planned.segment,
    )


def _plan(system: System, states: bool) -> Chunked:
    """Algorithm and sizes of chunks for a structure that has them."""
    A, (heads, n, p) = system.A, system.carried_shape
    on_cpu = jax.default_backend() == "cpu"
    if A.is_diagonal and (states or n == 1 or A.per_channel):
        side_by_side = max(1, min(32, 2**11 // (heads * n * p)))
        chunk = 16 if side_by_side > 1 else 32
        return Chunked(ELEMENTWISE, chunk, chunk * side_by_side)
    if A.low_rank:
        algorithm, chunk = WY, chunk_length(A)
    elif A.decay_axes() == (1, 1):
        steps = math.sqrt(n * p) / (2 if on_cpu else 1)
        chunk = min(128, max(32, 2 ** int(math.log2(steps))))
        algorithm = MATRIX_PRODUCTS
    else:
        algorithm, chunk = MATRIX_PRODUCTS, 32
    # Chunks of a constant system share their matrices, so many of them take little memory.
    chunks = 8 if on_cpu and not _is_constant(system) else 64
    return Chunked(algorithm, chunk, chunks * chunk)


def _is_constant(system: System) -> bool:
    parts = (system.A, system.B, system.C)
    return system.reset is None and all(x.shape[0] == 1 for y in parts for x in time_leaves(y))
