"""Time the engines on this machine: structures × methods, forward and with gradients."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import Diagonal, InnerOutput, OuterInput, Scalar, System
from dsfjax.engines.scan import METHODS, choose, scan


class Case(NamedTuple):
    """One structure at one size.

    Attributes:
        name: Of the structure, with an architecture that has it.
        batch: Sequences, by `jax.vmap`.
        length: L.
        state_shape: (H, n, p).
    """

    name: str
    batch: int
    length: int
    state_shape: tuple[int, int, int]


class Timing(NamedTuple):
    """Medians of one method on one case.

    Attributes:
        case: The case.
        method: The engine.
        chosen: Whether "auto" picks it.
        forward_ms: Outputs.
        gradient_ms: Outputs and all gradients.
        temporary_mib: Temporary memory of the compiled gradient, as XLA reports it.
        compile_s: Compilation of both.
    """

    case: Case
    method: str
    chosen: bool
    forward_ms: float
    gradient_ms: float
    temporary_mib: float
    compile_s: float


CASES = (
    Case("scalar (SSD)", 4, 1024, (1, 64, 128)),
    Case("diagonal per state (GLA)", 4, 1024, (1, 64, 128)),
    Case("diagonal per channel (qLSTM)", 8, 1024, (1, 1, 256)),
    Case("diagonal full, factored (S6)", 2, 1024, (1, 16, 128)),
)


def random_system(case: Case, key: Array) -> tuple[System, Array]:
    """A system of the case's structure with random entries, and tokens; float32, one batch.

    Example:
        >>> system, u = random_system(CASES[0]._replace(length=8), jax.random.key(0))
        >>> system.state_shape, u.shape
        ((1, 64, 128), (4, 8, 128))
    """
    heads, n, p = case.state_shape
    lead, keys = (case.batch, case.length), jax.random.split(key, 5)
    small = jax.nn.softplus(jax.random.normal(keys[0], (*lead, heads, n, p)) - 2)

    def make(small: Array, b: Array, c: Array) -> System:
        if "factored" in case.name:
            rate = -jnp.broadcast_to(jnp.arange(1.0, n + 1)[None, :, None], (heads, n, p))
            A = Diagonal.factored(small[:, :, 0, :], rate)
        elif "per state" in case.name:
            A = Diagonal(-small[..., :1])
        elif "per channel" in case.name:
            A = Diagonal(-small[:, :, :1, :])
        else:
            A = Scalar(-small[:, :, 0, 0])
        return System(A, OuterInput(b), InnerOutput(c), state_shape=case.state_shape)

    b, c = (jax.random.normal(k, (*lead, heads, n)) for k in keys[1:3])
    u = jax.random.normal(keys[3], (*lead, heads * p))
    return jax.vmap(make)(small, b, c), u


def measure(cases: Sequence[Case] = CASES, *, repeats: int = 5) -> Iterator[Timing]:
    """Time every method on every case.

    The methods of a case take turns, so that a busy moment of the machine hits all of them; the
    quadratic method is timed for scalar decays only, where it is one matrix product.

    Args:
        cases: What to time.
        repeats: Runs per method; the median is reported.

    Yields:
        A `Timing` per method, case by case.
    """
    for case in cases:
        system, u = random_system(case, jax.random.key(0))
        one = jax.eval_shape(lambda s, u: jax.tree.map(lambda x: x[0], (s, u)), system, u)[0]
        methods = [m for m in METHODS[type(one.A)] if m != "materialized" or type(one.A) is Scalar]
        runs: dict[str, tuple[Any, Any, float, float]] = {}
        for method in methods:
            began = time.perf_counter()
            forward = jax.jit(_forward(method)).lower(system, u).compile()
            gradient = jax.jit(jax.grad(_loss(method), argnums=(0, 1))).lower(system, u).compile()
            seconds = time.perf_counter() - began
            memory = gradient.memory_analysis()
            temporary = getattr(memory, "temp_size_in_bytes", float("nan")) / 2**20
            runs[method] = (forward, gradient, temporary, seconds)
        times: dict[str, tuple[list[float], list[float]]] = {m: ([], []) for m in methods}
        for repeat in range(repeats + 1):
            for method, (forward, gradient, *_) in runs.items():
                for compiled, record in zip((forward, gradient), times[method], strict=True):
                    began = time.perf_counter()
                    jax.block_until_ready(compiled(system, u))
                    if repeat:  # the first run warms up
                        record.append(1e3 * (time.perf_counter() - began))
        for method in methods:
            forward_ms, gradient_ms = (statistics.median(t) for t in times[method])
            chosen = choose(one, case.length)[0] == method
            yield Timing(case, method, chosen, forward_ms, gradient_ms, *runs[method][2:])


def _forward(method: str) -> Any:
    return jax.vmap(lambda s, u: scan(s, u, method=method)[0])  # type: ignore[arg-type]


def _loss(method: str) -> Any:
    forward = _forward(method)
    return lambda s, u: jnp.mean(forward(s, u) ** 2)
