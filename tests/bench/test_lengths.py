"""Growth, decoding and long sequences, at lengths for tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.bench import lengths
from dsfjax.bench.signals import FAMILIES
from dsfjax.core import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    KernelSystem,
    Scalar,
    slice_time,
)
from dsfjax.engines import scan as scan_function
from tests.checks import unchecked


def test_families_cover_every_structure() -> None:
    rng, found = np.random.default_rng(0), set()
    for name in lengths.DECODED_FAMILIES:
        family = FAMILIES[name]
        drawn = family.draw(rng, lengths.sizes(name, 2))
        one = {k: jnp.asarray(x if k in family.shared else x[0]) for k, x in drawn.items()}
        system, _ = family.build(one)
        found.add(type(getattr(system, "A", system)))
    assert found == {Scalar, Diagonal, DiagonalPlusLowRank, Dense, KernelSystem}


def test_growth_of_every_linear_method() -> None:
    said: list[str] = []
    rows = lengths.growth("ssd", short=8, long=32, repeats=1, said=said.append)
    assert [row.method for row in rows] == ["sequential", "associative", "chunked"]
    for row in rows:
        assert row.short_ms > 0
        assert row.growth == row.long_ms / row.short_ms
        assert row.linear is (row.growth <= 20 / 4)  # a quarter of 16 times the length
    assert "chunked, L = 32" in said


@pytest.mark.parametrize("family", ["s6", "softmax"])
def test_latency_is_that_of_the_next_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[np.ndarray] = []
    step, jit = lengths.step, jax.jit

    def watched(function: Any, **options: Any) -> Any:
        run = jit(function, **options)

        def call(*args: Any, **options: Any) -> Any:
            out = run(*args, **options)
            if function is step:
                outputs.append(np.asarray(out[0]))
            return out

        return call

    monkeypatch.setattr(lengths.jax, "jit", watched)
    with unchecked():
        row = lengths.latency(family, positions=(3, 5), repeats=2)
    assert row.positions == (3, 5)
    assert len(row.microseconds) == 2
    assert min(row.microseconds) > 0
    monkeypatch.undo()
    # The first step after three tokens is what a scan over four, the last one twice, ends with.
    source = FAMILIES[family]
    drawn = source.draw(np.random.default_rng(0), lengths.sizes(family, 3))
    one = {k: jnp.asarray(x if k in source.shared else x[0], jnp.float32) for k, x in drawn.items()}
    system, u = source.build(one)
    _, h = scan_function(system, u)
    y, _ = step(slice_time(system, 2, 3), u[2], h)
    np.testing.assert_allclose(outputs[0], y, rtol=1e-5, atol=1e-6)


def test_error_over_a_long_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    good = lengths.long_error("rg_lru", length=300)
    assert good.reached
    assert good.method in ("sequential", "chunked")
    assert 0 < good.value_error < 1e-6
    scan = lengths.scan

    def off(system: object, u: object, *, method: str, precision: object):
        y, h = scan(system, u, method=method)  # type: ignore[arg-type]
        return (y, h) if method == "sequential" else (y * 1.001, h)

    monkeypatch.setattr(lengths, "scan", off)
    bad = lengths.long_error("rg_lru", length=300)
    assert bad.value_error == pytest.approx(1e-3, rel=1e-2)
    assert not bad.reached


def test_memory_of_a_long_sequence_grows_with_it() -> None:
    short, long = (lengths.memory(length=length) for length in (512, 4096))
    assert short.total_bytes is not None and long.total_bytes is not None
    assert 4 < long.total_bytes / short.total_bytes < 10
    assert long.reached
