"""A random system of every structure that has engines of its own, with tokens and a state.

All parts around the transition take part: grouped keys, scales, value maps, gates, skips, resets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    DenseSkip,
    Diagonal,
    DiagonalPlusLowRank,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    System,
    TokenSkip,
    Transition,
    ValueSkip,
)

LENGTH = 300  # no multiple of a chunk, and on a CPU longer than a segment of most structures
H, N, P, D_TOKEN = 2, 8, 4, 5


class Problem(NamedTuple):
    """A system, its tokens and its initial state (None for a kernel), as NumPy arrays."""

    system: Any
    u: Any
    h0: Any


class _Draw:
    """Random parts of a system."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def normal(self, *shape: int) -> Array:
        return jnp.asarray(self._rng.normal(size=shape))

    def complex(self, *shape: int) -> Array:
        return jax.lax.complex(self.normal(*shape), self.normal(*shape))

    def log_decay(self, *shape: int) -> Array:
        """Mostly mild, some as strong as e^{-80}, and one decay of 0."""
        log_a = -(self._rng.exponential(size=shape) ** 2)
        log_a[self._rng.random(size=shape) < 0.02] = -80.0
        log_a.flat[log_a.size // 2] = -np.inf
        return jnp.asarray(log_a)

    def phases(self, *shape: int) -> Array:
        return jax.lax.complex(-0.1 * jnp.abs(self.normal(*shape)), self.normal(*shape))

    def low_rank(self, rank: int) -> tuple[Array, Array]:
        """Factors that keep ‖A_t‖ below 1 together with a decay."""
        w, z = (self.normal(LENGTH, H, N, rank) for _ in range(2))
        w, z = (x / jnp.linalg.norm(x, axis=2, keepdims=True) for x in (w, z))
        return 0.5 * w / rank, z

    def reset(self) -> Array:
        marks = np.zeros(LENGTH, bool)
        marks[[LENGTH // 3, LENGTH // 2, LENGTH - 2]] = True
        return jnp.asarray(marks)

    def around(self, A: Transition) -> Problem:
        """Grouped keys, a scale, a value map, queries, a gate and a skip around a transition."""
        B = OuterInput(
            self.normal(LENGTH, 1, N), self.normal(LENGTH, H, P), self.normal(H * P, D_TOKEN)
        )
        C = InnerOutput(self.normal(LENGTH, H, N), self.normal(LENGTH, H, 1))
        skip = ValueSkip(self.normal(1, H, P))
        return self.problem(System(A, B, C, skip, None, self.reset(), state_shape=(H, N, P)))

    def problem(self, system: System) -> Problem:
        draw = self.complex if system.is_complex else self.normal
        return Problem(system, self.normal(LENGTH, system.token_width), draw(*system.state_shape))


def _channels(g: _Draw) -> Problem:
    C = InnerOutput(gate=g.normal(LENGTH, 1, P))
    A = Diagonal(g.log_decay(LENGTH, 1, 1, P))
    D = TokenSkip(g.normal(1, P))
    return g.problem(System(A, OuterInput(), C, D, None, g.reset(), state_shape=(1, 1, P)))


def _complex(g: _Draw) -> Problem:
    B, C = OuterInput(g.complex(LENGTH, 1, N)), InnerOutput(g.complex(LENGTH, H, N), None, True)
    A = Diagonal(g.phases(LENGTH, H, N, 1))
    return g.problem(System(A, B, C, reset=g.reset(), state_shape=(H, N, P)))


def _dense_maps(g: _Draw) -> Problem:
    B, C = DenseInput(g.complex(1, N, D_TOKEN)), DenseOutput(g.complex(1, P, N))
    D = DenseSkip(g.normal(1, P, D_TOKEN))
    A = Diagonal(g.phases(1, 1, N, 1))
    return g.problem(System(A, B, C, D, None, g.reset(), state_shape=(1, N, 1)))


def _factored(g: _Draw) -> Problem:
    rate = -jnp.broadcast_to(jnp.arange(1.0, N + 1)[None, :, None], (H, N, P))
    return g.around(Diagonal.factored(jnp.abs(g.normal(LENGTH, H, P)), rate))


def _kernel(g: _Draw) -> Problem:
    q, k, W = g.normal(LENGTH, 4, N), g.normal(LENGTH, 2, N), g.normal(4 * P, D_TOKEN)
    system = KernelSystem(q, k, W, g.reset(), num_channels=P)
    return Problem(system, g.normal(LENGTH, D_TOKEN), None)


_MAKERS: dict[str, Callable[[_Draw], Problem]] = {
    "scalar": lambda g: g.around(Scalar(g.log_decay(LENGTH, H))),
    "scalar, constant": lambda g: g.around(Scalar(-jnp.abs(g.normal(1, H)))),
    "diagonal per state": lambda g: g.around(Diagonal(g.log_decay(LENGTH, H, N, 1))),
    "diagonal per channel, n = 1": _channels,
    "diagonal, full": lambda g: g.around(Diagonal(g.log_decay(LENGTH, H, N, P))),
    "diagonal, factored": _factored,
    "complex diagonal": _complex,
    "complex diagonal, dense maps": _dense_maps,
    "diagonal plus rank 1": lambda g: g.around(
        DiagonalPlusLowRank(-jnp.abs(g.normal(LENGTH, H, 1)), *g.low_rank(1))
    ),
    "diagonal plus rank 2": lambda g: g.around(
        DiagonalPlusLowRank(-jnp.abs(g.normal(LENGTH, H, N)), *g.low_rank(2))
    ),
    "dense": lambda g: g.around(Dense(g.normal(LENGTH, H, N, N) / (2 * math.sqrt(N)))),
    "kernel (softmax)": _kernel,
}
STRUCTURES: dict[str, Callable[[np.random.Generator], Problem]] = {
    name: lambda rng, make=make: make(_Draw(rng)) for name, make in _MAKERS.items()
}
