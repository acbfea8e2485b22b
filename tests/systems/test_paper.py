"""Results of arXiv:2405.15731, on the architectures themselves."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import materialize, scan, systems, to_dense
from dsfjax.systems.softmax_attention import taylor_system
from tests.reference_loop import error
from tests.systems.small import D_MODEL, as_numpy, build, perturbed, tokens

LENGTH = 12


def run(arch: Any, params: Any, u: Any) -> Any:
    return jax.jit(lambda p, u: scan(arch.system(p, u), u)[0])(params, u)


@functools.partial(jax.jit, static_argnames=("order", "symmetric"))
def run_taylor(params: Any, u: Any, order: int, symmetric: bool = True, reset: Any = None) -> Any:
    return scan(taylor_system(params, u, order, symmetric=symmetric, reset=reset), u)[0]


def test_s6_with_equal_states_is_ssd_with_one_head_per_channel() -> None:
    s6, ssd = build("s6"), build("ssd", num_heads=D_MODEL)
    a = perturbed(s6)
    rates = jnp.linspace(-1.0, 1.0, D_MODEL)
    a = a._replace(A_log=jnp.tile(rates[:, None], (1, 3)))
    b = perturbed(ssd)._replace(
        W_v=jnp.eye(D_MODEL)[:, None, :],
        W_b=a.W_b[None],
        W_c=a.W_c[None],
        W_dt=a.W_dt_up @ a.W_dt_down,
        bias_dt=a.bias_dt,
        A_log=rates,
        D=a.D,
    )
    u = tokens(LENGTH)
    assert error(run(s6, a, u), run(ssd, b, u)) < 1e-13


def test_ssd_without_decay_and_with_unit_steps_is_linear_attention_without_normalizer() -> None:
    ssd = build("ssd", num_groups=2)
    params, u = perturbed(ssd), tokens(LENGTH)
    signals = ssd.signals(params, u)
    signals = signals._replace(delta=jnp.ones_like(signals.delta))
    v, b, c = (np.asarray(x) for x in (signals.v, signals.b, signals.c))
    attention = np.tril(np.einsum("thn,shn->hts", c, b))
    reference = np.einsum("hts,shp->thp", attention, v).reshape(LENGTH, -1)

    @jax.jit
    def with_rate(log_a: Any) -> Any:
        still = params._replace(A_log=jnp.full(2, log_a), D=jnp.zeros(2))
        return scan(ssd.assemble(still, signals), ssd.values(signals))[0]

    errors = [error(with_rate(log_a), reference) for log_a in (-5.0, -15.0, -40.0)]
    assert errors[0] > 1e-3 > errors[1] > 1e-8
    assert errors[2] < 1e-14


def test_ssd_with_unit_steps_is_the_time_invariant_decay() -> None:
    ssd = build("ssd")
    params, u = perturbed(ssd), tokens(LENGTH)
    signals = ssd.signals(params, u)
    signals = signals._replace(delta=jnp.ones_like(signals.delta))
    phi = jax.jit(lambda s: materialize(ssd.assemble(params._replace(D=jnp.zeros(2)), s)))(signals)
    lag = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    decay = np.exp(-np.exp(np.asarray(params.A_log)))[:, None, None] ** np.maximum(lag, 0)
    scores = np.einsum("ti,si->ts", signals.c[:, 0], signals.b[:, 0])
    assert error(phi, np.tril(decay * scores)) < 1e-13


def test_reversed_gate_is_the_decay_of_ssd() -> None:
    qlstm, ssd = build("qlstm_reversed"), build("ssd", num_heads=D_MODEL)
    params, u = perturbed(qlstm), tokens(LENGTH)
    alpha = 1.7
    params = params._replace(alpha=jnp.asarray(alpha))
    z = np.asarray(u) @ np.asarray(params.W_f).T + np.asarray(params.bias_f)
    decay = np.exp(qlstm.signals(params, u).log_f)
    assert error(decay, (1 / (1 + np.exp(z))) ** alpha) < 1e-14
    same = perturbed(ssd)._replace(
        W_dt=params.W_f, bias_dt=params.bias_f, A_log=jnp.full(D_MODEL, math.log(alpha))
    )
    system: Any = ssd.system(same, u)
    assert error(decay, np.exp(system.A.log_a)) < 1e-14


@pytest.mark.parametrize("name", ["linear_attention", "normalized_attention"])
def test_lemma_1_the_transition_of_the_paper_is_a_ratio_of_normalizers(name: str) -> None:
    arch: Any = build(name)
    params, u = perturbed(arch), tokens(LENGTH)
    p, x = as_numpy(params), np.asarray(u)
    if name == "linear_attention":
        q, k = (np.einsum("hnd,ld->lhn", W, x) for W in (p.W_q, p.W_k))
        phi, psi = (np.where(y > 0, y, np.expm1(y)) + 1 for y in (q, k))
        eta = np.einsum("lhn,lhn->lh", phi, np.cumsum(psi, axis=0))
    else:
        eta = np.exp(x @ p.W_eta.T + p.bias_eta)
    dense: Any = jax.jit(lambda p, u: to_dense(arch.system(p, u)))(params, u)
    A = np.asarray(dense.A)
    per_head = A.shape[1] // 2
    ratio = np.repeat(eta[:-1] / eta[1:], per_head, axis=1)
    assert error(A[1:], ratio[:, :, None] * np.eye(A.shape[1])) < 1e-12


def test_taylor_approximation_of_softmax_obeys_its_bound() -> None:
    arch = systems.get("softmax_attention", d_model=D_MODEL, d_state=3, num_heads=2)
    params, u = arch.init(jax.random.key(1)), 0.5 * tokens(LENGTH)
    signals = arch.signals(params, u)
    exact = np.asarray(run(arch, params, u)).reshape(LENGTH, 2, -1)
    R = float(np.abs(np.einsum("thm,shm->hts", signals.q, signals.k)).max() / math.sqrt(3))
    largest_value = float(np.linalg.norm(np.asarray(signals.v), axis=-1).max())
    deviations = [np.inf]
    for order in (0, 2, 4, 6):
        y = np.asarray(run_taylor(params, u, order)).reshape(exact.shape)
        deviation = float(np.linalg.norm(y - exact, axis=-1).max())
        epsilon = math.exp(R) * R ** (order + 1) / math.factorial(order + 1)
        assert deviation <= 2 * math.exp(R) * epsilon * largest_value + 1e-13
        assert deviation < deviations[-1]
        deviations.append(deviation)
    assert deviations[-1] < 0.1 * deviations[1]


def test_taylor_approximation_converges_to_rounding() -> None:
    arch = systems.get("softmax_attention", d_model=D_MODEL, d_state=2)
    params, u = arch.init(jax.random.key(1)), 0.3 * tokens(LENGTH)
    exact = run(arch, params, u)
    assert error(run_taylor(params, u, 2), exact) > 1e-6
    assert error(run_taylor(params, u, 12), exact) < 1e-13


def test_merging_monomials_changes_nothing_but_the_state_size() -> None:
    arch = systems.get("softmax_attention", d_model=D_MODEL, d_state=3, num_heads=2)
    params, u = arch.init(jax.random.key(2)), tokens(LENGTH)
    small, full = (
        jax.eval_shape(functools.partial(taylor_system, order=4, symmetric=s), params, u)
        for s in (True, False)
    )
    assert (small.state_shape, full.state_shape) == ((2, 35, 4), (2, 121, 4))
    assert error(run_taylor(params, u, 4), run_taylor(params, u, 4, symmetric=False)) < 1e-13


def test_taylor_system_resets() -> None:
    arch = systems.get("softmax_attention", d_model=D_MODEL, d_state=3)
    params, u = arch.init(jax.random.key(2)), tokens(6)
    packed = run_taylor(params, u, 2, reset=jnp.arange(6) == 4)
    assert error(packed[4:], run_taylor(params, u[4:], 2)) < 1e-14


@pytest.mark.parametrize(("order", "remedy"), [(3, 4), (-1, 0), (-2, 0)])
def test_orders_that_can_vanish_are_refused(order: int, remedy: int) -> None:
    arch = systems.get("softmax_attention", d_model=D_MODEL, d_state=2)
    with pytest.raises(ValueError, match=f"even order, got {order}.* use {remedy}"):
        taylor_system(arch.init(jax.random.key(0)), tokens(3), order)
