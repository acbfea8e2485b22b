"""The self check passes as things are, and sees an engine that is off."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax._util.errors import lacks, normwise
from dsfjax.core import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    KernelSystem,
    Scalar,
    to_dense,
)
from dsfjax.engines import Chunked
from dsfjax.engines import methods as methods_of
from dsfjax.engines.chunks.elementwise import ELEMENTWISE
from dsfjax.selfcheck import STRUCTURES, Check, selfcheck
from dsfjax.selfcheck import check as checks
from dsfjax.selfcheck.problems import Turning
from tests import reference_loop
from tests.engine_runs import Altered

ONE = "diagonal per channel, n = 1"
FEW = (ONE, "complex diagonal, dense maps")


def structure(system: Any) -> type:
    return KernelSystem if isinstance(system, KernelSystem) else type(system.A)


def test_every_structure_is_checked() -> None:
    found = {structure(make(np.random.default_rng(0)).system) for make in STRUCTURES.values()}
    assert found == {Scalar, Diagonal, DiagonalPlusLowRank, Dense, Turning, KernelSystem}


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
    if isinstance(problem.system.A, Turning):  # the loop knows structures, and this has its matrix
        A = Dense(problem.system.A.matrix())
        problem = problem._replace(system=dataclasses.replace(problem.system, A=A))
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
