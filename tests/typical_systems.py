"""Systems of any size with the decays and keys that architectures have; the same in every run.

``system(name, length, shape)`` builds one in float64. The token is the value, so nothing but the
recurrence and its read-out contributes to an error.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    DiagonalPlusLowRank,
    GivenNormalizer,
    InnerOutput,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    ValueSkip,
)
from dsfjax.core.transitions import Transition
from tests.systems_zoo import Draw

Shape = tuple[int, int, int]


def step_size(g: Draw, *shape: int) -> Array:
    """Δ, log-uniform between 0.001 and 0.1."""
    return jnp.exp(g.uniform(float(np.log(1e-3)), float(np.log(1e-1)), *shape))


def unit(x: Array, axis: int) -> Array:
    return x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def _with_keys(g: Draw, A: Transition, shape: Shape) -> System:
    """Keys and queries of variance 1/n, one group."""
    b, c = (g.normal(g.length, 1, shape[1]) / np.sqrt(shape[1]) for _ in range(2))
    return System(A, OuterInput(b), InnerOutput(c), state_shape=shape)


def linear_attention(g: Draw, shape: Shape) -> System:
    heads, n, _ = shape
    b, c = (1 + jax.nn.elu(g.normal(g.length, heads, n)) for _ in range(2))
    A = Scalar(jnp.zeros((1, heads)))
    return System(A, OuterInput(b), InnerOutput(c), eta=SummedNormalizer(), state_shape=shape)


def normalized_attention(g: Draw, shape: Shape) -> System:
    heads, n, _ = shape
    b, c = (g.normal(g.length, heads, n) for _ in range(2))
    eta = GivenNormalizer(g.normal(g.length, heads))
    A = Scalar(jnp.zeros((1, heads)))
    return System(A, OuterInput(b), InnerOutput(c), eta=eta, state_shape=shape)


def ssd(g: Draw, shape: Shape) -> System:
    heads, n, _ = shape
    delta = step_size(g, g.length, heads)
    b, c = (g.normal(g.length, 1, n) for _ in range(2))
    A, skip = Scalar(-delta * g.uniform(1, 16, 1, heads)), ValueSkip(jnp.ones((1, heads, 1)))
    return System(A, OuterInput(b, delta[..., None]), InnerOutput(c), skip, state_shape=shape)


def gla(g: Draw, shape: Shape) -> System:
    heads, n, _ = shape
    log_a = jax.nn.log_sigmoid(g.normal(g.length, heads, n, 1)) / 16
    return _with_keys(g, Diagonal(log_a), shape)


def s6(g: Draw, shape: Shape) -> System:
    heads, n, p = shape
    delta = step_size(g, g.length, heads, p)
    rate = jnp.broadcast_to(-jnp.arange(1.0, n + 1)[None, :, None], shape)
    b, c = (g.normal(g.length, 1, n) for _ in range(2))
    A, skip = Diagonal.factored(delta, rate), ValueSkip(jnp.ones((1, heads, 1)))
    return System(A, OuterInput(b, delta), InnerOutput(c), skip, state_shape=shape)


def s6_explicit(g: Draw, shape: Shape) -> System:
    """The decay as one array, varying over states and channels."""
    system = s6(g, shape)
    assert isinstance(system.A, Diagonal)
    return System(Diagonal(system.A.log_decay()), system.B, system.C, state_shape=shape)


def rg_lru(g: Draw, shape: Shape) -> System:
    heads, _, p = shape
    rate = jax.nn.softplus(g.uniform(-9.0, -4.3, 1, heads, 1, p))
    log_a = -8 * rate * jax.nn.sigmoid(g.normal(g.length, heads, 1, p))
    scale = jnp.sqrt(-jnp.expm1(2 * log_a[:, :, 0]))
    B = OuterInput(None, scale)
    return System(Diagonal(log_a), B, InnerOutput(), state_shape=(heads, 1, p))


def qlstm(g: Draw, shape: Shape) -> System:
    heads, _, p = shape
    log_a = jax.nn.log_sigmoid(2 + g.normal(g.length, heads, 1, p))
    gates = (jax.nn.sigmoid(g.normal(g.length, heads, p)) for _ in range(2))
    B, C = OuterInput(None, next(gates)), InnerOutput(None, next(gates))
    return System(Diagonal(log_a), B, C, state_shape=(heads, 1, p))


def s4d(g: Draw, shape: Shape) -> System:
    heads, n, _ = shape
    step = np.asarray(step_size(g, 1, heads, 1))
    A = Diagonal(jnp.asarray(step * (-0.5 + 1j * np.pi * np.arange(n)))[..., None])
    B = OuterInput(jnp.asarray(step * np.ones(n, complex)))
    C = InnerOutput(g.complex(1, heads, n), None, True)
    return System(A, B, C, state_shape=(heads, n, 1))


def lru(g: Draw, shape: Shape) -> System:
    n, p = shape[1:]
    radius = np.sqrt(g.uniform(0.81, 0.998, 1, 1, n, 1))
    angle = np.asarray(g.uniform(0, np.pi / 10, 1, 1, n, 1))
    gain = np.sqrt(1 - radius[:, 0] ** 2) / np.sqrt(2 * p)
    A = Diagonal(jnp.asarray(np.log(radius) + 1j * angle))
    B = DenseInput(jnp.asarray(gain * np.asarray(g.complex(1, n, p))))
    C = DenseOutput(jnp.asarray(np.asarray(g.complex(1, p, n)) / np.sqrt(n)))
    return System(A, B, C, state_shape=(1, n, 1))


def delta_rule(g: Draw, shape: Shape, gain: float = 1.0) -> System:
    """A = I − β k kᵀ, the key normalised."""
    heads, n, _ = shape
    k = unit(g.normal(g.length, heads, n), 2)
    beta = gain * jax.nn.sigmoid(g.normal(g.length, heads, 1))
    A = DiagonalPlusLowRank(jnp.zeros((1, heads, 1)), (beta * k)[..., None], k[..., None])
    return System(A, OuterInput(beta * k), InnerOutput(_query(g, shape)), state_shape=shape)


def delta_rule_negative(g: Draw, shape: Shape) -> System:
    """β up to 2: eigenvalues between −1 and 1."""
    return delta_rule(g, shape, 2.0)


def gated_delta_rule(g: Draw, shape: Shape) -> System:
    """A = α (I − β k kᵀ)."""
    heads, n, _ = shape
    k = unit(g.normal(g.length, heads, n), 2)
    beta = jax.nn.sigmoid(g.normal(g.length, heads, 1))
    log_a = -step_size(g, g.length, heads, 1) * g.uniform(1, 16, 1, heads, 1)
    A = DiagonalPlusLowRank(log_a, (jnp.exp(log_a) * beta * k)[..., None], k[..., None])
    return System(A, OuterInput(beta * k), InnerOutput(_query(g, shape)), state_shape=shape)


def kda(g: Draw, shape: Shape) -> System:
    """The gated delta rule with a decay per state: A = (I − β k kᵀ) diag(α)."""
    heads, n, _ = shape
    k = unit(g.normal(g.length, heads, n), 2)
    beta = jax.nn.sigmoid(g.normal(g.length, heads, 1))
    log_a = -step_size(g, g.length, heads, n) * g.uniform(1, 16, 1, heads, 1)
    A = DiagonalPlusLowRank(log_a, (beta * k)[..., None], (jnp.exp(log_a) * k)[..., None])
    return System(A, OuterInput(beta * k), InnerOutput(_query(g, shape)), state_shape=shape)


def rwkv7(g: Draw, shape: Shape) -> System:
    """A = diag(w) − (a ⊙ κ) κᵀ with κ normalised and w ≥ exp(−exp(−1/2))."""
    heads, n, _ = shape
    log_w = -np.exp(-0.5) * jax.nn.sigmoid(g.normal(g.length, heads, n))
    kappa = unit(g.normal(g.length, heads, n), 2)
    rate = jax.nn.sigmoid(g.normal(g.length, heads, n))
    A = DiagonalPlusLowRank(log_w, (rate * kappa)[..., None], kappa[..., None])
    b = g.normal(g.length, heads, n) / np.sqrt(n)
    return System(A, OuterInput(b), InnerOutput(_query(g, shape)), state_shape=shape)


def dense(g: Draw, shape: Shape) -> System:
    """Matrices of spectral radius about 0.9."""
    heads, n, _ = shape
    return _with_keys(g, Dense(0.9 / np.sqrt(n) * g.normal(g.length, heads, n, n)), shape)


def _query(g: Draw, shape: Shape) -> Array:
    heads, n, _ = shape
    return g.normal(g.length, heads, n) / np.sqrt(n)


Builder = Callable[[Draw, Shape], System]
BUILDERS: dict[str, Builder] = {
    build.__name__: build
    for build in (
        linear_attention,
        normalized_attention,
        ssd,
        gla,
        s6,
        s6_explicit,
        rg_lru,
        qlstm,
        s4d,
        lru,
        delta_rule,
        delta_rule_negative,
        gated_delta_rule,
        kda,
        rwkv7,
        dense,
    )
}
NAMES = tuple(BUILDERS)


def system(name: str, length: int, shape: Shape = (2, 4, 3), seed: int = 0) -> System:
    """The system of a name, in float64; its state shape is ``shape`` as far as it has the axes."""
    return BUILDERS[name](Draw(name, length, seed), shape)
