"""Contestants compute the same function and the same gradients, and are reported in full."""

import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax._util.errors import BOUNDS
from dsfjax.bench.case import Case, cases
from dsfjax.bench.contest import Contest, contest
from dsfjax.bench.contestant import prepare
from dsfjax.bench.measure import compare, cotangent_of, measure, reference_outcome
from dsfjax.bench.naive import BASELINES
from dsfjax.bench.peers import PEERS
from dsfjax.bench.roofline import Roofline
from dsfjax.engines import methods
from dsfjax.interop import reference
from tests.bench.small import small
from tests.engine_runs import compiled

PAIRS = [(case.name, name) for case in cases() for name in case.peers]
RATES = Roofline(1e10, 1e11)


def first(found: Contest) -> dict[str, np.ndarray]:
    """The signals of the first sequence."""
    return {k: x if k in found.shared else x[0] for k, x in found.signals.items()}


def errors(found: Contest, name: str) -> tuple[float, float]:
    """Errors of a contestant, which has to be there once."""
    (contestant,) = (c for c in found.contestants if c.name == name)
    cotangent = cotangent_of(found)
    ready = prepare(contestant, found.signals, cotangent, shared=found.shared, with_forward=False)
    return compare(ready.outcome(), reference_outcome(found, cotangent))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("ssd", "autodiff associative_scan"),
        pytest.param("ssd", "autodiff lax.scan", marks=pytest.mark.slow),
        ("ssd", "quadratic attention"),
        pytest.param("gla", "autodiff associative_scan", marks=pytest.mark.slow),
        pytest.param("s6", "autodiff associative_scan", marks=pytest.mark.slow),
        ("s6", "autodiff lax.scan"),
        ("rg_lru", "autodiff associative_scan"),
        ("softmax", "jax.nn.dot_product_attention"),
    ],
)
def test_baselines_agree_with_the_reference(case: str, name: str) -> None:
    value, gradient = errors(contest(small(case)), name)
    assert value < 2e-6
    assert gradient < 1e-5


@pytest.mark.parametrize(("case", "peer"), PAIRS)
def test_other_packages_agree_with_the_reference(case: str, peer: str) -> None:
    missing = PEERS[peer].missing()
    if missing:
        pytest.skip(missing)
    value, gradient = errors(contest(small(case)), PEERS[peer].title)
    assert value < 2e-6
    assert gradient < 1e-5


def test_reference_of_a_layer_is_the_layer_in_float64() -> None:
    case = small("mamba2", length=7)
    found = contest(case)
    cotangent = cotangent_of(found)
    y, gradients = reference_outcome(found, cotangent)
    signals = {name: np.asarray(x, np.float64) for name, x in found.signals.items()}
    x = signals.pop("x")
    apply = reference(case.module, **case.options)  # type: ignore[union-attr]

    @compiled
    def pull(signals: Any, x: Any, dy: Any) -> Any:
        y, back = jax.vjp(apply, signals, x)
        return y, *back(dy)

    expected, by_weights, by_x = pull(signals, x, cotangent.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)
    for name, gradient in (by_weights | {"x": by_x}).items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-9, atol=1e-10)


def test_measure_reports_every_contestant() -> None:
    found = contest(small("rg_lru", length=16))
    said: list[str] = []
    rows = measure(found, RATES, repeats=3, said=said.append)
    assert [row.contestant for row in rows] == [c.name for c in found.contestants]
    assert [row.contestant for row in rows if row.chosen] == [found.chosen]
    for row, contestant in zip(rows, found.contestants, strict=True):
        if row.skipped:
            assert row.side == "peer"
            assert "pip install" in row.skipped
            assert row.gradient_ms is row.value_error is None
            continue
        assert row.value_error is not None and row.value_error < 2e-6
        assert row.gradient_error is not None and row.gradient_error < 1e-5
        assert row.gradient_ms is not None and row.gradient_ms > 0
        assert (row.forward_ms is not None) == (row.side == "ours")
        assert f"compiling {contestant.name}" in said
        if contestant.framework == "jax":
            inputs = sum(x.nbytes for x in found.signals.values())
            assert row.temporary_bytes is not None and row.total_bytes is not None
            assert row.total_bytes > row.temporary_bytes + 2 * inputs  # they and their gradients
    chunked = next(row for row in rows if row.contestant == "chunked")
    model = found.explanations["chunked"]
    assert chunked.share is not None and chunked.gradient_ms is not None
    least = 3 * 2 * max(model.flops / 1e11, model.bytes / 1e10)
    np.testing.assert_allclose(chunked.share, 1e3 * least / chunked.gradient_ms)


def test_bfloat16_rounds_the_signals_and_keeps_decays_and_sums() -> None:
    found = contest(small("ssd", length=16), "bfloat16")
    kept = {name: x.dtype.name for name, x in found.signals.items()}
    assert kept.pop("g") == "float32"
    assert set(kept.values()) == {"bfloat16"}
    for name in ("chunked", "autodiff lax.scan"):
        value, gradient = errors(found, name)
        assert 1e-4 < value < BOUNDS["bfloat16"][0], name
        assert 1e-4 < gradient < BOUNDS["bfloat16"][1], name


def test_who_cannot_run_in_a_precision_says_so() -> None:
    for precision, row in (("bfloat16", "s6"), ("tf32", "mamba"), ("bfloat16", "rg_lru")):
        found = contest(small(row, length=16), precision)
        reasons = {c.name: c.missing for c in found.contestants if c.side == "peer"}
        for reason in reasons.values():
            assert "runs in float32" in (reason or "")
    rows = measure(contest(small("mamba", length=16), "tf32"), RATES, repeats=1)
    assert [row.skipped for row in rows] == [
        "runs in float32 and bfloat16 only",
        "runs in float32 only",
    ]


def test_products_of_baselines_follow_the_precision() -> None:
    def products(precision: str) -> set[str]:
        found = contest(small("ssd", length=16), precision)
        (quadratic,) = (c for c in found.contestants if c.name == "quadratic attention")
        return set(
            re.findall("precision=(.*)", str(jax.make_jaxpr(quadratic.load())(found.signals)))
        )

    for precision, name in (("float32", "HIGHEST"), ("bfloat16", "DEFAULT"), ("tf32", "HIGH")):
        assert products(precision) == {f"(Precision.{name}, Precision.{name})"}


def test_a_wrong_contestant_shows() -> None:
    found = contest(small("ssd", length=8))
    cotangent = cotangent_of(found)
    y, gradients = reference_outcome(found, cotangent)
    assert compare((y, gradients), (y, gradients)) == (0.0, 0.0)
    shifted = compare((y + 0.5 * abs(y).max(), gradients), (y, gradients))
    assert shifted == (pytest.approx(0.5), 0.0)
    broken = gradients | {"k": 0 * gradients["k"]}
    assert compare((y, broken), (y, gradients)) == (0.0, 1.0)


def test_engines_are_those_of_the_structure() -> None:
    for case in cases(quick=True):
        found = contest(case)
        assert set(case.peers) <= set(PEERS)
        if isinstance(case, Case):
            assert set(case.baselines) <= set(BASELINES)
            ours = [c.name for c in found.contestants if c.side == "ours"]
            system = case.build({k: jnp.asarray(x) for k, x in first(found).items()})[0]
            runnable = methods(system)
            wanted = {*(case.engines or runnable), found.chosen}
            assert ours == [method for method in runnable if method in wanted]


def test_large_kernels_are_left_out_with_a_reason() -> None:
    case = next(case for case in cases() if case.name == "s6")
    found = contest(case._replace(sizes=case.sizes._replace(length=512)))
    missing = {c.name: c.missing for c in found.contestants if c.side == "ours"}
    assert "GiB" in (missing.pop("materialized") or "")
    assert set(missing.values()) == {None}


def test_what_turns_out_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = contest(small("rg_lru", length=16), baselines=False)
    monkeypatch.setattr(sys.modules["dsfjax.bench.contest"], "MOST_BYTES", 4000)
    rows = measure(found, RATES, repeats=1)
    assert all(row.skipped == "needs 0.0 GiB" for row in rows)
    assert all(row.gradient_ms is row.value_error is None for row in rows)


def test_no_baselines() -> None:
    found = contest(small("s6"), baselines=False)
    assert {c.side for c in found.contestants} == {"ours"}
