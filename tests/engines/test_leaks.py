"""NaN and ∞ in one document reach no other, and those of the future do not reach the past."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from dsfjax import OuterInput, System
from dsfjax.core.pytree import map_time
from tests import reference_loop as reference
from tests.engine_checks import chunk_of, compiled_pull_back, cotangents, cut_length, report
from tests.engine_runs import inputs, methods, names_of_leaves

FAST = ("scalar",)
SLOW = (
    "low_rank",
    "diagonal_per_state",
    "diagonal_factored",
    "scalar_groups",
    "scalar_given",
    "diagonal_gated",
    "diagonal_per_channel",
    "diagonal_full",
    "complex_per_state",
    "dense_maps",
    "dense",
)
SUMMED = pytest.param("scalar_summed_decay", marks=pytest.mark.slow)
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW), SUMMED]


def poison(x: Any, start: int, stop: int, length: int) -> Any:
    """NaN, ∞ and −∞ in turn at steps start ≤ t < stop of everything that varies in time."""

    def fill(leaf: Array) -> Array:
        if leaf.shape[0] != length or leaf.dtype == bool:
            return leaf
        filled = np.array(leaf)
        filled[start:stop] = np.resize([np.nan, np.inf, -np.inf], filled[start:stop].shape)
        return jnp.asarray(filled)

    return map_time(fill, x)


def leaks(
    case: str, clean: tuple[System, Array, Array], poisoned: tuple[System, Array], bad: slice
) -> list[str]:
    """Differences that NaN at the steps ``bad`` makes at the other steps, one line each.

    The cotangents are zero at those steps, so a loss over the others is meant. Arrays that are
    constant in time collect gradients from all steps, and are left out.
    """
    system, u, h0 = clean
    length = len(u)
    good = np.ones(length, bool)
    good[bad] = False
    y_bar, h_bar = (np.array(x) for x in cotangents(system, u, h0))
    y_bar[bad] = 0
    h_bar *= good[-1]
    expected = reference.run(*clean)
    exact = jax.device_get(compiled_pull_back(*clean, (y_bar, h_bar), method="sequential"))
    paths, found = names_of_leaves(clean), []
    for method in methods(system):
        got = jax.device_get(compiled_pull_back(*poisoned, h0, (y_bar, h_bar), method=method))
        checks = [("y", got.y[good], expected.y[good], 1e-12)]
        if good[-1]:
            checks.append(("h_last", got.h_last, expected.h_last, 1e-12))
        for path, x, y in zip(paths, got.gradients, exact.gradients, strict=True):
            if path == "[2]":
                checks.append(("gradient to h0", x, y, 1e-9))
            elif x.shape[0] == length:
                checks.append((f"gradient to {path}", x[good], y[good], 1e-9))
        for what, x, y, bound in checks:
            error = reference.error(x, y)
            if not error < bound:
                found.append(f"{case}: {method}, {what}: {error:.1e}, {np.isnan(x).sum()} NaN")
    return found


def documents(length: int, chunk: int) -> dict[str, tuple[int, int]]:
    """Where the poisoned document starts and stops."""
    cut = chunk if 4 < chunk < length else length // 2
    return {
        "in the first chunk": (cut // 4, cut // 2),
        "over the cut between two chunks": (cut - 2, min(cut + 2, length - 1)),
        "of one step": (length // 3, length // 3 + 1),
        "first": (0, cut // 2),
        "last": (length - 1 - cut // 2, length),
    }


@pytest.mark.parametrize("name", NAMES)
def test_of_one_document_reaches_no_other(name):
    """Values of the clean documents, and gradients of a loss over them."""
    length, found = cut_length(name), []
    system, u, h0 = inputs(name, length)
    for case, (start, stop) in documents(length, chunk_of(name)).items():
        edges = [t for t in (start, stop) if t < length]
        reset = np.zeros(length, bool)
        reset[edges] = True
        apart = dataclasses.replace(system, reset=jnp.asarray(reset))
        bad = poison(apart, start, stop, length), poison(u, start, stop, length)
        found += leaks(f"document {case}", (apart, u, h0), bad, slice(start, stop))
    report(found)


@pytest.mark.parametrize("name", NAMES)
def test_of_the_future_does_not_reach_the_past(name):
    """Values before a step are those without it, whatever comes from then on."""
    length = cut_length(name)
    system, u, h0 = inputs(name, length)
    system = dataclasses.replace(system, reset=jnp.zeros(length, bool))
    expected, found = reference.run(system, u, h0), []
    bar = cotangents(system, u, h0)
    for start in {1, chunk_of(name) // 2 + 1, length // 2, length - 1}:
        bad = poison(system, start, length, length), poison(u, start, length, length)
        for method in methods(system):
            y = np.asarray(compiled_pull_back(*bad, h0, bar, method=method).y)
            error = reference.error(y[:start], expected.y[:start])
            if not error < 1e-12:
                found.append(f"NaN from step {start} on: {method}, y before it: {error:.1e}")
    report(found)


# The derivative of a quotient s / z takes NaN times zero into z, whatever runs the recurrence.
@pytest.mark.parametrize("name", [x for x in NAMES if x != SUMMED])
def test_of_future_tokens_reaches_no_gradient_of_the_past(name):
    """A loss over the outputs before a step does not see the tokens from then on."""
    length, found = cut_length(name), []
    system, u, h0 = inputs(name, length)
    system = dataclasses.replace(system, reset=jnp.zeros(length, bool))
    for start in {1, chunk_of(name) // 2 + 1, length // 2, length - 1}:
        B = (
            poison(system.B, start, length, length)
            if isinstance(system.B, OuterInput)
            else system.B
        )
        bad = dataclasses.replace(system, B=B), poison(u, start, length, length)
        found += leaks(f"NaN from step {start} on", (system, u, h0), bad, slice(start, length))
    report(found)
