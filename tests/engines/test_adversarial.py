"""Extreme decays, normalisers and resets: no method loses digits or makes NaN."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from dsfjax import (
    Dense,
    Diagonal,
    Factored,
    GivenNormalizer,
    InnerOutput,
    OuterInput,
    SummedNormalizer,
    System,
)
from tests.engine_checks import cast, chunk_of, cotangents, cut_length, report, wrong
from tests.engine_runs import inputs

FAST = ("scalar", "diagonal_per_state", "low_rank")
SLOW = (
    "diagonal_factored",
    "complex_per_state",
    "scalar_summed_decay",
    "scalar_complex",
    "diagonal_full",
    "diagonal_per_channel",
    "diagonal_gated",
    "diagonal_summed",
    "dense_maps",
    "dense",
)
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]

Fill = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

LOG_DECAYS: dict[str, Fill] = {
    "e^-80 at every step": lambda rng, shape: np.full(shape, -80.0),
    "e^-80 at half of the steps": lambda rng, shape: np.where(
        rng.random(shape) < 0.5, -80.0, -0.1 * rng.exponential(size=shape)
    ),
    "zero": lambda rng, shape: np.full(shape, -np.inf),
    "one": lambda rng, shape: np.zeros(shape),
    "zero or one": lambda rng, shape: np.where(rng.random(shape) < 0.1, -np.inf, 0.0),
    "a little above one": lambda rng, shape: rng.uniform(0.0, 0.02, shape),
    "all kinds": lambda rng, shape: rng.choice(
        [-np.inf, -1000.0, -80.0, -5.0, -0.3, -1e-9, 0.0, 0.02], shape
    ),
}

MEMORYLESS = ("e^-80 at every step", "zero", "reset at every step")


def with_log_decay(system: System, log_a: Callable[[tuple[int, ...]], np.ndarray]) -> System:
    """The system with other decays, the imaginary parts kept."""
    A = system.A
    if isinstance(A, Dense):
        a = np.exp(log_a(A.shape[:2]))[..., None, None]
        return dataclasses.replace(system, A=Dense(jnp.asarray(a * np.eye(A.shape[-1]))))
    if isinstance(A, Diagonal) and isinstance(A.log_a, Factored):
        # The product of a zero and an infinite factor has no gradient: −2000 is an exact zero, too.
        step = np.clip(log_a(A.log_a.step.shape), -2000.0, None)
        rate = 1 + 0.01 * np.arange(np.prod(A.log_a.rate.shape)).reshape(A.log_a.rate.shape)
        return dataclasses.replace(
            system, A=Diagonal.factored(jnp.asarray(step), jnp.asarray(rate))
        )
    new = log_a(A.log_a.shape)  # pyright: ignore[reportAttributeAccessIssue]
    if A.log_a.dtype == complex:  # pyright: ignore[reportAttributeAccessIssue]
        new = new + 1j * np.imag(np.asarray(A.log_a))  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.replace(system, A=dataclasses.replace(A, log_a=jnp.asarray(new)))  # pyright: ignore[reportArgumentType]


def with_reset(system: System, *steps: int) -> System:
    reset = np.zeros(system.length, bool)  # pyright: ignore[reportArgumentType, reportCallIssue]
    reset[list(steps)] = True
    return dataclasses.replace(system, reset=jnp.asarray(reset))


def extreme_decays(system: System) -> Iterator[tuple[str, System]]:
    """Every kind of decay without resets, and with those of the system."""
    for case, fill in LOG_DECAYS.items():
        rng = np.random.default_rng(1)
        new = with_log_decay(system, lambda shape, fill=fill, rng=rng: fill(rng, shape))
        yield f"{case}, resets", new
        yield case, with_reset(new)


def reset_places(system: System, chunk: int) -> Iterator[tuple[str, System]]:
    """Resets at the ends, within chunks, around the cut between two, and everywhere."""
    last, middle = system.length - 1, system.length // 2  # pyright: ignore[reportOptionalOperand]
    cut = chunk if 1 < chunk < last else 16
    places = {
        "first step": (0,),
        "last step": (last,),
        "mid-chunk": (cut // 2,),
        "two in a row": (middle, middle + 1),
        "at a cut": (cut,),
        "before a cut": (cut - 1,),
        "after a cut": (cut + 1,),
        "all around a cut": (cut - 1, cut, cut + 1),
        "every step": tuple(range(system.length)),  # pyright: ignore[reportArgumentType]
    }
    for case, steps in places.items():
        yield f"reset at {case}", with_reset(system, *steps)


def extremes(system: System, chunk: int) -> Iterator[tuple[str, System]]:
    """Decays and resets, but for those after which a quotient has no gradient to compare."""
    for case, extreme in (*extreme_decays(system), *reset_places(system, chunk)):
        # (cᵀb x) / (cᵀb) = x: without memory the gradient of a summed normaliser is 0 by
        # cancellation, and what is left of it is rounding.
        memoryless = case.removesuffix(", resets") in MEMORYLESS
        if not (memoryless and isinstance(system.eta, SummedNormalizer)):
            yield case, extreme


@pytest.mark.parametrize("name", NAMES)
def test_extreme_decays_and_resets(name):
    """Values of the loop and gradients of sequential; finite even where no decay is."""
    system, u, h0 = inputs(name, cut_length(name))
    found = []
    for case, extreme in extremes(system, chunk_of(name)):
        found += wrong(case, extreme, u, h0)
    report(found)


def normalised(
    name: str, length: int, log_eta: float, dtype: Any
) -> tuple[System, Array, Array, Array]:
    """System, tokens, state and η, which changes between e^±log_eta at random."""
    system, u, h0 = inputs(name, length)
    sign = np.random.default_rng(1).choice([-1.0, 1.0], (length, system.state_shape[0]))
    eta = GivenNormalizer(jnp.asarray(log_eta * sign))
    system, u, h0 = cast((dataclasses.replace(system, eta=eta, D=None), u, h0), dtype)
    per_output = jnp.repeat(jnp.asarray(np.exp(log_eta * sign)), system.state_shape[2], axis=1)
    return system, u, h0, per_output


@pytest.mark.parametrize(
    ("name", "log_eta", "dtype"),
    [
        pytest.param("scalar_given", 300.0, jnp.float64, marks=pytest.mark.slow),
        pytest.param("diagonal_given", 300.0, jnp.float64, marks=pytest.mark.slow),
        pytest.param("low_rank", 300.0, jnp.float64, marks=pytest.mark.slow),
        # e^−60 s is a normal float32 wherever s has digits that count; e^−80 s may underflow.
        pytest.param("scalar_given", 60.0, jnp.float32, marks=pytest.mark.slow),
        pytest.param("diagonal_given", 60.0, jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_huge_and_tiny_given_normalisers(name, log_eta, dtype):
    """Every step has its digits, whatever the size of its neighbours."""
    system, u, h0, eta = normalised(name, cut_length(name), log_eta, dtype)
    y_bar, h_bar = cotangents(system, u, h0)
    balanced = (y_bar * eta.astype(dtype), h_bar)
    found = wrong("cotangent of the size of η", system, u, h0, balanced, weight=eta)
    if dtype == jnp.float64:  # float32 does not hold their products
        found += wrong("cotangent of size 1", system, u, h0, weight=eta)
    report(found)


@pytest.mark.parametrize(
    ("name", "scale", "dtype"),
    [
        ("scalar_summed_decay", 1e70, jnp.float64),
        pytest.param("diagonal_summed", 1e70, jnp.float64, marks=pytest.mark.slow),
        pytest.param("scalar_summed_decay", 1e8, jnp.float32, marks=pytest.mark.slow),
        pytest.param("diagonal_summed", 1e8, jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_huge_and_tiny_summed_normalisers(name, scale, dtype):
    """η = cᵀz with both factors huge, or both tiny: the quotient does not change."""
    system, u, h0 = inputs(name, cut_length(name))
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    assert system.B.b is not None and system.C.c is not None
    found = []
    for factor in (scale, 1 / scale):
        B = dataclasses.replace(system.B, b=factor * system.B.b)
        C = dataclasses.replace(system.C, c=factor * system.C.c)
        scaled = cast((dataclasses.replace(system, B=B, C=C), u, factor * h0), dtype)
        found += wrong(f"b, c × {factor:.0e}", *scaled)
    report(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in (*FAST, *SLOW) if "complex" not in x])
def test_extreme_decays_of_bfloat16_inputs(name):
    """Decays and states are float32 inside: no digits are lost beyond those of the inputs."""
    system, u, h0 = inputs(name, cut_length(name))
    found = []
    for case, extreme in extremes(system, chunk_of(name)):
        low, tokens = cast((extreme, u), jnp.bfloat16)
        found += wrong(case, low, tokens, h0.astype(jnp.float32))
    report(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST + SLOW)
def test_lengths_around_a_chunk(name):
    """The step that is left over is tested above."""
    chunk, found = chunk_of(name), []
    for length in {chunk - 1, chunk, chunk + 1, 2 * chunk - 1} - {0, 1}:
        found += wrong(f"L = {length}, chunk {chunk}", *inputs(name, length))
    report(found)
