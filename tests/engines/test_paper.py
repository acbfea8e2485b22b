"""The paper's results, stated on systems (Sieber et al. 2024, arXiv:2405.15731)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    Diagonal,
    GivenNormalizer,
    InnerOutput,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    pad_state,
    rescale,
)
from tests import reference_loop as reference
from tests.engine_runs import compiled_scan
from tests.systems_zoo import Draw

L, H, N, P = 12, 2, 3, 4
METHODS = ("sequential", "associative", "chunked", "materialized")


def attention(q, k, v, log_eta=None) -> np.ndarray:
    """Quadratic, as in the textbook: y_t = Σ_{s ≤ t} (q_t·k_s) v_s / η_t, η the sum by default."""
    q, k, v = (np.asarray(x) for x in (q, k, v))
    y = np.zeros_like(v)
    for h in range(H):
        scores = np.tril(q[:, h] @ k[:, h].T)
        eta = scores.sum(axis=1) if log_eta is None else np.exp(log_eta[:, h])
        y[:, h] = scores @ v[:, h] / eta[:, None]
    return y.reshape(L, -1)


@pytest.fixture
def signals():
    """Positive features of queries and keys, values, and a normaliser of the token alone."""
    g = Draw("paper", L, 0)
    q, k = g.positive(L, H, N), g.positive(L, H, N)
    return q, k, g.normal(L, H * P), g.normal(L, H)


def dsf_form(q, k, log_eta) -> System:
    """Λ_t = (η_{t−1}/η_t) I, B_t = (1/η_t) k_t ⊗ I, C_t = q_tᵀ ⊗ I, with η before the start 1."""
    ratio = -jnp.diff(log_eta, axis=0, prepend=jnp.zeros((1, H)))
    B = OuterInput(k, jnp.exp(-log_eta)[:, :, None])
    return System(Scalar(ratio), B, InnerOutput(q), state_shape=(H, N, P))


def unnormalised(q, k, eta=None) -> System:
    """Λ_t = I, B_t = k_t ⊗ I; the division by η_t waits until the read-out."""
    A = Scalar(jnp.zeros((1, H)))
    return System(A, OuterInput(k), InnerOutput(q), eta=eta, state_shape=(H, N, P))


@pytest.mark.parametrize(
    "method",
    ["chunked", *(pytest.param(x, marks=pytest.mark.slow) for x in METHODS if x != "chunked")],
)
@pytest.mark.parametrize(
    "normaliser", [pytest.param("linear", marks=pytest.mark.slow), "normalized"]
)
def test_lemma_1(signals, normaliser, method):
    """DSF form ≡ textbook attention ≡ the un-normalised form, a change of coordinates T_t = η_t."""
    q, k, v, log_eta = signals
    if normaliser == "linear":
        log_eta = jnp.log(jnp.einsum("thn,thn->th", q, jnp.cumsum(k, axis=0)))
        lazy = unnormalised(q, k, SummedNormalizer())
        expected = attention(q, k, v.reshape(L, H, P))
    else:
        lazy = unnormalised(q, k, GivenNormalizer(log_eta))
        expected = attention(q, k, v.reshape(L, H, P), np.asarray(log_eta))
    dsf = dsf_form(q, k, log_eta)
    free = rescale(dsf, log_eta)
    assert isinstance(free.A, Scalar) and isinstance(free.C, InnerOutput)
    assert isinstance(free.B, OuterInput) and free.B.scale is not None
    np.testing.assert_allclose(free.A.log_a, 0, atol=1e-13)
    np.testing.assert_allclose(free.B.scale, 1, rtol=1e-13)
    assert free.C.gate is not None
    np.testing.assert_allclose(free.C.gate[:, :, 0], jnp.exp(-log_eta), rtol=1e-13)
    for system in (dsf, free, lazy):
        assert reference.error(compiled_scan(system, v, method=method)[0], expected) < 1e-12


def test_lemma_2(signals):
    """What attention with a state of n does, attention with a larger one can do."""
    q, k, v, log_eta = signals
    small = unnormalised(q, k, GivenNormalizer(log_eta))
    large = pad_state(small, 4 * N)
    assert large.num_states == 4 * small.num_states
    assert reference.error(compiled_scan(large, v)[0], compiled_scan(small, v)[0]) < 1e-13


@pytest.mark.parametrize("a", [0.3, 1.0, 8.0])
def test_gates(signals, a):
    """A forget gate σ(−z)^a is the decay e^{−a softplus(z)} of a discretised system."""
    q, k, v, z = signals
    z = 4 * z
    gate, decay = a * jax.nn.log_sigmoid(-z), -a * jax.nn.softplus(z)
    assert reference.error(gate, decay) < 1e-14
    power = Scalar(jnp.log(jax.nn.sigmoid(-z) ** a))
    systems = [
        dataclasses.replace(unnormalised(q, k), A=A) for A in (power, Scalar(gate), Scalar(decay))
    ]
    y = [compiled_scan(system, v)[0] for system in systems]
    assert reference.error(y[0], y[2]) < 1e-12
    assert reference.error(y[1], y[2]) < 1e-13


def ssd(q, k, step, a) -> System:
    """A_t = e^{−Δ_t a} I, B_t = Δ_t k_t ⊗ I, C_t = q_tᵀ ⊗ I; Δ (L, H), a (H,)."""
    B = OuterInput(k, step[:, :, None])
    return System(Scalar(-step * a[None]), B, InnerOutput(q), state_shape=(H, N, P))


def test_ssd_without_decay_is_linear_attention(signals):
    """Δ ≡ 1 and a → 0: linear attention without its normaliser, linearly in a."""
    q, k, v, _ = signals
    linear = compiled_scan(unnormalised(q, k), v)[0]
    one = jnp.ones((L, H))
    errors = [
        reference.error(compiled_scan(ssd(q, k, one, jnp.full(H, a)), v)[0], linear)
        for a in (1e-3, 1e-6, 0.0)
    ]
    assert 1e-5 < errors[0] < 1e-2
    assert abs(errors[0] / errors[1] / 1e3 - 1) < 1e-2
    assert errors[2] == 0


@pytest.mark.slow
def test_s6_with_equal_states_is_ssd():
    """A_{i,j} the same for every state i: the scalar structure with one head per channel."""
    g = Draw("s6", L, 0)
    q, k, u = g.normal(L, 1, N), g.normal(L, 1, N), g.normal(L, P)
    step, a = g.positive(L, P), g.positive(P)
    rate = jnp.broadcast_to(-a, (1, N, P))
    s6 = System(
        Diagonal.factored(step[:, None], rate),
        OuterInput(k, step[:, None]),
        InnerOutput(q),
        state_shape=(1, N, P),
    )
    per_channel = System(
        Scalar(-step * a[None]),
        OuterInput(k, step[:, :, None]),
        InnerOutput(q),
        state_shape=(P, N, 1),
    )
    for method in METHODS:
        y, h = compiled_scan(s6, u, method=method)
        y_ssd, h_ssd = compiled_scan(per_channel, u, method=method)
        assert reference.error(y, y_ssd) < 1e-13
        assert reference.error(h[0].T, h_ssd[:, :, 0]) < 1e-13
