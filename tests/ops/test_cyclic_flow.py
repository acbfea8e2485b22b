"""Cyclic Flow Attention next to its equations, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import ops, scan
from dsfjax.ops import cyclic_flow
from tests import ops_runs
from tests.checks import unchecked
from tests.engine_runs import COMPILE_FAST
from tests.reference_loop import error

T, H, K, V, C = 5, 2, 3, 2, 3
M, CU = C + 1, np.array([0, 2, 2, T])


def draw(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


ARRAYS: dict[str, Any] = {
    "q": draw(1, T, H, K),
    "k": draw(1, T, H, K, seed=1),
    "v": draw(1, T, H, V),
    "g": -jnp.abs(draw(1, T, H)),
    "delta": 9 * draw(1, T, H, seed=1),  # several turns, forwards and backwards
    "beta": draw(1, T, H, seed=2),
    "readout": draw(H, C, C),
    "q_norm_weight": draw(K),
    "k_norm_weight": draw(K, seed=1),
}
EPS: dict[str, Any] = {"q_norm_eps": 1e-2, "k_norm_eps": 1e-3}
STATES = draw(3, H, K, M), draw(3, H, M, V), draw(3, H)


@pytest.fixture(autouse=True)
def _step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ops_runs.step_by_step(monkeypatch)


def turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def turns(clock: float) -> np.ndarray:
    """R(λ): a block for every pair of slots."""
    R = np.zeros((M, M))
    for p in range(M // 2):
        R[2 * p : 2 * p + 2, 2 * p : 2 * p + 2] = turn(2 * np.pi * p * clock / C)
    return R


def loop(head: int, start: int, end: int, S: Any, Z: Any, clock: Any) -> tuple[Any, ...]:
    x = {name: np.asarray(value) for name, value in ARRAYS.items()}
    e = np.array([1.0, 0.0, *[2**0.5, 0.0] * (M // 2 - 1)]) / np.sqrt(C)
    W = x["readout"][head] @ np.stack([turns(r) @ e for r in range(C)])

    def normed(name: str, t: int) -> Any:
        row = x[name][0, t, head]
        row = row / np.sqrt((row**2).mean() + EPS[f"{name}_norm_eps"])
        return row * x[f"{name}_norm_weight"]

    y = []
    for t in range(start, end):
        clock = clock + x["delta"][0, t, head]
        R, decay = turns(clock), np.exp(x["g"][0, t, head])
        s = x["beta"][0, t, head] * R.T @ e
        S = decay * S + np.outer(normed("k", t), s)
        Z = decay * Z + np.outer(s, x["v"][0, t, head])
        scores = np.exp(W @ R @ S.T @ normed("q", t) * K**-0.5)
        y.append(Z.T @ R.T @ W.T @ (scores / scores.sum()))
    return np.array(y).reshape(-1, V), S, Z, clock


def test_packed_sequences_are_the_equations() -> None:
    """From states, which the second sequence, an empty one, gives back."""

    def run(arrays: Any, states: Any) -> Any:
        given = {**arrays, **EPS, "initial_state": states}
        return ops.chunk_cyfa(**given, output_final_state=True, cu_seqlens=CU)

    o, found = jax.jit(run, compiler_options=COMPILE_FAST)(ARRAYS, STATES)
    for head in range(H):
        for i, (start, end) in enumerate(zip(CU[:-1], CU[1:], strict=True)):
            y, *states = loop(head, start, end, *(np.asarray(x[i, head]) for x in STATES))
            assert error(o[0, start:end, head], y) < 1e-13 if end > start else not len(y)
            for state, expected in zip(found, states, strict=True):
                assert error(state[i, head], expected) < 1e-13


@pytest.mark.slow
def test_its_systems_run_to_what_it_returns() -> None:
    def run(arrays: Any) -> Any:
        shared = ("readout", "q_norm_weight", "k_norm_weight")
        row = {name: x if name in shared else x[0] for name, x in arrays.items()}
        *_, last = ops.chunk_cyfa.system(**row, **EPS)
        *_, tokens = ops.chunk_cyfa.tokens(**row, **EPS)
        return scan(last, tokens)[0], ops.chunk_cyfa(**arrays, **EPS)[0]

    y, o = jax.jit(run, compiler_options=COMPILE_FAST)(ARRAYS)
    assert error(y.reshape(T, H, V), o[0]) < 1e-13


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"readout": draw(H, 2, 2)}, "of an odd number C, got 2"),
        ({"initial_state": STATES[:2]}, "got a sequence of 2"),
        (
            {"initial_state": (draw(1, H, K, 2), draw(1, H, 2, V), draw(1, H))},
            r"of M = C \+ 1 = 4 slots, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], words: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=words):
        ops.chunk_cyfa(**{**ARRAYS, **EPS, **wrong})


def test_a_clock_that_ran_for_long_is_exact_in_float32() -> None:
    """A sum of the steps alone would be off by 1e-4 and more."""
    delta = np.abs(np.random.default_rng(0).normal(size=(4096, 1))).astype(np.float32)
    parts = scan(*cyclic_flow._clock(jnp.asarray(delta)))[0].reshape(4096, 1, 2)
    found = cyclic_flow._time(parts, C)
    exact = np.cumsum(delta.astype(np.float64), axis=0)
    off = (np.asarray(found, np.float64) - exact + C / 2) % C - C / 2
    assert exact[-1] > 3000 and np.abs(off).max() < 2e-6
