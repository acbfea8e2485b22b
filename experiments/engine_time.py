"""Where an engine or a form of a System pays, and what a function costs before it runs.

* Decays of either sign, and complex ones, next to positive ones of the same system.
* S4D, which is constant in time: what "auto" picks next to a convolution by FFT.
* A GRU solved by Newton's method on all steps at once next to its loop (arXiv 2309.12252).
* Every function of `dsfjax.ops`: seconds until it is compiled, tracing included.

    python -m experiments.engine_time --scale small

How it is measured: `experiments.comparison`. Times are of forward and backward, to every input, but
for the GRU, where they are of the states.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dsfjax import engines, ops, systems
from dsfjax.bench.case import Case
from dsfjax.bench.contest import contest
from dsfjax.bench.contestant import Contestant, batched, prepare
from dsfjax.bench.measure import cotangent_of
from dsfjax.bench.signals import Sizes
from dsfjax.engines import nonlinear
from dsfjax.selfcheck.called import arguments
from dsfjax.systems.gru import cell
from experiments import by_hand
from experiments.comparison import Comparison, Row, Seconds

SIGNED, COMPLEX = 1 / 1.15, 1 / 2.5
"""Positive decays may be so much faster than others."""
BEST = 1 / 1.2
"""So much of the speed of the convolution "auto" has at least."""
FORWARD_S, BOTH_S = 1.5, 4.0
"""Seconds in which every function compiles, without and with its gradients."""


class Lengths(NamedTuple):
    """What is measured at a scale.

    Attributes:
        decays: Sizes of the systems whose decays differ.
        constant: Lengths of S4D.
        states: Its channels, and twice its states.
        cell: Lengths of the GRU.
        width: Its width.
        functions: Names of functions; None for all.
    """

    decays: Sizes
    constant: tuple[int, ...]
    states: int
    cell: tuple[int, ...]
    width: int
    functions: tuple[str, ...] | None


LENGTHS = {
    "small": Lengths(
        Sizes(8, 1024, 1, 64, 128), (256, 1024, 4096, 16_384), 64, (256, 1024, 4096), 64, None
    ),
    "demo": Lengths(
        Sizes(2, 64, 1, 4, 8), (32, 64), 4, (16,), 4, ("chunk_gla", "chunk_delta_rule")
    ),
}
"""Scale to lengths. Demo shows in a minute that everything runs."""


def _gradient(family: str, sizes: Sizes, method: Any = "auto") -> Callable[[], Any]:
    """A compiled program of forward and backward."""
    case = Case(family, family, family, sizes)
    made = contest(case, baselines=False)

    def one(signals: Mapping[str, jax.Array]) -> jax.Array:
        return engines.scan(*case.build(signals), method=method)[0]

    function = batched(one, made.shared)
    contestant = Contestant(str(method), "ours", "jax", lambda: function)
    dy = cotangent_of(made)
    return prepare(contestant, made.signals, dy, shared=made.shared, with_forward=False).gradient


def decays(lengths: Lengths, seconds: Seconds) -> Iterator[Row]:
    """Systems that differ in nothing but their decays."""
    families = {"positive": "gla", "of either sign": "gla_signed", "complex": "gla_complex"}
    found = seconds({name: _gradient(family, lengths.decays) for name, family in families.items()})
    for name, wanted in (("of either sign", SIGNED), ("complex", COMPLEX)):
        ours, other = (1e3 * found[each] for each in (name, "positive"))
        what = f"decays {name} against positive ones"
        yield Row(what, str(lengths.decays), ours, other, "ms", other / ours, wanted)


def constant(lengths: Lengths, seconds: Seconds) -> Iterator[Row]:
    """What "auto" picks for S4D, next to a convolution by FFT."""
    heads = lengths.states
    for length in lengths.constant:
        sizes = Sizes(8, length, heads, heads // 2, 1)
        methods = {"auto": "auto", "FFT": by_hand.Convolution()}
        found = seconds({name: _gradient("s4d", sizes, each) for name, each in methods.items()})
        ours, other = (1e3 * found[name] for name in methods)
        what = "constant decays against a convolution by FFT"
        yield Row(what, f"S4D, {sizes}", ours, other, "ms", other / ours, BEST)


def solved(lengths: Lengths, seconds: Seconds) -> Iterator[Row]:
    """A GRU of published initial values, with dense Jacobians and with their diagonals."""
    width = lengths.width
    params = systems.get("gru", d_model=width).init(jax.random.key(0))
    start = jnp.zeros((1, width))

    def compiled(run: Callable[..., Any], u: jax.Array) -> Callable[[], Any]:
        program = jax.jit(run).lower(params, u).compile()
        return lambda: jax.block_until_ready(program(params, u))

    def newton(jacobian: Any) -> Callable[..., Any]:
        return lambda params, u: nonlinear.solve(cell, params, u, start, jacobian=jacobian).h

    for length in lengths.cell:
        u = jax.random.normal(jax.random.key(1), (length, width))
        found = seconds(
            {
                "loop": compiled(lambda params, u: nonlinear.loop(cell, params, u, start), u),
                "Newton's method": compiled(newton("dense"), u),
                "Newton's method, diagonal part": compiled(newton("diagonal part"), u),
            }
        )
        for name in tuple(found)[1:]:
            ours, other = 1e3 * found[name], 1e3 * found["loop"]
            case = f"GRU, L={length:,} d={width}, one sequence"
            yield Row(f"{name} against the loop", case, ours, other, "ms", other / ours, None)


def compilation(lengths: Lengths, seconds: Seconds) -> Iterator[Row]:
    """Every function on small arrays: how long they are is not in the time."""
    del seconds  # compiled once, as its user does
    names = ops.names() if lengths.functions is None else lengths.functions
    for what, gradients, most in (("forward", False, FORWARD_S), ("with gradients", True, BOTH_S)):
        took = {name: _compiled(getattr(ops, name), gradients) for name in names}
        within = sum(each <= most for each in took.values())
        slowest = max(took, key=took.__getitem__)
        for which, ours in (
            (
                f"median; {within} of {len(took)} within {most:g} s",
                statistics.median(took.values()),
            ),
            (f"slowest, {slowest}", took[slowest]),
        ):
            yield Row(f"compilation of a function, {what}", which, ours, most, "s", most / ours, 1)


def _compiled(op: Any, gradients: bool) -> float:
    """Seconds until an op is compiled in float32."""
    arrays, static = arguments(op)
    inputs = {
        name: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else x.dtype)
        for name, x in arrays.items()
    }
    real = {name: x for name, x in inputs.items() if x.dtype == jnp.float32}
    rest = {name: x for name, x in inputs.items() if name not in real}
    forward = functools.partial(_results, op, static)
    began = time.perf_counter()
    jax.jit(_back(forward) if gradients else forward).lower(real, rest).compile()
    return time.perf_counter() - began


def _results(op: Any, static: dict[str, Any], real: Any, rest: Any) -> list[jax.Array]:
    return jax.tree.leaves(op(**real, **rest, **static))


def _back(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(real: Any, rest: Any) -> Any:
        out, pull = jax.vjp(lambda real: forward(real, rest), real)
        return out, pull([jnp.ones_like(x) for x in out])

    return run


PARTS = {"decays": decays, "constant": constant, "solved": solved, "compilation": compilation}
COMPARISON = Comparison("engine_time", __doc__, PARTS, LENGTHS)

if __name__ == "__main__":
    COMPARISON.main()
