"""Bounds by construction against samples: those that the architectures promise, and broken ones."""

import math

import numpy as np
import pytest

from dsfjax import systems
from dsfjax.analysis import eigenvalues, outside
from tests import systems_zoo as zoo
from tests.analysis.cases import slow_unless
from tests.engine_runs import compiled
from tests.systems import small

L = 23


@pytest.mark.parametrize(
    "name",
    slow_unless(
        {"normalized_attention", "ssd", "rg_lru"},
        # A window or a decay of weights has no ratio of normalisers.
        [
            x
            for x in systems.names()
            if x not in ("sliding_window_attention", "forgetting_attention")
        ],
    ),
)
def test_architectures_keep_their_bounds(name: str) -> None:
    case = small.case(name)
    params = case.params
    if name == "mlstm":  # with input gates so open that η leaves its floor
        params = params._replace(bias_i=params.bias_i + 15)
    system, _ = small.runnable(case.arch, params, 3 * small.tokens(L))
    bounds = case.arch.traits.bounds
    found = compiled(outside)(system)
    values = np.abs(np.asarray(eigenvalues(system)))
    np.testing.assert_allclose(np.max(found.maximum), np.nanmax(values), rtol=1e-12)
    np.testing.assert_allclose(np.min(found.minimum), np.nanmin(values), rtol=1e-12)
    if bounds.startswith("unbounded"):
        assert np.asarray(found.above).any()
    elif bounds[-1] in ")]":
        assert bounds[:-1] in ("(0, 1", "[0, 1", "(−1, 1", "[−1, 1")
        assert not np.asarray(found.above).any() and not np.asarray(found.below).any()
        # Of a matrix eigenvalues have an absolute rounding error.
        if bounds[0] == "(" and "−" not in bounds and system.A.is_diagonal:
            assert np.min(found.minimum) > 0
        if bounds[-1] == ")":
            assert np.max(found.maximum) < 1
    else:  # of initial parameters, or none
        assert bounds in ("(0, 1) at the start", "not bounded")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.8), (0.0, math.inf), (0.9, 0.9)])
def test_shares(low: float, high: float) -> None:
    system = zoo.system("diagonal_given", L)
    values = np.abs(np.asarray(eigenvalues(system)))
    found = outside(system, low, high)
    defined = np.sum(~np.isnan(values), axis=(0, 2))
    with np.errstate(invalid="ignore"):
        below, above = np.sum(values < low, axis=(0, 2)), np.sum(values > high, axis=(0, 2))
    np.testing.assert_allclose(found.below, below / defined, rtol=1e-14)
    np.testing.assert_allclose(found.above, above / defined, rtol=1e-14)


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="expected 0 <= low <= high"):
        outside(zoo.system("scalar", L), 1.0, 0.5)
