"""Checkpoints in formats of their authors, made into published ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import dsfjax
from dsfjax.cli import main
from dsfjax.interop.published import convert, inspect
from tests.opened import HERE, distance, reference
from tests.torch_zip import saved

MAMBA: dict[str, Any] = {
    "d_model": 24,
    "n_layer": 2,
    "vocab_size": 59,
    "ssm_cfg": {"d_state": 8, "dt_rank": 2},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}


def mamba_ssm(folder: Path, **settings: Any) -> Path:
    """The small Mamba as mamba_ssm writes it, its head being its embeddings."""
    tensors = load_file(HERE / "mamba" / "model.safetensors")
    embeddings = tensors.pop("backbone.embeddings.weight")
    tensors |= {"backbone.embedding.weight": embeddings, "lm_head.weight": embeddings}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**MAMBA, **settings}))
    saved(folder / "pytorch_model.bin", tensors)
    return folder


def test_mamba_of_its_authors(tmp_path: Path) -> None:
    """The logits of the published file, to the last bit of what is stored."""
    known = reference("mamba")
    rank = json.loads((HERE / "mamba" / "config.json").read_text())["time_step_rank"]
    given = mamba_ssm(tmp_path / "given", ssm_cfg={"d_state": 8, "dt_rank": rank})
    model = dsfjax.open(convert(given, tmp_path / "out"), dtype="float64")
    assert distance(model.logits(known["input_ids_a"]), known["logits_a"]) < 1e-12
    found, stored = (load_file(x / "model.safetensors") for x in (tmp_path / "out", HERE / "mamba"))
    assert found.keys() == stored.keys()
    assert all(np.array_equal(found[name], stored[name]) for name in stored)


def test_mamba_2_of_its_authors(tmp_path: Path) -> None:
    """Settings that it leaves to its class, and heads that are not its own embeddings."""
    rng = np.random.default_rng(0)
    d, inner, heads, vocab = 32, 64, 4, 32
    channels = inner + 2 * 128
    mixer = {
        "in_proj.weight": (inner + channels + heads, d),
        "conv1d.weight": (channels, 1, 4),
        "conv1d.bias": (channels,),
        **dict.fromkeys(("dt_bias", "A_log", "D"), (heads,)),
        "norm.weight": (inner,),
        "out_proj.weight": (d, inner),
    }
    shapes = {f"backbone.layers.0.mixer.{name}": shape for name, shape in mixer.items()}
    shapes |= {"backbone.layers.0.norm.weight": (d,), "backbone.norm_f.weight": (d,)}
    shapes |= dict.fromkeys(("backbone.embedding.weight", "lm_head.weight"), (vocab, d))
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    given = tmp_path / "given"
    given.mkdir()
    saved(given / "pytorch_model.bin", tensors)
    settings = {
        **{**MAMBA, "d_model": d, "n_layer": 1, "vocab_size": 30, "pad_vocab_size_multiple": 16},
        **{"ssm_cfg": {"layer": "Mamba2", "headdim": 16}, "tie_embeddings": False},
        **{"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}},
    }
    (given / "config.json").write_text(json.dumps(settings))
    model = dsfjax.open(convert(given, tmp_path / "out"))
    ((system, _),) = model.systems(jnp.array([3, 5, 7]))[0]
    assert isinstance(system, dsfjax.System) and system.state_shape == (heads, 128, 16)
    assert np.array_equal(model.params["lm_head.weight"], tensors["lm_head.weight"])
    assert model.config["num_heads"] == heads and model.config["vocab_size"] == vocab


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg: layer: 'Mamba3' has no exact equivalent"),
        ({"ssm_cfg": {"d_state": "8"}}, "ssm_cfg: d_state: expected a whole number"),
        ({"ssm_cfg": {"moon": 1}}, "ssm_cfg: moon: 1 is not known"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 7}}, "headdim: expected a divisor of 48"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 7}}, "d_ssm: expected 48, by expand and d_model"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx: .1. has no exact equivalent"),
        ({"rms_norm": False}, "rms_norm: False has no exact equivalent"),
        ({"moon": 1}, "moon: 1 is not known"),
        ({"n_layer": 1}, "/out/model.safetensors: .* tensors that nothing reads"),
        ({"ssm_cfg": {"d_state": 9}}, "/out: tensor .*x_proj.weight': expected shape"),
        ({"tie_embeddings": False, "d_model": 25}, "given: .* expected shape .64, 25."),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict, message: str) -> None:
    """Nothing is left of an attempt."""
    given = mamba_ssm(tmp_path / "given", **settings)
    with pytest.raises(ValueError, match=message):
        convert(given, tmp_path / "out")
    assert [x.name for x in tmp_path.iterdir()] == ["given"]


def test_a_pickled_checkpoint_with_published_names(tmp_path: Path) -> None:
    given = Path(shutil.copytree(HERE / "mamba", tmp_path / "given"))
    tensors = load_file(given / "model.safetensors")
    (given / "model.safetensors").unlink()
    (given / "tokenizer.json").write_text("{}")
    narrow = {name: np.asarray(x, jnp.bfloat16) for name, x in tensors.items()}
    saved(given / "pytorch_model.bin", narrow)
    with pytest.raises(FileNotFoundError, match="dsfjax convert .*given --out FOLDER"):
        dsfjax.open(given)
    model = dsfjax.open(convert(given, tmp_path / "deep" / "out"))
    assert model.dtype == jnp.bfloat16 and (model.path / "tokenizer.json").read_text() == "{}"
    assert all(np.array_equal(model.params[name], x) for name, x in narrow.items())


def test_a_pickled_checkpoint_in_parts(tmp_path: Path) -> None:
    """The parts that an index names are one checkpoint, and each tensor is in one of them."""
    given = Path(shutil.copytree(HERE / "mamba", tmp_path / "given"))
    tensors = load_file(given / "model.safetensors")
    (given / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, own in parts.items():
        saved(given / file, {name: tensors[name] for name in own})
    index = given / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, own in parts.items() for n in own}}))
    found = load_file(convert(given, tmp_path / "out") / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], x) for name, x in tensors.items())
    saved(given / "b.bin", tensors)
    with pytest.raises(ValueError, match=f"b.bin: expected tensors .* got '{names[0]}' again"):
        convert(given, tmp_path / "twice")
    (given / "b.bin").unlink()
    with pytest.raises(FileNotFoundError, match="b.bin: .* which the index names"):
        convert(given, tmp_path / "none")
    index.write_text(json.dumps({"weight_map": {"x": "../a.bin"}}))
    with pytest.raises(ValueError, match="expected a file of this folder, got '../a.bin'"):
        convert(given, tmp_path / "outside")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["given", "out"]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pth", {"a.b": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"x\.pth: expected .*these formats: .*RWKV-7.*a\.b"):
        convert(file, tmp_path / "out")
    with pytest.raises(FileExistsError, match="choose another one"):
        convert(file, tmp_path)
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin: expected a file"):
        convert(tmp_path, tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = mamba_ssm(tmp_path / "given")
    assert main(["convert", str(given), "--out", str(tmp_path / "out")]) == 0
    assert "mamba, 2 layers, 11,880 parameters" in capsys.readouterr().out
    assert len(inspect(tmp_path / "out").systems) == 2
    for words, message in (
        ([str(given)], "expected --out FOLDER"),
        ([str(given), "--out", str(tmp_path)], "choose another one"),
        ([str(tmp_path / "no"), "--out", "x"], "no: expected a file, found none"),
    ):
        assert main(["convert", *words]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
