"""The self check passes as things are, and sees an engine that is off."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jaxtyping import Float

from dsfjax import ops
from dsfjax._util.errors import lacks, normwise
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    InputMap,
    KernelSystem,
    Normalizer,
    OutputMap,
    Skip,
    Transition,
    to_dense,
)
from dsfjax.engines import Chunked
from dsfjax.engines import methods as methods_of
from dsfjax.engines.chunks.elementwise import ELEMENTWISE
from dsfjax.ops.op import REGISTRY, Op, op
from dsfjax.selfcheck import STRUCTURES, Check, selfcheck
from dsfjax.selfcheck import check as checks
from dsfjax.selfcheck.called import Called, arguments
from tests import reference_loop
from tests.engine_runs import Altered

ONE = "diagonal per channel, n = 1"
FEW = (ONE, "complex diagonal, dense maps")


def structure(system: Any) -> type:
    return KernelSystem if isinstance(system, KernelSystem) else type(system.A)


def concrete(kind: type) -> Iterator[type]:
    """The classes of the package that are a kind and are made, not only inherited from."""
    for sub in kind.__subclasses__():
        if sub.__module__.startswith("dsfjax.") and not inspect.isabstract(sub):
            yield sub
        yield from concrete(sub)


def test_every_structure_is_checked() -> None:
    systems = [make(np.random.default_rng(0)).system for make in STRUCTURES.values()]
    assert {structure(system) for system in systems} == {KernelSystem, *concrete(Transition)}
    ours = [system for system in systems if not isinstance(system, KernelSystem)]
    for part, kind in (("B", InputMap), ("C", OutputMap), ("D", Skip), ("eta", Normalizer)):
        found = {type(getattr(system, part)) for system in ours}
        assert found - {type(None)} == set(concrete(kind)), part


def test_every_op_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is registered later, too, by each of its arguments that varies over time."""
    found: list[Any] = []

    class Seen:
        def __init__(self, what: Any, *_: Any) -> None:
            found.append(what)

        def compile(self) -> Any:
            return self

        def checks(self) -> Any:
            return ()

    monkeypatch.setattr(checks, "_Structure", Seen)
    monkeypatch.setattr(checks, "Called", Seen)
    assert list(selfcheck()) == []
    called = [REGISTRY[name] for name in ops.names()]
    # Names that differ in nothing but the order of their arguments are one function.
    once = [x for i, x in enumerate(called) if x.function not in {y.function for y in called[:i]}]
    assert found == [*STRUCTURES, *once] and len(once) < len(set(called)) < len(called)
    for one in dict.fromkeys(REGISTRY.values()):
        arrays, static = arguments(one)
        needed = {n for n, x in one.parameters.items() if x.default is x.empty}
        assert needed <= {*arrays, *static}, one
        assert all(np.isfinite(x).all() for x in arrays.values()), one


@pytest.fixture
def own_op(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Op[Any, Any]]:
    """Make a function an op of gated linear attention for one test."""
    monkeypatch.setattr("dsfjax.ops.op.REGISTRY", {})
    return op(ops.chunk_gla.assemble, "my_package")


def test_an_op_of_ones_own_is_checked(own_op: Any) -> None:
    def mine(q: Float[Array, "B T D"], g: Float[Array, "B T D"]) -> Array:
        return ops.fused_recurrent_hgrn(q, g)[0]

    (check,) = Called(own_op(mine), ("float32",), 0).compile().checks()
    assert check.ok and (check.structure, check.method) == ("mine", "auto")
    assert check.worst in ("q", "g") and check.value_error > 0

    def off(q: Float[Array, "B T D"]) -> Array:
        return q * jnp.asarray(1 if q.dtype == jnp.float64 else 1 + 1e-4, q.dtype)

    (check,) = Called(own_op(off), ("float32",), 0).compile().checks()
    assert not check.ok and check.value_error == pytest.approx(1e-4, rel=0.01)

    def fails(q: Float[Array, "B T D"]) -> Array:
        raise RuntimeError("no such kernel")

    (check,) = Called(own_op(fails), ("float32",), 0).compile().checks()
    assert check.failure == "RuntimeError: no such kernel" and not check.ok

    def bare(q: Any) -> Any:
        return q

    with pytest.raises(ValueError, match="bare: expected the axes of 'q' in its annotation"):
        arguments(own_op(bare))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*{x.function: x.names[0] for x in REGISTRY.values()}.values()])
def test_every_op_passes(name: str) -> None:
    assert not [c for c in selfcheck(("float32", "bfloat16"), structures=[name]) if not c.ok]


# Of the other two the sequential engine is the reference, and the loop would take minutes.
LOOPED = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith("kernel, window") else ())
    for name in STRUCTURES
    if name not in ("kernel, decaying weights", "kernel, moved keys")
]


@pytest.mark.parametrize("name", LOOPED)
def test_reference_is_the_loop_over_the_parts(name: str) -> None:
    problem = STRUCTURES[name](np.random.default_rng(0))
    dense = jax.jit(to_dense)(problem.system) if checks._has_matrices(problem) else None
    run = jax.jit(lambda x: checks._outputs(x, "sequential"))
    y, h = checks._expected(problem, dense, None if dense is not None else run(problem))
    if isinstance(problem.system, KernelSystem):
        expected = reference_loop.attention(*problem[:2])[0]
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
        return
    system = problem.system
    if not type(system.A).__module__.startswith("dsfjax.core"):
        # The loop knows the parts that are built in, and these have their matrices.
        system = dataclasses.replace(system, A=Dense(system.A.matrix()))
        if not type(system.B).__module__.startswith("dsfjax.core"):
            shape = system.state_shape
            B, C = DenseInput(system.B.matrix(shape)), DenseOutput(system.C.matrix(shape))
            system = dataclasses.replace(system, B=B, C=C)
        problem = problem._replace(system=system)
    expected = reference_loop.run(*problem)
    np.testing.assert_allclose(y, expected.y, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(h, expected.h_last, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_engines_pass_in_every_precision() -> None:
    wanted = ("float32", "float64", "bfloat16")
    found = list(selfcheck(wanted, structures=FEW))
    assert [(c.precision, c.method) for c in found] == [
        (p, m) for n in FEW for p in wanted for m in methods(n)
    ]
    assert all(c.ok for c in found), [c for c in found if not c.ok]
    # The precision is really the one that was given: errors are neither those of a wider nor of a
    # narrower one.
    ranges = {"float32": (1e-9, 2e-6), "float64": (1e-18, 1e-12), "bfloat16": (1e-4, 2e-2)}
    for precision, (low, high) in ranges.items():
        assert low < max(c.value_error for c in found if c.precision == precision) < high


def methods(name: str) -> tuple[str, ...]:
    return methods_of(STRUCTURES[name](np.random.default_rng(0)).system)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_all_engines_pass(name: str) -> None:
    off = [c for c in selfcheck(("float32", "float64", "bfloat16"), structures=[name]) if not c.ok]
    assert not off


@pytest.mark.parametrize(
    "fault",
    [
        "gradient",
        "raises",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("value", "state", "nan")),
    ],
)
def test_an_engine_that_is_off_is_seen(
    fault: str, monkeypatch: pytest.MonkeyPatch, replace_engine: Callable[[str, Any], None]
) -> None:
    monkeypatch.setattr(checks, "methods", lambda system: ("sequential", "chunked"))
    replace_engine("chunked", broken(Chunked(ELEMENTWISE, 32, 32), fault))
    found = {c.method: c for c in selfcheck(structures=[ONE])}
    assert [m for m, c in found.items() if not c.ok] == ["chunked"]
    check = found["chunked"]
    if fault == "gradient":
        assert check.value_error < check.value_bound
        assert check.gradient_error > check.gradient_bound
        assert check.worst == "h0"
    if fault in ("value", "state"):
        assert check.value_error > check.value_bound
    if fault == "nan":  # the guard puts the right values in its place, which have another gradient
        assert check.value_error < check.value_bound
        assert check.gradient_error > check.gradient_bound
    assert (check.failure is not None) == (fault == "raises")


def broken(engine: Any, fault: str) -> Any:
    """The engine with one thing wrong."""

    def off(run: Any, problem: Any, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
        if fault == "raises":
            raise RuntimeError("no such kernel")
        if fault == "gradient":
            h0 = h0 + 1e-3 * (h0 - jax.lax.stop_gradient(h0))
        out, h = run(problem, h0)
        if fault == "value":
            out = out * (1 + 1e-5)
        elif fault == "state":
            h = h * (1 + 1e-5)
        elif fault == "nan":
            out = out.at[-1].set(jnp.nan)
        return out, h

    return Altered(engine, off)


def test_precisions_that_are_unknown_or_missing() -> None:
    with pytest.raises(ValueError, match=r"unknown precision 'float16'; did you mean"):
        next(selfcheck(["float16"]))
    with pytest.raises(ValueError, match="no TF32 on this device"):
        next(selfcheck(["float32", "tf32"]))


def test_who_has_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        device_kind = "a device"

        def __init__(self, platform: str, capability: str | None) -> None:
            self.platform = platform
            if capability is not None:
                self.compute_capability = capability

    for device, has in (
        (Device("gpu", "9.0"), True),
        (Device("gpu", "8.0"), True),
        (Device("gpu", "7.5"), False),
        (Device("gpu", "gfx90a"), False),
        (Device("tpu", None), False),
    ):
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert (lacks("tf32") is None) == has
        assert lacks("bfloat16") is None


def test_normwise() -> None:
    assert normwise(np.array([1.0, -4.0]), np.array([1.0, -5.0])) == 0.2
    assert normwise(np.zeros(2), np.zeros(2)) == 0.0
    assert normwise(np.array([0.5]), np.zeros(1)) == 0.5
    assert normwise(np.array([np.nan, 1.0]), np.ones(2)) == math.inf
    assert normwise(jnp.array([1.5], jnp.bfloat16), np.array([1.0])) == 0.5
    with pytest.raises(ValueError, match=r"expected shape \(2,\), got \(1,\)"):
        normwise(np.ones(1), np.ones(2))


def test_check_is_ok_only_within_both_bounds() -> None:
    def check(value: float, gradient: float, failure: str | None = None) -> bool:
        return Check("scalar", "chunked", "float32", value, gradient, "u", 2e-6, 1e-5, failure).ok

    assert check(2e-6, 1e-5)
    assert not check(2.1e-6, 1e-5)
    assert not check(2e-6, 1.1e-5)
    assert not check(0.0, 0.0, "RuntimeError")
