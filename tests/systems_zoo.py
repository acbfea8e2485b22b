"""Random systems of every structure, the same in every run: one collection for all tests.

``system(name, length)`` builds one; ``NAMES`` lists them, ``MAIN`` one or two per structure.
Heads, state expansion and channels are all different, so that a swapped axis shows.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import pytest
from jax import Array

from dsfjax import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    DiagonalPlusLowRank,
    GivenNormalizer,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    TokenSkip,
    ValueSkip,
)
from dsfjax.core import DenseSkip, Transition
from tests.draw import Draw

H, N, P, D = 2, 3, 4, 5  # heads, state expansion, value channels, token width
SHAPE = (H, N, P)


def _outer(g: Draw) -> OuterInput:
    return OuterInput(g.normal(g.length, 1, N), g.normal(g.length, H, P), g.normal(H * P, D))


def _inner(g: Draw) -> InnerOutput:
    return InnerOutput(g.normal(g.length, H, N), g.normal(g.length, H, P))


def _with(g: Draw, A: Transition, **parts: Any) -> System:
    """A system around ``A`` with every structured part and resets, but for the given parts."""
    system = System(
        A, _outer(g), _inner(g), ValueSkip(g.normal(1, H, P)), None, g.reset(), state_shape=SHAPE
    )
    return dataclasses.replace(system, **parts)


def _positive_maps(g: Draw, groups: int) -> dict[str, Any]:
    b, c = (g.positive(g.length, groups, N) for _ in range(2))
    return dict(B=OuterInput(b, None, g.normal(H * P, D)), C=InnerOutput(c))


def scalar(g: Draw) -> System:
    return _with(g, Scalar(g.log_decay(g.length, H)))


def scalar_no_reset(g: Draw) -> System:
    return _with(g, Scalar(g.log_decay(g.length, H)), reset=None, D=None)


def scalar_constant(g: Draw) -> System:
    """The decay is constant in time, the rest varies."""
    return _with(g, Scalar(g.log_decay(1, H)))


def scalar_lti(g: Draw) -> System:
    """Nothing varies in time: the system has length 1 and fits any number of steps."""
    B, C = OuterInput(g.normal(1, H, N)), InnerOutput(g.normal(1, 1, N), g.normal(1, H, 1))
    skip = TokenSkip(g.normal(1, H * P))
    return System(Scalar(g.log_decay(1, H)), B, C, skip, state_shape=SHAPE)


def scalar_groups(g: Draw) -> System:
    """Four heads whose b and c come in two groups."""
    B = OuterInput(g.normal(g.length, 2, N), g.normal(g.length, 4, 1), g.normal(4 * P, D))
    C, A = InnerOutput(g.normal(g.length, 2, N)), Scalar(g.log_decay(g.length, 4))
    return System(
        A, B, C, ValueSkip(g.normal(g.length, 4, 1)), None, g.reset(), state_shape=(4, N, P)
    )


def scalar_mixed_groups(g: Draw) -> System:
    """b in two groups, c of its own for each of the four heads, one of them constant."""
    B, C = OuterInput(g.normal(g.length, 2, N)), InnerOutput(g.normal(1, 4, N))
    A = Scalar(g.log_decay(g.length, 4))
    return System(A, B, C, reset=g.reset(), state_shape=(4, N, P))


def scalar_summed(g: Draw) -> System:
    """A normaliser summed with the state, as linear attention has."""
    return _with(g, Scalar(jnp.zeros((1, H))), **_positive_maps(g, 1), eta=SummedNormalizer())


def scalar_summed_decay(g: Draw) -> System:
    A = Scalar(g.log_decay(g.length, H))
    return _with(g, A, **_positive_maps(g, H), eta=SummedNormalizer())


def scalar_given(g: Draw) -> System:
    """A normaliser computed from the token, as normalized attention has."""
    return _with(g, Scalar(g.log_decay(1, H)), eta=GivenNormalizer(g.normal(g.length, H)))


def scalar_extremes(g: Draw) -> System:
    """Decays of exactly 0 and exactly 1 among others."""
    return _with(g, Scalar(g.log_decay_with_extremes(g.length, H)))


def scalar_complex(g: Draw) -> System:
    return _with(g, Scalar(g.complex_log_decay(g.length, H)))


def diagonal_per_state(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay(g.length, H, N, 1)))


def diagonal_per_state_constant(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay(1, H, N, 1)))


def diagonal_per_channel(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay(g.length, H, 1, P)))


def diagonal_full(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay(g.length, H, N, P)))


def diagonal_per_head(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay(g.length, H, 1, 1)))


def diagonal_factored(g: Draw) -> System:
    """log a = Δ_t × A with a decay per state and channel (S6)."""
    A = Diagonal.factored(g.positive(g.length, H, P), g.log_decay(H, N, P))
    return _with(g, A)


def diagonal_factored_per_state(g: Draw) -> System:
    A = Diagonal.factored(g.positive(g.length, H, 1), g.log_decay(H, N, 1))
    return _with(g, A)


def diagonal_gated(g: Draw) -> System:
    """One state per channel, no b and no c: a gated RNN."""
    A = Diagonal(g.log_decay(g.length, 1, 1, P))
    B = OuterInput(scale=g.normal(g.length, 1, P), W=g.normal(P, D))
    C = InnerOutput(gate=g.normal(g.length, 1, P))
    return System(A, B, C, reset=g.reset(), state_shape=(1, 1, P))


def diagonal_summed(g: Draw) -> System:
    A = Diagonal(g.log_decay(g.length, H, N, 1))
    return _with(g, A, **_positive_maps(g, 1), eta=SummedNormalizer())


def diagonal_given(g: Draw) -> System:
    A = Diagonal(g.log_decay(g.length, H, N, P))
    return _with(g, A, eta=GivenNormalizer(g.normal(1, H)))


def diagonal_extremes(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay_with_extremes(g.length, H, N, 1)))


def diagonal_extremes_full(g: Draw) -> System:
    return _with(g, Diagonal(g.log_decay_with_extremes(g.length, H, N, P)))


def complex_per_state(g: Draw) -> System:
    A = Diagonal(g.complex_log_decay(g.length, H, N, 1))
    B, C = OuterInput(g.complex(g.length, 1, N)), InnerOutput(g.complex(g.length, H, N))
    return _with(g, A, B=B, C=C, D=TokenSkip(g.normal(1, H * P)))


def complex_pairs(g: Draw) -> System:
    """Constant in time but for a reset, one of each conjugate pair, p = 1 (S4D)."""
    A = Diagonal(g.complex_log_decay(1, P, N, 1))
    B, C = OuterInput(g.complex(1, P, N)), InnerOutput(g.complex(1, P, N), None, True)
    return System(A, B, C, TokenSkip(g.normal(1, P)), None, g.reset(), state_shape=(P, N, 1))


def complex_lti(g: Draw) -> System:
    """Dense complex maps around a constant diagonal (LRU, S5)."""
    A = Diagonal(g.complex_log_decay(1, 1, N, 1))
    B, C = DenseInput(g.complex(1, N, D)), DenseOutput(g.complex(1, 6, N), True)
    return System(A, B, C, DenseSkip(g.normal(1, 6, D)), state_shape=(1, N, 1))


def dense_maps(g: Draw) -> System:
    """B, C and D are matrices that vary in time."""
    states = H * N * P
    return System(
        Diagonal(g.log_decay(g.length, H, N, P)),
        DenseInput(g.normal(g.length, states, D)),
        DenseOutput(g.normal(g.length, 6, states)),
        DenseSkip(g.normal(g.length, 6, D)),
        reset=g.reset(),
        state_shape=SHAPE,
    )


def dense_input(g: Draw) -> System:
    A, B = Scalar(g.log_decay(g.length, H)), DenseInput(g.normal(1, H * N * P, D))
    return _with(g, A, B=B, D=None)


def dense_output(g: Draw) -> System:
    A, C = Scalar(g.log_decay(g.length, H)), DenseOutput(g.normal(1, 6, H * N * P))
    return _with(g, A, C=C, D=None)


def low_rank(g: Draw) -> System:
    """diag(a) − W S Zᵀ of rank 2."""
    w, z = (0.4 * g.contraction(g.length, H, N, 2) for _ in range(2))
    A = DiagonalPlusLowRank(-g.positive(g.length, H, N), w, z, scale=g.normal(g.length, H, 2))
    return _with(g, A)


def low_rank_delta(g: Draw) -> System:
    """I − β k kᵀ in the layout of keys, which the heads share: the broadcast decay, rank 1."""
    k = g.positive(g.length, 1, N)
    k = k / jnp.linalg.norm(k, axis=2, keepdims=True)
    beta = g.uniform(0, 1, g.length, H, 1)
    A = DiagonalPlusLowRank(jnp.zeros((1, H, 1)), k, k, scale=beta)
    return _with(g, A, B=OuterInput(k, beta, g.normal(H * P, D)))


def low_rank_constant(g: Draw) -> System:
    w, z = (0.4 * g.contraction(1, H, N, 1) for _ in range(2))
    return _with(
        g, DiagonalPlusLowRank(-g.positive(1, H, 1), w, z), eta=GivenNormalizer(g.normal(1, H))
    )


def dense(g: Draw) -> System:
    return _with(g, Dense(g.contraction(g.length, H, N, N)))


def dense_shared(g: Draw) -> System:
    """One constant matrix for all heads, and a summed normaliser."""
    A = Dense(jnp.abs(g.contraction(1, N, N)))
    return _with(g, A, **_positive_maps(g, H), eta=SummedNormalizer())


def dense_complex(g: Draw) -> System:
    A = Dense(0.5 * g.complex(g.length, H, N, N) / N)
    return _with(g, A, C=InnerOutput(g.complex(g.length, H, N), None, True))


def _signs(g: Draw, *shape: int) -> Array:
    """About a third negative."""
    return jnp.where(g.uniform(0, 1, *shape) < 0.35, -1.0, 1.0)


def _ranked(g: Draw, **static: Any) -> dict[str, Any]:
    """Three writes and two reads per step, in groups, with scales, gates and a value map."""
    scale, W = g.normal(g.length, 3, H, P), g.normal(3 * H * P, D)
    gate = g.normal(g.length, 2, H, 1)
    B = OuterInput(g.normal(g.length, 3, 1, N), scale, W, 3)
    C = InnerOutput(g.normal(g.length, 2, H, N), gate, rank=2, **static)
    return dict(B=B, C=C, D=DenseSkip(g.normal(1, 2 * H * P, D)))


def scalar_ranked(g: Draw) -> System:
    """Rank-3 input, rank-2 output that reads before the update, decays of either sign."""
    A = Scalar(g.log_decay(g.length, H), _signs(g, g.length, H))
    return _with(g, A, **_ranked(g, before_update=True))


def low_rank_ranked(g: Draw) -> System:
    """Rank-3 input, rank-2 output, groups of W and Z, signs, before the update."""
    w, z = (0.4 * g.contraction(g.length, groups, N, 2) for groups in (1, H))
    A = DiagonalPlusLowRank(-g.positive(g.length, H, N), w, z, _signs(g, g.length, H, 1))
    return _with(g, A, **_ranked(g, before_update=True))


def diagonal_ranked(g: Draw) -> System:
    """The same around a full diagonal, which runs step by step."""
    A = Diagonal(g.log_decay(g.length, H, N, P), _signs(g, g.length, H, N, P))
    return _with(g, A, **_ranked(g))


def diagonal_signed(g: Draw) -> System:
    """A factored decay with a sign per state, read before the update."""
    A = Diagonal.factored(g.positive(g.length, H, P), g.log_decay(H, N, P))
    A = dataclasses.replace(A, sign=_signs(g, 1, H, N, 1))
    c, gate = g.normal(g.length, H, N), g.normal(g.length, H, P)
    return _with(g, A, C=InnerOutput(c, gate, before_update=True))


def over_channels(g: Draw) -> System:
    """The value axis is contracted: low rank on n, and outputs (H, n)."""
    w, z = (0.4 * g.contraction(g.length, H, N, 1) for _ in range(2))
    A = DiagonalPlusLowRank(-g.positive(g.length, H, N), w, z)
    C = InnerOutput(g.normal(g.length, H, P), g.normal(g.length, H, N), over="p")
    return _with(g, A, C=C, D=None)


def scalar_over_channels(g: Draw) -> System:
    C = InnerOutput(g.normal(g.length, 1, P), over="p", before_update=True)
    return _with(g, Scalar(g.log_decay(g.length, H)), C=C, D=None)


def scalar_floor(g: Draw) -> System:
    """A normaliser with modulus, floor and epsilon, as mLSTM has."""
    eta = SummedNormalizer(g.positive(g.length, H), True, 1e-2)
    return _with(g, Scalar(g.log_decay(g.length, H)), eta=eta)


def scalar_bonus(g: Draw) -> System:
    """The present value on top of the state before it, as RWKV-4 has."""
    parts = _positive_maps(g, 1)
    C = InnerOutput(parts["C"].c, g.normal(g.length, H, P), before_update=True)
    eta = SummedNormalizer(bonus=g.positive(g.length, H))
    return _with(g, Scalar(g.log_decay(g.length, H)), B=parts["B"], C=C, eta=eta)


def gated_bonus(g: Draw) -> System:
    """The same with one state per head and channel."""
    B, scale = OuterInput(g.positive(g.length, 2, 1)), g.normal(g.length, 2, 1)
    B = dataclasses.replace(B, scale=scale)
    C, eta = InnerOutput(before_update=True), SummedNormalizer(bonus=g.positive(1, 2))
    A = Scalar(g.log_decay(g.length, 2))
    return System(A, B, C, None, eta, g.reset(), state_shape=(2, 1, 3))


Builder = Callable[[Draw], System]
STRUCTURES: tuple[Builder, ...] = (
    scalar,
    scalar_constant,
    scalar_groups,
    scalar_summed,
    scalar_given,
    scalar_extremes,
    diagonal_per_state,
    diagonal_per_channel,
    diagonal_full,
    diagonal_factored,
    diagonal_gated,
    complex_per_state,
    complex_lti,
    low_rank,
    dense,
    dense_maps,
    scalar_ranked,
    low_rank_ranked,
    diagonal_signed,
    scalar_floor,
)
# The same structures with other parts around them: what differs is before and after the engine.
VARIANTS: tuple[Builder, ...] = (
    scalar_no_reset,
    scalar_lti,
    scalar_mixed_groups,
    scalar_summed_decay,
    scalar_complex,
    diagonal_per_state_constant,
    diagonal_per_head,
    diagonal_factored_per_state,
    diagonal_summed,
    diagonal_given,
    diagonal_extremes,
    diagonal_extremes_full,
    complex_pairs,
    dense_input,
    dense_output,
    low_rank_delta,
    low_rank_constant,
    dense_shared,
    dense_complex,
    diagonal_ranked,
    over_channels,
    scalar_over_channels,
    scalar_bonus,
    gated_bonus,
)
BUILDERS = {build.__name__: build for build in STRUCTURES + VARIANTS}
NAMES = tuple(BUILDERS)
MAIN = tuple(build.__name__ for build in STRUCTURES)


def slow_unless(fast: Iterable[str], names: Iterable[str] = NAMES) -> list[Any]:
    """``names`` as parameters, those that are not in ``fast`` marked slow."""
    fast = frozenset(fast)
    return [x if x in fast else pytest.param(x, marks=pytest.mark.slow) for x in names]


# All of them; the variations beyond the structures run with the slow tests.
EVERY = slow_unless(MAIN)
# One per engine and way of it: where the parts around the recurrence make no difference.
FEW = (
    "scalar",
    "scalar_summed",
    "diagonal_full",
    "diagonal_factored",
    "complex_per_state",
    "low_rank",
    "dense",
)


def system(name: str, length: int, seed: int = 0) -> System:
    """The system of a name, in float64 (complex128)."""
    return BUILDERS[name](Draw(name, length, seed))


def tokens(system: System | KernelSystem, length: int, seed: int = 0) -> Array:
    """Tokens (L, d) that fit the system."""
    return Draw("tokens", length, seed).normal(length, system.token_width)


def state(system: System, seed: int = 0) -> Array:
    """An initial state; its z is positive, as a normaliser needs."""
    g = Draw("state", 1, seed)
    if isinstance(system.eta, SummedNormalizer):
        return g.positive(*system.carried_shape)
    draw = g.complex if system.is_complex else g.normal
    return draw(*system.carried_shape)


def kernel_system(length: int, seed: int = 0, *, with_reset: bool = True) -> KernelSystem:
    """Softmax attention with four heads in two groups."""
    g = Draw("kernel", length, seed)
    q, k = g.normal(length, 4, N), g.normal(length, 2, N)
    W = g.normal(4 * P, D)
    return KernelSystem(q, k, W, g.reset() if with_reset else None, num_channels=P)


SHARED = ("multi_query", "shared", "shared_wall")  # heads that share values
KERNELS = ("window", "streaming", "forgetting", "alibi", "everything", "wall", "path", "turning")
KERNELS += SHARED


def kernel_variant(name: str, length: int, *, with_reset: bool = True) -> KernelSystem:
    """Attention with a window, first steps, decays (0 too), a soft cap, sinks, moving keys."""
    g = Draw(name, length, 1)
    log_a = g.log_decay(length, 4).at[length // 2, 1].set(-jnp.inf)
    slopes = -(2.0 ** -jnp.arange(1.0, 5.0))[None]
    w = g.normal(length, 2, N)
    w = w / jnp.linalg.norm(w, axis=2, keepdims=True)
    beta = g.positive(length, 2, 1)
    more: dict[str, Any] = {
        "window": {"window": 3, "soft_cap": 1.5},
        "streaming": {"window": 3, "keep_first": 2, "transition": Scalar(log_a)},
        "forgetting": {"transition": Scalar(log_a)},
        "alibi": {"transition": Scalar(slopes), "sink": g.normal(4)},
        "everything": {
            "transition": Scalar(log_a),
            "sink": g.normal(4),
            "soft_cap": 2.0,
            "window": max(2, length // 3),
        },
        # A decay per feature and query head; one per group; any matrices, constant in time.
        "wall": {
            "transition": Diagonal(g.log_decay(length, 4, N, 1)),
            "window": length // 2 - 1,
            "keep_first": 2,
        },
        "path": {
            "transition": DiagonalPlusLowRank(jnp.zeros((1, 2, 1)), w, w, scale=beta),
            "log_decay": log_a,
            "soft_cap": 3.0,
            "sink": g.normal(4),
        },
        "turning": {"transition": Dense(g.contraction(1, 2, N, N))},
        # Fewer heads of values than of keys, as many, and fewer again: its keys are those of heads.
        "multi_query": {
            "value_heads": 1,
            "W": g.normal(P, D),
            "transition": Scalar(log_a),
            "window": max(2, length // 3),
            "sink": g.normal(4),
        },
        "shared": {"value_heads": 2, "W": g.normal(2 * P, D), "window": 5, "keep_first": 2},
        "shared_wall": {
            "value_heads": 2,
            "W": g.normal(2 * P, D),
            "transition": Diagonal(g.log_decay(length, 4, N, 1)),
        },
    }[name]
    return dataclasses.replace(kernel_system(length, with_reset=with_reset), **more)
