"""The self check passes as things are, and sees an engine that is off."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax._util.errors import normwise
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
from tests import reference_loop
from tests.engine_runs import Altered

ONE = "diagonal per channel, n = 1"
FEW = (ONE, "complex diagonal, dense maps")


def structure(system: Any) -> type:
    return KernelSystem if isinstance(system, KernelSystem) else type(system.A)


def test_every_structure_is_checked() -> None:
    found = {structure(make(np.random.default_rng(0)).system) for make in STRUCTURES.values()}
    assert found == {Scalar, Diagonal, DiagonalPlusLowRank, Dense, KernelSystem}


@pytest.mark.parametrize("name", STRUCTURES)
def test_reference_is_the_loop_over_the_parts(name: str) -> None:
    problem = STRUCTURES[name](np.random.default_rng(0))
    wide = checks._widened(problem)
    y, h = checks._reference(problem, lambda: jax.jit(to_dense)(wide.system))
    if isinstance(problem.system, KernelSystem):
        np.testing.assert_allclose(y, reference_loop.attention(*problem[:2])[0], rtol=1e-12)
        return
    expected = reference_loop.run(*problem)
    np.testing.assert_allclose(y, expected.y, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(h, expected.h_last, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(x, marks=pytest.mark.slow) for x in ("float32", "float64", "bfloat16")],
)
def test_engines_pass(dtype: str) -> None:
    found = list(selfcheck(dtype, structures=FEW))
    assert [c.method for c in found] == [m for n in FEW for m in methods(n)]
    assert all(c.ok for c in found), [c for c in found if not c.ok]
    # The precision is really the one asked for: errors are neither those of a wider nor of a
    # narrower one.
    low, high = {"float32": (1e-9, 2e-6), "float64": (1e-18, 1e-12), "bfloat16": (1e-4, 2e-2)}[
        dtype
    ]
    worst = max(c.value_error for c in found)
    assert low < worst < high


def methods(name: str) -> tuple[str, ...]:
    return methods_of(STRUCTURES[name](np.random.default_rng(0)).system)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_all_engines_pass(dtype: str) -> None:
    off = [c for c in selfcheck(dtype) if not c.ok]
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
    if fault == "nan":
        assert math.isinf(check.value_error)
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


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match=r"expected dtype to be one of .*'float16'"):
        next(selfcheck("float16"))


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
        return Check("scalar", "chunked", value, gradient, "u", 2e-6, 1e-5, failure).ok

    assert check(2e-6, 1e-5)
    assert not check(2.1e-6, 1e-5)
    assert not check(2e-6, 1.1e-5)
    assert not check(0.0, 0.0, "RuntimeError")
