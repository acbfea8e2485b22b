"""Initial distributions of the architectures beyond the paper, as their docstrings state them."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import systems
from dsfjax.systems.hippo import hippo
from tests.architectures import FAMILY, REPRESENTATIVES
from tests.systems.small import as_numpy
from tests.systems.test_init import check_normal, check_uniform
from tests.systems_zoo import slow_unless

WIDE = 128
PROJECTED = [name for name in FAMILY if "init" in systems.options(name)]


def draw(name: str, **own: Any) -> Any:
    return as_numpy(systems.get(name, d_model=WIDE, **own).init(jax.random.key(0)))


@pytest.mark.parametrize("name", slow_unless(REPRESENTATIVES, PROJECTED))
@pytest.mark.parametrize("init", ["published", pytest.param("authors", marks=pytest.mark.slow)])
def test_weights_are_normal_with_the_variance_of_their_fan_in(name: str, init: str) -> None:
    weights = {k: x for k, x in draw(name, init=init)._asdict().items() if k.startswith("W")}
    assert weights
    for W in weights.values():
        check_normal(W, 0.02 if init == "authors" else 1 / math.sqrt(W.shape[-1]))


STEPS = {"gated_deltanet": 0.0, "deltaproduct": 0.0, "comba": 0.0, "momentum_delta": 0.0}
STEPS |= {"kda": 1.0, "gdn2": 1.0}


@pytest.mark.parametrize("name", slow_unless({"gated_deltanet"}, STEPS))
def test_rates_are_uniform_and_steps_log_uniform(name: str) -> None:
    params = draw(name, num_heads=WIDE, d_state=2)
    check_uniform(np.exp(params.A_log), STEPS[name], 16)
    check_uniform(np.log(np.log1p(np.exp(params.bias_dt))), math.log(1e-3), math.log(0.1))
    params = draw(name, num_heads=4, d_state=2, init="authors")
    assert (params.A_log == 0).all() and (params.bias_dt == 0).all()


def test_constants_of_comba_and_mesa_net() -> None:
    params = draw("comba", d_state=2)
    assert (params.inner == 1).all() and (params.output == np.float64(0.02)).all()
    ridge = 0.25 + np.log1p(np.exp(draw("mesa_net", d_state=2).ridge))
    np.testing.assert_allclose(ridge, 1, rtol=1e-12)


def test_rates_of_momentum_and_its_corrections() -> None:
    params = draw("momentum_delta", num_heads=WIDE, d_state=2)
    check_uniform(np.exp(params.mu_log), 0, 16)
    check_uniform(np.exp(params.angle_log), 0, 4)
    check_uniform(np.exp(params.output_log), 0, 1)
    assert (params.bias_mu == params.bias_dt).all()


def test_ranks_of_gates_follow_the_width() -> None:
    assert draw("kda", num_heads=8, d_state=2).W_dt_down.shape == (16, WIDE)
    assert draw("gdn2", num_heads=8, d_state=2).W_dt_up.shape == (8, 2, 16)
    assert draw("rwkv7", num_heads=8, d_state=2).w_down.shape == (32, WIDE)
    wide = systems.get("rwkv7", d_model=1024, num_heads=16)
    assert jax.eval_shape(wide.init, jax.random.key(0)).a_up.shape == (16, 64, 64)
    around = systems.Surrounding(gate_rank="root")
    assert [around.rank(d, 64) for d in (64, 1024, 4096)] == [32, 160, 320]
    assert around._replace(gate_rank="channels").rank(1024, 48) == 48


def test_gates_of_mlstm_start_open_and_closed() -> None:
    params = draw("mlstm", num_heads=4, d_state=2)
    np.testing.assert_allclose(params.bias_f, [3, 4, 5, 6])
    assert (params.bias_i == -10).all()
    assert (params.gate_i == 0).all() and (params.gate_f == 0).all()


def test_decays_of_rwkv_are_spread_over_the_features() -> None:
    four = draw("rwkv4")
    assert (four.decay[0], four.decay[-1]) == (-5, 3) and (np.diff(four.decay) > 0).all()
    assert np.isclose(four.decay[64], -5 + 8 * (64 / 127) ** 0.7)
    np.testing.assert_allclose(four.bonus[:3], math.log(0.3) + np.array([0, 0.5, -0.5]))
    six = draw("rwkv6", num_heads=2, d_state=64)
    assert (six.w_bias[0, 0], six.w_bias[1, -1]) == (-6, -1)
    np.testing.assert_allclose(six.bonus[0, :3], [0, 0.1, -0.1], atol=1e-15)
    assert (six.w_down == 0).all()
    check_normal(six.w_up, 0.1)


def test_constants_of_rwkv7() -> None:
    params = draw("rwkv7", num_heads=2, d_state=64)
    # A ramp over all features, and a zigzag within a head.
    assert np.isclose(params.w_bias[0, 0], -6 + 0.5 - 2.5)
    assert np.isclose(params.w_bias[1, -1], 0 + 0.5 + 2.5)
    assert np.isclose(params.a_bias[0, 0], -0.19 - 0.3 - 0.2)
    assert np.isclose(params.k_k[0, 0], 0.76) and np.isclose(params.k_k[1, -1], 0.66)
    assert (params.k_a == 1.02).all() and (params.r_k == -0.04).all()
    assert (params.w_down == 0).all() and (params.a_down == 0).all()
    check_normal(params.a_up, 0.1)


def test_eigenvalues_of_lru_lie_in_a_ring() -> None:
    params = draw("lru", d_state=2000, r_min=0.4, r_max=0.9, max_phase=2.0)
    check_uniform(np.exp(-2 * np.exp(params.nu_log)), 0.4**2, 0.9**2)
    check_uniform(np.exp(params.theta_log), 0, 2)
    modulus = np.exp(-np.exp(params.nu_log))
    np.testing.assert_allclose(np.exp(params.gamma_log), np.sqrt(1 - modulus**2), rtol=1e-10)
    for B, C in ((params.B_re, params.C_re), (params.B_im, params.C_im)):
        check_normal(B, 1 / math.sqrt(2 * WIDE))
        check_normal(C, 1 / math.sqrt(2000))
    check_normal(params.D, 1)


@pytest.mark.parametrize("pairs", [True, False])
def test_s5_starts_from_hippo(pairs: bool) -> None:
    params = draw("s5", d_state=8, num_blocks=2, conjugate_pairs=pairs)
    expected = hippo(8 if pairs else 4).eigenvalues
    expected = expected[expected.imag > 0] if pairs else expected
    found = params.Lambda_re + 1j * params.Lambda_im
    np.testing.assert_allclose(found, np.tile(expected, 2), atol=1e-12)
    steps = draw("s5", d_state=400, num_blocks=100).log_step
    check_uniform(steps, math.log(1e-3), math.log(0.1))


def test_s4_and_s4d_start_from_hippo_and_its_approximation() -> None:
    basis, params = hippo(4), draw("s4", d_state=4)
    P, B = (getattr(params, f"{k}_re") + 1j * getattr(params, f"{k}_im") for k in "PB")
    A = np.diag(params.Lambda_re[0] + 1j * params.Lambda_im[0]) - np.outer(P[5], P[5].conj())
    np.testing.assert_allclose(basis.V @ A @ basis.V.conj().T, basis.A, atol=1e-10)
    np.testing.assert_allclose(basis.V @ B[3], basis.B, atol=1e-10)
    check_uniform(params.log_step, math.log(1e-3), math.log(0.1))
    lin, inv = draw("s4d", d_state=3), draw("s4d", d_state=3, spectrum="inv")
    np.testing.assert_allclose(lin.frequency[0], math.pi * np.arange(3))
    np.testing.assert_allclose(inv.frequency[0], 6 / math.pi * (6 / np.array([1, 3, 5]) - 1))
    np.testing.assert_allclose(np.exp(lin.log_rate), 0.5)
    check_normal(draw("s4d", d_state=30).c_re, math.sqrt(0.5))


def test_constants_of_mamba3_and_gla() -> None:
    params = draw("mamba3", num_heads=WIDE, d_state=2)
    for x in (params.bias_b, params.bias_c, params.norm_b, params.norm_c, params.D):
        assert (x == 1).all()
    check_uniform(np.log(np.log1p(np.exp(params.bias_dt))), math.log(1e-3), math.log(0.1))
    assert (draw("gla", d_state=2).bias_a == 0).all()
    for name in ("min_gru", "min_lstm", "forgetting_attention"):
        found = draw(name)._asdict()
        assert all((x == 0).all() for field, x in found.items() if field.startswith("bias"))
