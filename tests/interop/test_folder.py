"""Folders that are damaged or hostile: a file and a field are named, and nothing is executed."""

import json
import pickle
import shutil
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dsfjax
from dsfjax.interop.published.naming import REGISTRY
from dsfjax.interop.published.parts import ROUTER
from dsfjax.interop.published.tensor_files import Config, Folder
from tests.opened import HERE

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a small checkpoint."""
    return Path(shutil.copytree(HERE / "mamba", tmp_path / "mamba"))


def sharded(folder: Path) -> dict[str, str]:
    """The same in two files and an index; the index."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    where = {n: f"part-{1 + i % 2}.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return where


def test_shards_are_the_whole(folder: Path) -> None:
    ids = jnp.array([5, 9, 3])
    whole = dsfjax.open(folder).logits(ids)
    sharded(folder)
    assert jnp.array_equal(dsfjax.open(folder).logits(ids), whole)


def test_narrow_files_are_read(folder: Path) -> None:
    """The dtype of a file is that of the model unless another is asked for."""
    tensors = {n: jnp.asarray(x) for n, x in load_file(folder / SINGLE).items()}
    for dtype in ("float16", "bfloat16"):
        save_file({n: np.asarray(x, dtype) for n, x in tensors.items()}, folder / SINGLE)
        model = dsfjax.open(folder)
        assert model.dtype == dtype and model.logits(jnp.array([5, 9])).dtype == dtype
        assert dsfjax.open(folder, dtype="float32").logits(jnp.array([5])).dtype == jnp.float32


def test_paths_stay_in_the_folder(folder: Path, tmp_path: Path) -> None:
    where = sharded(folder)
    shutil.copyfile(folder / "part-1.safetensors", tmp_path / "outside.safetensors")
    for outside in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", "", 3):
        changed = {n: outside if f.startswith("part-1") else f for n, f in where.items()}
        (folder / INDEX).write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match="expected a file of this folder"):
            dsfjax.open(folder)


@pytest.mark.parametrize("index", ["[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none(folder: Path, index: str) -> None:
    sharded(folder)
    (folder / INDEX).write_text(index)
    with pytest.raises(ValueError, match="index.json: "):
        dsfjax.open(folder)


def test_a_shard_that_is_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "part-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-2\.safetensors: expected a file"):
        dsfjax.open(folder)


def test_a_tensor_in_two_files(folder: Path) -> None:
    sharded(folder)
    tensors = load_file(folder / "part-1.safetensors") | load_file(folder / "part-2.safetensors")
    save_file(tensors, folder / "part-2.safetensors")
    with pytest.raises(ValueError, match="is in part-1.safetensors as well"):
        dsfjax.open(folder)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5000, -1])
def test_truncated_files(folder: Path, kept: int) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected safetensors"):
        dsfjax.open(folder)


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 1 << 31])
def test_a_header_of_any_length(folder: Path, length: int) -> None:
    file = folder / SINGLE
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match="expected safetensors, got a damaged file"):
        dsfjax.open(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(folder: Path, bad: float) -> None:
    tensors = load_file(folder / SINGLE)
    tensors["backbone.layers.1.mixer.A_log"][3, 2] = bad
    save_file(tensors, folder / SINGLE)
    with pytest.raises(ValueError, match="layers.1.mixer.A_log: expected finite numbers"):
        dsfjax.open(folder)


def test_weights_that_are_whole_numbers(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({n: x.astype(np.int8) for n, x in tensors.items()}, folder / SINGLE)
    with pytest.raises(ValueError, match="got I8; quantised checkpoints are not read"):
        dsfjax.open(folder)


def test_a_tensor_that_nothing_reads(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    save_file(tensors | {"backbone.layers.0.extra": np.ones(2, np.float32)}, folder / SINGLE)
    with pytest.raises(ValueError, match="1 tensors that nothing reads: backbone.layers.0.extra"):
        dsfjax.open(folder)


def test_pickles_are_never_read(folder: Path, tmp_path: Path) -> None:
    """Neither next to safetensors nor in their place."""

    class Program:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Program()))
    dsfjax.open(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle"):
        dsfjax.open(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: expected"):
        dsfjax.open(folder)


def test_files_that_are_missing(folder: Path) -> None:
    model = dsfjax.open(folder)
    with pytest.raises(FileNotFoundError, match="tokenizer.json: expected a tokenizer"):
        model.generate("text", 2)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json: expected a tokenizer"):
        model.tokenizer  # noqa: B018
    (folder / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match="expected model.safetensors or"):
        dsfjax.open(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json: expected a file"):
        dsfjax.open(folder)


def test_what_is_never_narrow(folder: Path) -> None:
    """A router of a narrow model: its bias has steps that bfloat16 does not have."""
    name, bias = (
        "model.layers.1.mlp.gate.e_score_correction_bias",
        np.array([1, 1 + 2**-20], np.float32),
    )
    narrow = np.asarray(jnp.ones((2, 2), jnp.bfloat16))
    save_file({name: bias, "model.norm.weight": narrow, "head": narrow}, folder / SINGLE)
    files = Folder(folder)
    found = files.load(files.shapes, files.dtype(), wide=ROUTER)
    assert files.dtype() == found["head"].dtype == jnp.bfloat16
    assert found[name].dtype == jnp.float32 and np.array_equal(found[name], bias)
    assert files.load([name], "float64", wide=ROUTER)[name].dtype == jnp.float64
    sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "vocab_size"), 2)
    assert REGISTRY["kimi_linear"](Config({"num_hidden_layers": 1, **sizes}), {}).wide == ROUTER
