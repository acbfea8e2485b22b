"""A random system of every kind of transition and of output, with tokens and a state.

All parts around the transition take part: grouped keys, scales, value maps, gates, skips, resets,
normalisers, ranks above 1; around the scores of a kernel a window, sinks, a soft cap, decays.
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
    GivenNormalizer,
    InnerOutput,
    KernelSystem,
    Normalizer,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    TokenSkip,
    Transition,
    ValueSkip,
    pytree,
)
from dsfjax.engines.nonlinear import EntryInput
from dsfjax.ops.momentum import Momentum
from dsfjax.systems.gated_cell import FirstEntries, Gated
from dsfjax.systems.mamba3 import Trapezoid

LENGTH = 300  # no multiple of a chunk, and on a CPU longer than a segment of most structures
H, N, P, D_TOKEN = 2, 8, 4, 5


class Problem(NamedTuple):
    """A system, its tokens and its initial state (None for a kernel), as NumPy arrays."""

    system: Any
    u: Any
    h0: Any


@pytree
class Turning(Transition):
    """A transition as a user writes one, with nothing but ``matrix``: pairs of states that turn.

    Attributes:
        angle: (T, H, n / 2).
    """

    angle: Array

    def matrix(self) -> Array:
        """Rotations, shrunk by a tenth, along the diagonal."""
        cos, sin = 0.9 * jnp.cos(self.angle), 0.9 * jnp.sin(self.angle)
        rows = jnp.stack([cos, -sin], axis=-1), jnp.stack([sin, cos], axis=-1)
        blocks = jnp.stack(rows, axis=-2)  # (T, H, n / 2, 2, 2)
        T, heads, pairs = self.angle.shape
        placed = jnp.einsum("thkij,kl->thkilj", blocks, jnp.eye(pairs, dtype=blocks.dtype))
        return placed.reshape(T, heads, 2 * pairs, 2 * pairs)


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

    def kernel(self, **extras: Any) -> Problem:
        """Four heads of queries, two of keys."""
        q, k, W = self.normal(LENGTH, 4, N), self.normal(LENGTH, 2, N), self.normal(4 * P, D_TOKEN)
        system = KernelSystem(q, k, W, self.reset(), num_channels=P, **extras)
        return Problem(system, self.normal(LENGTH, D_TOKEN), None)


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


def _either_sign(g: _Draw) -> Problem:
    return g.around(Diagonal(g.log_decay(LENGTH, H, N, 1), jnp.sign(g.normal(LENGTH, H, N, 1))))


def _rank_two(g: _Draw) -> Problem:
    """Two terms written and two read per step, before the update."""
    B = OuterInput(
        g.normal(LENGTH, 2, 1, N),
        g.normal(LENGTH, 2, H, 1),
        g.normal(2 * H * P, D_TOKEN),
        rank=2,
    )
    c, gate = g.normal(LENGTH, 2, H, N), g.normal(LENGTH, 2, H, P)
    C = InnerOutput(c, gate, before_update=True, rank=2)
    A = Scalar(g.log_decay(LENGTH, H))
    return g.problem(System(A, B, C, reset=g.reset(), state_shape=(H, N, P)))


def _over_channels(g: _Draw) -> Problem:
    B, C = OuterInput(g.normal(LENGTH, H, N)), InnerOutput(g.normal(LENGTH, 1, P), over="p")
    A = Diagonal(g.log_decay(LENGTH, H, N, 1))
    return g.problem(System(A, B, C, reset=g.reset(), state_shape=(H, N, P)))


def _normalized(g: _Draw, eta: Normalizer) -> Problem:
    """Positive keys and queries, so that a sum of their products is not near 0."""
    b, c = (jnp.abs(g.normal(LENGTH, H, N)) for _ in range(2))
    B, C = OuterInput(b), InnerOutput(c)
    A = Scalar(g.log_decay(LENGTH, H))
    system = System(A, B, C, None, eta, g.reset(), state_shape=(H, N, P))
    h0 = jnp.abs(g.normal(*system.carried_shape))
    return Problem(system, g.normal(LENGTH, system.token_width), h0)


def _trapezoid(g: _Draw) -> Problem:
    """A complex state next to what was written in the step before (Mamba-3)."""
    A = Trapezoid(g.phases(LENGTH, H, N), jnp.abs(g.normal(LENGTH, H)))
    B, C = OuterInput(g.complex(LENGTH, H, 2 * N)), InnerOutput(g.complex(LENGTH, H, 2 * N))
    return g.problem(System(A, B, C, reset=g.reset(), state_shape=(H, 2 * N, P)))


def _momentum(g: _Draw) -> Problem:
    """A state and its momentum."""
    alpha, mu, beta = (jax.nn.sigmoid(g.normal(LENGTH, H)) for _ in range(3))
    A = Momentum(alpha, mu, beta, *(x[..., 0] for x in g.low_rank(1)))
    B, C = OuterInput(g.normal(LENGTH, H, 2 * N)), InnerOutput(g.normal(LENGTH, H, 2 * N))
    return g.problem(System(A, B, C, reset=g.reset(), state_shape=(H, 2 * N, P)))


def _gated(g: _Draw) -> Problem:
    """The derivative of a cell with four gates and two parts of its state (LSTM)."""
    parts, gates = 2, 4
    A = Gated(
        0.3 * g.normal(LENGTH, parts, gates, P),
        0.3 * g.normal(LENGTH, parts, parts, P),
        0.3 * g.normal(gates, 1, P, P),
    )
    shape = (1, parts * P, 1)
    return g.problem(System(A, EntryInput(), FirstEntries(P), reset=g.reset(), state_shape=shape))


def _moved_keys(g: _Draw) -> Problem:
    """Keys that a Householder-like matrix moves from step to step (PaTH)."""
    w = g.normal(LENGTH, 2, N, 1)
    w = w / jnp.linalg.norm(w, axis=2, keepdims=True)
    return g.kernel(transition=DiagonalPlusLowRank(jnp.zeros((1, 2, 1)), w, w))


_MAKERS: dict[str, Callable[[_Draw], Problem]] = {
    "scalar": lambda g: g.around(Scalar(g.log_decay(LENGTH, H))),
    "scalar, constant": lambda g: g.around(Scalar(-jnp.abs(g.normal(1, H)))),
    "diagonal per state": lambda g: g.around(Diagonal(g.log_decay(LENGTH, H, N, 1))),
    "diagonal per channel, n = 1": _channels,
    "diagonal, full": lambda g: g.around(Diagonal(g.log_decay(LENGTH, H, N, P))),
    "diagonal, factored": _factored,
    "diagonal of either sign": _either_sign,
    "complex diagonal": _complex,
    "complex diagonal, dense maps": _dense_maps,
    "diagonal plus rank 1": lambda g: g.around(
        DiagonalPlusLowRank(-jnp.abs(g.normal(LENGTH, H, 1)), *g.low_rank(1))
    ),
    "diagonal plus rank 2": lambda g: g.around(
        DiagonalPlusLowRank(-jnp.abs(g.normal(LENGTH, H, N)), *g.low_rank(2))
    ),
    "dense": lambda g: g.around(Dense(g.normal(LENGTH, H, N, N) / (2 * math.sqrt(N)))),
    "trapezoid": _trapezoid,
    "momentum": _momentum,
    "gated recurrent weights": _gated,
    "your own transition": lambda g: g.around(Turning(g.normal(LENGTH, H, N // 2))),
    "scalar, rank 2, before the update": _rank_two,
    "diagonal per state, read over p": _over_channels,
    "scalar, given normaliser": lambda g: _normalized(g, GivenNormalizer(g.normal(LENGTH, H))),
    "scalar, summed normaliser": lambda g: _normalized(g, SummedNormalizer(epsilon=0.1)),
    "kernel (softmax)": lambda g: g.kernel(),
    "kernel, window, sink, soft cap": lambda g: g.kernel(
        window=70, keep_first=2, sink=g.normal(4), soft_cap=4.0
    ),
    "kernel, decaying weights": lambda g: g.kernel(
        transition=Scalar(-jnp.abs(g.normal(LENGTH, 4)))
    ),
    "kernel, moved keys": _moved_keys,
}
STRUCTURES: dict[str, Callable[[np.random.Generator], Problem]] = {
    name: lambda rng, make=make: make(_Draw(rng)) for name, make in _MAKERS.items()
}
