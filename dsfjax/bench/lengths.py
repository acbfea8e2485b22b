r"""How cost and error grow with the length: training, decoding, long sequences.

One sequence, one head, a small state, every structure: what counts is how the figures change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.ahead import compiled
from dsfjax._util.errors import host, normwise
from dsfjax.bench.case import Case
from dsfjax.bench.contest import Contest, contest
from dsfjax.bench.contestant import Traced, prepare
from dsfjax.bench.measure import cotangent_of
from dsfjax.bench.signals import FAMILIES, Signals, Sizes, in_precision
from dsfjax.bench.timing import take_turns
from dsfjax.core import KernelSystem, Precision, slice_time
from dsfjax.engines import scan, step

Said = Callable[[str], Any]

SHORT, LONG = 4096, 65_536
POSITIONS = (64, 4096, 65_536)
# time(65,536)/time(4,096) of a method whose cost is linear in L, 16 for a perfect one.
MOST_GROWTH = 20.0
ERROR_LENGTH, MOST_ERROR = 100_000, 1e-4
MILLION, MOST_BYTES = 2**20, 6 * 2**30
LINEAR = ("sequential", "associative", "chunked")


class Growth(NamedTuple):
    """Time of one method at two lengths, forward and backward.

    Attributes:
        family: Architecture.
        method: Engine.
        short_ms: At the shorter length.
        long_ms: At the longer one.
        growth: The second over the first.
        linear: Whether the growth is that of a linear method.
    """

    family: str
    method: str
    short_ms: float
    long_ms: float
    growth: float
    linear: bool


class Latency(NamedTuple):
    """Time of one decoding step at several positions, in microseconds.

    Attributes:
        family: Architecture.
        positions: Tokens that came before.
        microseconds: Medians.
    """

    family: str
    positions: tuple[int, ...]
    microseconds: tuple[float, ...]


class LongError(NamedTuple):
    """Error against the sequential engine in float64, over a long sequence.

    Attributes:
        family: Architecture.
        method: What "auto" picks.
        length: L.
        value_error: Normwise, of the outputs.
        reached: Whether it is within the bound; None outside float32.
    """

    family: str
    method: str
    length: int
    value_error: float
    reached: bool | None


class LongMemory(NamedTuple):
    """Memory of a training step over a very long sequence.

    Attributes:
        family: Architecture.
        method: What "auto" picks.
        length: L.
        total_bytes: Of forward and backward; None where the compiler does not say.
        reached: Whether it is within the bound.
    """

    family: str
    method: str
    length: int
    total_bytes: int | None
    reached: bool | None


def sizes(family: str, length: int) -> Sizes:
    """One sequence with 16 states of 16 channels (of one for one-channel families)."""
    n, p = {"rg_lru": (1, 64), "s4d": (16, 1), "lru": (64, 16)}.get(family, (16, 16))
    return Sizes(1, length, 1, n, p)


# One architecture per structure; the kernel, which has no finite state, only decodes.
LINEAR_FAMILIES = ("ssd", "gla", "s6", "rg_lru", "s4d", "lru", "kda", "dense")
DECODED_FAMILIES = (*LINEAR_FAMILIES, "softmax")


def growth(
    family: str,
    precision: str = "float32",
    *,
    short: int = SHORT,
    long: int = LONG,
    repeats: int = 2,
    said: Said = print,
) -> list[Growth]:
    """Time every method of linear cost at two lengths.

    Args:
        family: Architecture with a finite state.
        precision: In which it computes.
        short: The shorter length.
        long: The longer one.
        repeats: Rounds.
        said: Told what happens.

    Returns:
        A line per method.
    """
    names: list[tuple[str, int]] = []

    def programs() -> Iterator[Traced]:
        for length in (short, long):
            found = _contest(family, precision, length)
            cotangent = cotangent_of(found)
            for one in found.contestants:
                if one.name in LINEAR:
                    names.append((one.name, length))
                    shared = found.shared
                    yield Traced(one, found.signals, cotangent, shared=shared, with_forward=False)

    said("compiling")
    gradients = [program.gradient for program in compiled(programs())]
    runs = dict(zip(names, gradients, strict=True))
    for (method, length), run in runs.items():
        said(f"{method}, L = {length:,}")
        run()
    times = take_turns(runs, repeats=repeats)
    rows = []
    for method in dict.fromkeys(name for name, _ in runs):
        a, b = times[method, short], times[method, long]
        rows.append(Growth(family, method, a, b, b / a, b / a <= MOST_GROWTH * long / short / 16))
    return rows


def latency(
    family: str,
    precision: str = "float32",
    *,
    positions: Sequence[int] = POSITIONS,
    repeats: int = 200,
) -> Latency:
    """Time one decoding step after prefixes of several lengths; the state is donated.

    Args:
        family: Any architecture; the cache of a kernel is allocated in full.
        precision: In which it computes.
        positions: Tokens that came before.
        repeats: Steps per position.

    Returns:
        Medians.
    """
    source, policy = FAMILIES[family], Precision.named(precision)
    advance = jax.jit(step, donate_argnums=2, static_argnames="precision")
    times = []
    for position in positions:
        drawn = source.draw(np.random.default_rng(0), sizes(family, position))
        signals = in_precision(drawn, precision, source.decays)
        system, u = source.build(_first(signals, source.shared))
        # A cache has room for the prefix and the steps. The prefix is run once: by the method that
        # compiles soonest, but for kernels, whose cost it is.
        is_kernel = isinstance(system, KernelSystem)
        cache = system.cache(system.length + repeats + 1) if is_kernel else None
        method = "auto" if is_kernel else "sequential"
        prefix = jax.jit(partial(scan, method=method, precision=policy))
        state = [prefix(system, u, cache)[1]]
        last = slice_time(system, position - 1, position)

        def run(last: Any = last, u: Any = u[-1], state: Any = state) -> None:
            y, h = advance(last, u, state[0], precision=policy)
            state[0] = jax.block_until_ready(h)
            jax.block_until_ready(y)

        run()
        times.append(1e3 * take_turns({"step": run}, repeats=repeats)["step"])
    return Latency(family, tuple(positions), tuple(times))


def memory(precision: str = "float32", *, length: int = MILLION) -> LongMemory:
    """Memory of forward and backward of SSD with n = 16 and p = 64, one head. Runs nothing.

    Args:
        precision: In which it computes.
        length: L.

    Returns:
        Temporaries, inputs, outputs and gradients of what "auto" picks, as XLA plans them.
    """
    case = Case("ssd", "ssd", "ssd", Sizes(1, length, 1, 16, 64))
    found = contest(case, precision, baselines=False)
    ours = next(c for c in found.contestants if c.name == found.chosen)
    planned = prepare(
        ours, found.signals, cotangent_of(found), shared=found.shared, with_forward=False
    ).total_bytes
    reached = None if planned is None else planned <= MOST_BYTES
    return LongMemory("ssd", ours.name, length, planned, reached)


def long_error(family: str, precision: str = "float32", *, length: int = ERROR_LENGTH) -> LongError:
    """Error of the outputs over a long sequence.

    Args:
        family: Architecture with a finite state.
        precision: In which it computes.
        length: L.

    Returns:
        The error of what "auto" picks.
    """
    found = _contest(family, precision, length)
    source, one = FAMILIES[family], _first(found.signals, found.shared)

    def run(method: str, signals: Any, policy: Precision | None) -> np.ndarray:
        def outputs(s: Any) -> Array:
            return scan(*source.build(s), method=method, precision=policy)[0]

        return np.asarray(jax.jit(outputs)(signals))

    y = run("auto", one, Precision.named(precision))
    with jax.enable_x64(True), jax.default_device(host()):
        double = {k: x.astype(jnp.float64) for k, x in one.items()}
        expected = run("sequential", double, None)
    error = normwise(y, expected)
    reached = error <= MOST_ERROR if precision == "float32" else None
    return LongError(family, found.chosen, length, error, reached)


def _contest(family: str, precision: str, length: int) -> Contest:
    """Our engines on an architecture of this length."""
    case = Case(family, family, family, sizes(family, length))
    return contest(case, precision, baselines=False)


def _first(signals: Signals, shared: tuple[str, ...]) -> dict[str, Array]:
    """The signals of the first sequence."""
    return {k: jnp.asarray(x if k in shared else x[0]) for k, x in signals.items()}
