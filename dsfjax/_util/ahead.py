"""Compile programs in other threads, run them in one.

XLA's CPU client has as many threads as the machine has cores. Two Python threads that execute
programs at the same time can take them all and then wait for each other for ever. So one rule holds
in the whole package: trace and lower on the thread that executes; only ``.compile()`` may run in
others; execute from one thread. Compilation leaves Python to the other threads, so it is also the
only part that gains from them. (One program alone can wait for itself, too: see
`dsfjax._util.factor`.)

Example:
    Both programs compile at the same time; each runs here, when its turn comes:

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.arange(3.0)
    >>> lowered = [jax.jit(f).lower(x) for f in (jnp.sum, jnp.max)]
    >>> [run(x).item() for run in compiled(lowered)]
    [3.0, 2.0]
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from dsfjax._util.limits import cores
from dsfjax._util.versions import at_least

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

# More compilations at once than this gain little and take memory.
MOST_THREADS = 4


@runtime_checkable
class Lowered(Protocol[T_co]):
    """What can be compiled: ``jax.jit(f).lower(…)``, or any object with such a method."""

    def compile(self) -> T_co:
        """The compiled program. It must neither trace nor execute anything."""
        ...


def ahead(lowered: Lowered[T]) -> Future[T]:
    """Begin to compile, and return at once.

    Args:
        lowered: A program that has been lowered on this thread.

    Returns:
        Its compilation: ``.result()`` waits for the program, or raises what the compiler raised.
    """
    return _threads().submit(lowered.compile)


def compiled(programs: Iterable[Lowered[T]], *, lead: int = MOST_THREADS) -> Iterator[T]:
    """Compiled programs in order, the next ones being compiled while one is in use.

    Args:
        programs: Lowered programs. From an iterator the next one is taken only shortly before it is
            needed, on the thread of the caller, so that lowering overlaps with compilation, too.
        lead: How many programs to begin before the first one is handed out.

    Yields:
        The compiled programs.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for lowered in programs:
            waiting.append(ahead(lowered))
            if len(waiting) > lead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MOST_THREADS, cores()), "compile")


@functools.cache
def quick_options(level: int = 0) -> dict[str, Any]:
    """Compiler options for a program that takes longer to compile than it runs.

    They leave out what makes code faster rather than right.

    Args:
        level: Optimisation level of LLVM. At 0 a program runs several times longer, which suits one
            that runs once; at 1 hardly longer, at half of the compiler's time.

    Returns:
        Values for ``compile(compiler_options=…)``; none except on a CPU.
    """
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {"xla_backend_optimization_level": level}
    if level == 0:
        options["xla_llvm_disable_expensive_passes"] = True
    if not at_least("jaxlib", 0, 11):
        # Later releases have other names for these, and an unknown one is an error.
        options |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    return options
