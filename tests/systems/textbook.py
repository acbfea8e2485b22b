"""What loops in NumPy of architectures share, and the comparison with the System."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import scan
from tests.reference_loop import error
from tests.systems.small import as_numpy, build, perturbed, tokens

LENGTH = 7


def slow(value: Any) -> Any:
    """One of the variants of an architecture that run with the slow tests."""
    return pytest.param(value, marks=pytest.mark.slow)


# Small programs that run once: compile them quickly rather than well.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def compare(name: str, textbook: Any, **own: Any) -> None:
    """The System of an architecture against ``textbook(params, u) -> y`` in float64."""
    arch = build(name, **own)
    params, u = perturbed(arch), tokens(LENGTH)

    def run(params: Any, u: Any) -> Any:
        signals = arch.signals(params, u)
        # Step by step: that engines agree is for their tests.
        return scan(arch.assemble(params, signals), arch.values(signals), method="sequential")[0]

    y = jax.jit(run, compiler_options=QUICKLY)(params, u)
    expected = textbook(as_numpy(params), np.asarray(u)).reshape(y.shape)
    assert error(y, expected) < 1e-10


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum() + 1e-6)


def matrix_states(step: Any, heads: int = 2, n: int = 3, channels: int = 4) -> Any:
    """y (L, H, p) of ``step(p, u_t, S, h) -> (S, y)`` for every step and head, S (n, channels)."""

    def textbook(p: Any, u: np.ndarray) -> np.ndarray:
        S = np.zeros((heads, n, channels))
        y = np.zeros((len(u), heads, channels))
        for t in range(len(u)):
            for h in range(heads):
                S[h], y[t, h] = step(p, u[t], S[h], h)
        return y

    return textbook


def read(q: np.ndarray, S: np.ndarray) -> np.ndarray:
    return q @ S / math.sqrt(len(q))
