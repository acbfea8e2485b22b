"""``apply.system``: the recurrence alone, which the mixer then gates, normalises and projects."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import erf

import dsfjax
from dsfjax.interop import reference
from tests import goldens
from tests.interop import parity
from tests.systems_zoo import slow_unless

Arrays = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def affine(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def project(w: Arrays, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    return affine(w, "out_proj", s)


def mamba(w: Arrays, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    z = affine(w, "in_proj", x)[:, s.shape[1] :]
    return affine(w, "out_proj", s * silu(z))


def mamba2(w: Arrays, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    gated = s * silu(affine(w, "in_proj", x)[:, : s.shape[1]])
    root = np.sqrt((gated**2).mean(axis=1, keepdims=True) + 1e-5)
    return affine(w, "out_proj", gated / root * w["norm.weight"])


def qlstm(w: Arrays, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    gate = affine(w, "input", x)[:, : s.shape[1]]
    return affine(w, "output", s * gate * (1 + erf(gate / np.sqrt(2))) / 2)


def recurrent_block(w: Arrays, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    y = affine(w, "linear_y", x)
    gate = y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) / 2
    return affine(w, "linear_out", s * gate)


AFTER: dict[str, Callable[[Arrays, np.ndarray, np.ndarray], np.ndarray]] = {
    "dsf_linear_h4": project,
    "dsf_softmax_h4": project,
    "dsf_norm_softplus_h4": project,
    "dsf_mamba_expand2_fast": mamba,
    "dsf_s6": project,
    "dsf_s6_2": project,
    "dsf_qlstm_rev_alpha2p3": qlstm,
    "eig_linear_conv_h4": project,
    "eig_softmax_convpartial": project,
    "eig_norm_conv_full": project,
    "eig_norm_offset_h1": project,
    "eig_ssd_h4": project,
    "eig_ssd_lti_h4": project,
    "eig_ssd_noconv_expand2_long": project,
    "mamba2simple_h4_g2": mamba2,
    "rglru_h4_reset": lambda w, x, s: s,
    "rg_recurrent_block": recurrent_block,
}


def systems_of(name: str) -> tuple[Any, Any, np.ndarray, dict[str, np.ndarray]]:
    file = goldens.load(name)
    x, inputs = file["x"][0], {k: v[0] for k, v in file.group("in").items()}
    run = parity.jit(lambda w, x, inputs: parity.of(name).system(w, x, **inputs))
    system, u = run(file.group("p"), x, inputs)
    return system, u, x, file.group("p")


# Where what stands before and after the recurrence differs.
QUICK = (
    {"dsf_softmax_h4", "dsf_norm_softplus_h4", "dsf_mamba_expand2_fast", "dsf_s6_2"}
    | {"dsf_qlstm_rev_alpha2p3", "eig_norm_conv_full", "eig_ssd_h4", "mamba2simple_h4_g2"}
    | {"rg_recurrent_block"}
)


@pytest.mark.parametrize("name", slow_unless(QUICK, AFTER))
def test_scan_of_the_system_is_the_mixer_before_its_output(name: str) -> None:
    system, u, x, weights = systems_of(name)
    s = np.asarray(parity.jit(lambda system, u: dsfjax.scan(system, u)[0])(system, u))
    assert parity.normwise(AFTER[name](weights, x, s), goldens.load(name)["y"][0]) < 1e-10


@pytest.mark.parametrize(
    "name", ["dsf_s6", "dsf_s6_2", "eig_ssd_noconv_expand2_long", "rglru_noreset"]
)
def test_the_token_is_x_where_nothing_stands_before_the_recurrence(name: str) -> None:
    _, u, x, _ = systems_of(name)
    np.testing.assert_array_equal(u, x)


def test_without_biases_the_token_of_attention_is_x() -> None:
    apply = reference("zoology.mixers.attention.MHA", d_model=4, d_qk=4, num_heads=2, bias=False)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in apply.shapes.items()}
    x = rng.standard_normal((5, 4))
    system, u = parity.jit(apply.system)(weights, x)
    np.testing.assert_array_equal(u, x)
    s = np.asarray(parity.jit(lambda system, u: dsfjax.scan(system, u)[0])(system, u))
    y = parity.jit(apply)(weights, x[None])[0]
    assert parity.normwise(y, project(weights, x, s)) < 1e-14


def test_structures_are_visible() -> None:
    A = systems_of("eig_ssd_lti_h4")[0].A
    assert isinstance(A, dsfjax.Scalar) and A.log_a.shape == (1, 4)  # constant in time
    assert isinstance(systems_of("dsf_s6")[0].A, dsfjax.Diagonal)
    assert isinstance(systems_of("dsf_linear_h4")[0].eta, dsfjax.SummedNormalizer)
    reset = systems_of("rglru_h4_reset")[0].reset
    expected = goldens.load("rglru_h4_reset").group("in")["segment_pos"][0] == 0
    assert expected.sum() == 2
    np.testing.assert_array_equal(reset, expected)


def test_system_is_differentiable() -> None:
    """A gradient through the System is the gradient through the mixer."""
    file = goldens.load("dsf_s6")
    apply, weights = parity.of("dsf_s6"), file.group("p")

    def loss(w: Any) -> Any:
        def output(x: Any) -> Any:
            return dsfjax.scan(*apply.system(w, x))[0] @ w["out_proj.weight"].T

        return (jax.vmap(output)(file["x"]) * file["g"]).sum()

    gradients = parity.jit(jax.grad(loss))(weights)
    for name, expected in file.group("d").items():
        if name != "x":
            assert parity.normwise(gradients[name], expected) < 1e-8, name
