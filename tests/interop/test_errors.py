"""What does not fit is refused by name, before anything is computed."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.interop import language_model, modules, reference
from tests import goldens
from tests.interop import parity

MHA = "zoology.mixers.attention.MHA"
RGLRU = "recurrentgemma.torch.layers.RGLRU"


@pytest.mark.parametrize(
    ("module", "kwargs", "error", "message"),
    [
        (
            "zoology.mixers.attention.MHNAA",
            {},
            ValueError,
            "did you mean 'zoology.*attention.MHNA'",
        ),
        (MHA, {"d_modle": 32}, TypeError, "no keyword 'd_modle'; did you mean 'd_model'"),
        (MHA, {}, TypeError, "missing keyword 'd_model'"),
        (MHA, {"d_model": 32, "num_heads": 3}, ValueError, "32 is not divisible by 3"),
        (
            "zoology.mixers.attention.MHNA",
            {"d_model": 8, "normalizer": "relu"},
            ValueError,
            "'relu'",
        ),
        ("zoology.mixers.mamba.S6", {"d_model": 8, "expand": 2}, ValueError, "expand = 2"),
        ("models.norm_attention.MHNA", {"d_model": 8, "mode": "x"}, ValueError, "mode = 'x'"),
        ("models.mamba.SSD", {"d_model": 32, "bias": True}, ValueError, "bias = True"),
        (
            "models.s5.S5SSM",
            {"d_model": 8, "d_state": 4, "discretization": "euler"},
            ValueError,
            "discretization = 'euler'",
        ),
        (
            "models.jax_layers.SequenceLayer(LRU)",
            {"d_model": 8, "d_state": 4, "norm": "batch"},
            ValueError,
            "norm = 'batch'",
        ),
        ("models.mamba.SSD_LTI", {"d_model": 32, "ngroups": 2}, ValueError, "ngroups = 2"),
        (
            "models.transformer.TransformerBlock",
            {"hidden_dim": 8, "cfg": {"mixxer": "mlp"}},
            ValueError,
            "'mixxer'",
        ),
        (
            "models.transformer.TransformerBlock",
            {"hidden_dim": 8, "cfg": {"mixer": "mlp"}},
            TypeError,
            "missing key 'state_dim'",
        ),
        (
            "zoology.model.LanguageModel",
            {"sequence_mixer": {"name": "zoology.mixers.attention.MHAA"}},
            ValueError,
            "unknown module",
        ),
        (
            "zoology.model.LanguageModel",
            {"sequence_mixer": {"name": MHA}, "drop_path": 0.1},
            ValueError,
            "drop_path = 0.1",
        ),
    ],
)
def test_constructors(module: str, kwargs: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        reference(module, **kwargs)


@pytest.mark.parametrize(
    "name", ["dsf_linear_h4", "rglru_noreset", "lm_s6_2", "eig_tblock_norm_none"]
)
def test_weights(name: str) -> None:
    file = goldens.load(name)
    apply, weights = parity.of(name), dict(file.group("p"))
    x = file["inputs"] if "logits" in file else file["x"]
    some = next(iter(weights))
    shape = weights[some].shape

    with pytest.raises(ValueError, match=f"missing weight '{some}'"):
        apply({k: v for k, v in weights.items() if k != some}, x, **file.group("in"))
    with pytest.raises(ValueError, match="unexpected weight 'extra'"):
        apply(weights | {"extra": np.zeros(2)}, x, **file.group("in"))
    with pytest.raises(ValueError, match=f"'{some}': expected shape .*, got "):
        apply(weights | {some: np.zeros((*shape, 1))}, x, **file.group("in"))
    with pytest.raises(TypeError, match=f"'{some}': expected an array of floats, got int"):
        apply(weights | {some: np.zeros(shape, int)}, x, **file.group("in"))
    unnamed: Any = list(weights.values())
    with pytest.raises(TypeError, match="weights"):
        apply(unnamed, x, **file.group("in"))


def test_a_misspelt_weight_is_recognised() -> None:
    file = goldens.load("dsf_linear_h4")
    weights = dict(file.group("p"))
    weights["Wqk.wieght"] = weights.pop("Wqk.weight")
    with pytest.raises(ValueError, match="'Wqk.wieght' .* did you mean 'Wqk.weight'"):
        parity.of("dsf_linear_h4")(weights, file["x"])


def test_inputs() -> None:
    apply, weights = parity.of("rglru_noreset"), goldens.load("rglru_noreset").group("p")
    x, positions = np.zeros((2, 3, 32)), np.zeros((2, 3), int)
    with pytest.raises(TypeError, match=r"missing input 'segment_pos' of shape \(B, L\)"):
        apply(weights, x)
    with pytest.raises(TypeError, match="no input 'positions'; it takes: segment_pos"):
        apply(weights, x, positions=positions)
    with pytest.raises(ValueError, match=r"'segment_pos': expected shape \(2, 3\), got \(3,\)"):
        apply(weights, x, segment_pos=positions[0])
    with pytest.raises(ValueError, match=r"expected x of shape \(B, L, d\), got \(3, 32\)"):
        apply(weights, x[0], segment_pos=positions)
    with pytest.raises(ValueError, match=r"expected x of shape \(L, d\), got \(2, 3, 32\)"):
        apply.system(weights, x, segment_pos=positions)


@pytest.mark.parametrize("name", ["lm_s6_2", "eig_mambablock_glu"])
def test_only_a_single_mixer_has_one_system(name: str) -> None:
    with pytest.raises(TypeError, match="not a single mixer"):
        parity.of(name).system(goldens.load(name).group("p"), jnp.zeros((3, 32)))


def test_modules_lists_what_the_golden_files_need() -> None:
    needed = {goldens.load(n).meta["module"] for n in parity.MODULES + parity.LANGUAGE_MODELS}
    # The reference values of S4 name its class with its options; it is known without them, too.
    assert needed == set(modules()) - {"models.s4.S4"}
    assert "models.s4.S4 (DPLR, l_max = L)" in needed


def test_language_model_checks_its_keywords() -> None:
    with pytest.raises(TypeError, match="no keyword 'n_layer'; did you mean 'n_layers'"):
        language_model(sequence_mixer={"name": MHA}, n_layer=1)


def test_complex_weights_are_told_from_real_ones() -> None:
    apply = reference("models.s4.S4", d_model=2, d_state=2, l_max=3)
    weights = {name: jnp.ones(shape) for name, shape in apply.shapes.items()}
    assert apply.complex_weights == ("P", "B")
    with pytest.raises(TypeError, match="weight 'P': expected an array of complex numbers, got fl"):
        apply({**weights, "B": weights["B"] + 0j}, jnp.ones((1, 3, 2)))
