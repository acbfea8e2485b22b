"""Initial distributions: as published, and as the authors' code leaves them."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import systems
from tests.architectures import PAPER
from tests.systems.small import as_numpy

WIDE = 128
MATRICES = {
    "softmax_attention": ("W_q", "W_k", "W_v"),
    "linear_attention": ("W_q", "W_k", "W_v"),
    "normalized_attention": ("W_q", "W_k", "W_v", "W_eta"),
    "s6": ("W_dt_down", "W_b", "W_c"),
    "ssd": ("W_v", "W_b", "W_c", "W_dt"),
    "qlstm": ("W_f", "W_i", "W_o", "W"),
    "qlstm_reversed": ("W_f", "W_i", "W_o", "W"),
    "rg_lru": ("W_r", "W_i"),
    "lstm": ("W_u", "W_h"),
    "gru": ("W_u", "W_h"),
    "slstm": ("W_u", "W_h"),
}


def draw(name: str, init: str, **own: Any) -> Any:
    arch = systems.get(name, d_model=WIDE, init=init, **own)
    return as_numpy(arch.init(jax.random.key(0)))


def check_normal(x: np.ndarray, std: float) -> None:
    """Mean and standard deviation within 5 standard errors, and tails of a normal distribution."""
    n = x.size
    assert abs(x.mean()) < 5 * std / math.sqrt(n)
    assert abs(x.std() / std - 1) < 5 / math.sqrt(2 * n)
    assert abs((np.abs(x) < std).mean() - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / n)


def check_uniform(x: np.ndarray, low: float, high: float) -> None:
    """All inside, up to the ends, with a mean within 5 standard errors."""
    n, width = x.size, high - low
    assert low <= x.min() and x.max() <= high
    assert x.min() < low + 10 * width / n and x.max() > high - 10 * width / n
    assert abs(x.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * n)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("init", ["published", "authors"])
def test_weights_are_normal_with_the_documented_variance(name: str, init: str) -> None:
    params = draw(name, init)
    for field in MATRICES[name]:
        W = getattr(params, field)
        check_normal(W, 0.02 if init == "authors" else 1 / math.sqrt(W.shape[-1]))
    for field, value in params._asdict().items():
        if field.startswith("bias") and field != "bias_dt":
            # The forget gate of an LSTM or sLSTM, its second, starts open.
            zero = value
            if value is not None and name in ("lstm", "slstm"):
                zero = np.delete(value, 1, axis=0)
            assert zero is None or (zero == 0).all(), field


def test_every_architecture_of_the_paper_is_here() -> None:
    assert set(MATRICES) == {*PAPER, "lstm", "gru", "slstm"}


@pytest.mark.parametrize(("name", "own"), [("s6", {}), ("ssd", {"num_heads": WIDE})])
def test_steps_are_log_uniform_as_published_and_constant_by_the_authors(
    name: str, own: dict[str, int]
) -> None:
    step = np.log1p(np.exp(draw(name, "published", **own).bias_dt))
    check_uniform(np.log(step), math.log(1e-3), math.log(0.1))
    assert (draw(name, "authors", **own).bias_dt == 0).all()


@pytest.mark.parametrize("init", ["published", "authors"])
def test_s6_decays_are_minus_one_to_minus_n_in_every_channel(init: str) -> None:
    params = draw("s6", init, d_state=5)
    np.testing.assert_allclose(-np.exp(params.A_log), np.tile(-np.arange(1.0, 6), (WIDE, 1)))
    assert (params.D == 1).all()


def test_s6_step_map_has_the_variance_of_its_rank() -> None:
    up = draw("s6", "published", dt_rank=16).W_dt_up
    assert up.shape == (WIDE, 16)
    check_uniform(up, -0.25, 0.25)
    check_normal(draw("s6", "authors", dt_rank=16).W_dt_up, 0.02)
    assert draw("s6", "published").W_dt_down.shape == (8, WIDE)


def test_ssd_decays() -> None:
    params = draw("ssd", "published", num_heads=WIDE)
    check_uniform(np.exp(params.A_log), 1, 16)
    assert (params.D == 1).all()
    assert (draw("ssd", "authors", num_heads=WIDE).A_log == 0).all()


@pytest.mark.parametrize("init", ["published", "authors"])
def test_rg_lru_decays_lie_in_a_ring(init: str) -> None:
    arch = systems.get("rg_lru", d_model=WIDE, init=init)
    a_param = as_numpy(jax.vmap(arch.init)(jax.random.split(jax.random.key(1), 20))).a_param
    # The decay of a gate r = 1 is the 8th power of the radius.
    check_uniform(np.exp(-2 * np.log1p(np.exp(a_param))), 0.9**2, 0.999**2)


@pytest.mark.parametrize("init", ["published", "authors"])
def test_power_of_the_reversed_gate_starts_at_one(init: str) -> None:
    assert draw("qlstm_reversed", init).alpha == 1
    assert draw("qlstm", init).alpha is None


def test_offsets_of_the_normalizer_are_spread_over_the_heads() -> None:
    params = draw("normalized_attention", "published", num_heads=4, offset=True)
    np.testing.assert_allclose(params.offset, [4, 4 + 5 / 3, 4 + 10 / 3, 9])
    assert draw("normalized_attention", "published").offset is None
