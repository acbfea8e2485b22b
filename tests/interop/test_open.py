"""Published checkpoints against their original implementations, in float64."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dsfjax
from dsfjax import KernelSystem, analysis
from dsfjax.interop.published import opened as opened_module
from dsfjax.interop.published.naming import REGISTRY
from tests.opened import FAMILIES, FOLDER, HERE, QUICK, distance, opened, reference

FAMILY = [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("name", FAMILY)
def test_logits_and_hidden_states(name: str) -> None:
    model, known = opened(name), reference(name)
    hidden = model.hidden(known["input_ids_a"])
    assert len(hidden) == model.num_layers + 1
    for found, expected in zip(hidden, known["hidden_a"], strict=True):
        assert distance(found, expected) < 1e-12
    for which in "ab":
        if f"logits_{which}" in known:
            found = model.logits(known[f"input_ids_{which}"])
            assert distance(found, known[f"logits_{which}"]) < 1e-12
    one = model.logits(known["input_ids_a"][0])
    assert distance(one, known["logits_a"][0]) < 1e-12


@pytest.mark.parametrize("name", FAMILY)
def test_it_continues_as_the_full_pass_says(name: str) -> None:
    """Prefill, and decoding one by one; prompts of different lengths as each alone."""
    model, known = opened(name), reference(name)
    prompt, count = known["input_ids_a"][:, :11], known["greedy_a"].shape[1]
    assert np.array_equal(model.generate(prompt, count), known["greedy_a"])
    mixed = [prompt[0, :4], prompt[1]]
    alone = [model.generate(one, 3) for one in mixed]
    assert np.array_equal(model.generate(mixed, 3), np.stack(alone))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "llama", "fla_rwkv7"])
def test_prompts_are_read_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size, one step included, in which a document may start after padding."""
    model, ids = opened(name), reference(name)["input_ids_a"][0]
    mixed = [ids[:1], ids[:5], ids[:9]]
    whole = model.generate(mixed, 3)
    for size in (1, 4, 8):
        monkeypatch.setattr(opened_module, "_PREFILL", size)
        assert np.array_equal(model.generate(mixed, 3), whole)
    alone = [model.generate(one, 3) for one in mixed]
    assert np.array_equal(whole, np.stack(alone))


@pytest.mark.parametrize("name", FAMILY)
def test_pieces_are_the_whole_text(name: str) -> None:
    model, ids = opened(name), reference(name)["input_ids_a"][0][:12]
    pieces = list(model.pieces(ids, 5))
    assert [(p.begin, len(p.ids)) for p in pieces] == [(0, 5), (5, 5), (10, 2)]
    assert distance(jnp.concatenate([p.logits for p in pieces]), model.logits(ids)) < 1e-12
    counts = [len(layer) for layer in model.systems(ids)]
    for piece in pieces:
        assert [len(layer) for layer in piece.systems] == counts
        assert all(len(u) == len(piece.ids) for layer in piece.systems for _, u in layer)
    with pytest.raises(ValueError, match="a length of at least 2, got"):
        next(model.pieces(ids, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients(name: str) -> None:
    if not (FOLDER / name / "grads.npz").exists():
        pytest.skip("set DSFJAX_CHECKPOINTS to the folder of the checkpoints with gradients")
    model, known, ids = opened(name), reference(name, "grads"), reference(name)["input_ids_a"]
    weights = known.pop("__g")
    found = jax.jit(jax.grad(lambda p: (model.apply(p, ids) * weights).sum()))(model.params)
    # What only chooses experts is no parameter of the original: nothing is differentiated by it.
    chooses = found.keys() - known.keys()
    assert all(key.endswith("e_score_correction_bias") for key in chooses)
    assert not any(jnp.any(found.pop(key)) for key in chooses)
    assert found.keys() == known.keys()
    scale = np.sqrt(sum((g**2).sum() for g in known.values()))
    for key, expected in known.items():
        assert jnp.linalg.norm(found[key] - expected) < 1e-10 * scale, key


@pytest.mark.parametrize("name", [f for f in FAMILY if f.values[0] in QUICK])
def test_gradients_to_outputs_are_those_of_the_loss(name: str) -> None:
    """Layer by layer, and by differentiating the whole model."""
    model, ids = opened(name), jnp.asarray(reference(name)["input_ids_a"][0])
    logits, systems, found = model.passes(ids)
    assert distance(logits, model.logits(ids)) < 1e-12
    assert jax.tree.structure(systems) == jax.tree.structure(model.systems(ids))
    zero = jax.tree.map(jnp.zeros_like, found)
    expected = jax.grad(
        lambda nudges: opened_module.mean_loss(model.apply(model.params, ids, nudges=nudges), ids)
    )(zero)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(one - other) < 1e-12 * jnp.linalg.norm(other)


@pytest.mark.parametrize("name", FAMILY)
def test_the_map_of_every_layer_is_exact(name: str) -> None:
    """Φ times the tokens is what the layer computes before its gate and norm."""
    model, ids = opened(name), reference(name)["input_ids_a"][0]
    layers = model.systems(ids)
    assert len(layers) == model.num_layers and any(layers)

    @jax.jit
    def run(system, u):
        kernel = isinstance(system, KernelSystem)
        one_by_one = dsfjax.scan(system, u, method="auto" if kernel else "sequential")[0]
        return one_by_one, dsfjax.scan(system, u, method="materialized")[0]

    for system, u in (each for layer in layers for each in layer):
        y, by_map = run(system, u)
        assert distance(by_map, y) < 1e-10


def test_the_map_of_a_head_times_its_values() -> None:
    """Attention and a gated delta rule, by hand."""
    model, ids = opened("qwen3_next"), reference("qwen3_next")["input_ids_a"][0]
    for layer in (0, 2):
        ((system, u),) = model.systems(ids)[layer]
        kernel, y = dsfjax.materialize(system), dsfjax.scan(system, u)[0]
        y = y.reshape(len(y), len(kernel), -1)
        values = u.reshape(len(u), -1, y.shape[2])
        values = jnp.repeat(values, len(kernel) // values.shape[1], axis=1)
        assert distance(jnp.einsum("hts,shp->thp", kernel, values), y) < 1e-10


def test_dropping_the_removal_of_keys_is_another_map() -> None:
    """What a heuristic sees of a gated delta rule that treats it as gated linear attention."""
    model, ids = opened("qwen3_next"), reference("qwen3_next")["input_ids_a"][0]
    system, _ = model.systems(ids)[0][0]
    assert isinstance(system, dsfjax.System)
    exact = dsfjax.materialize(system)
    A = system.A
    assert isinstance(A, dsfjax.DiagonalPlusLowRank)
    only_decay = dataclasses.replace(system, A=dataclasses.replace(A, w=jnp.zeros_like(A.w)))
    assert distance(dsfjax.materialize(only_decay), exact) > 0.1


def test_analysis_reads_the_systems() -> None:
    model, ids = opened("mamba"), reference("mamba")["input_ids_a"][0]
    ((system, _),) = model.systems(ids)[1]
    assert isinstance(system, dsfjax.System)
    moduli = jnp.abs(analysis.eigenvalues(system))
    assert bool((moduli > 0).all() and (moduli < 1).all())


def test_one_layer_opens_alone() -> None:
    known = reference("mamba")
    part = dsfjax.open(FOLDER / "mamba", dtype="float64", layers=[1])
    assert {name.split(".")[2] for name in part.params if ".layers." in name} == {"1"}
    x = jnp.asarray(known["hidden_a"][1, 0])
    assert distance(part.layer(1)(x), known["hidden_a"][2, 0]) < 1e-12
    assert len(part.layer(1).systems(x)) == 1
    with pytest.raises(ValueError, match=r"expected all 2 layers, got those of open\(layers=\[1\]"):
        part.logits(known["input_ids_a"])
    with pytest.raises(ValueError, match=r"layer: expected one of \[1\], got 0"):
        part.layer(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes(dtype: str) -> None:
    """float32 to 1e-5 of the reference, bfloat16 to 5 %."""
    known = reference("mamba")
    model = dsfjax.open(FOLDER / "mamba", dtype=dtype)
    logits = model.logits(known["input_ids_a"])
    assert logits.dtype == dtype
    bound = 1e-5 if dtype == "float32" else 5e-2
    assert distance(logits.astype(jnp.float64), known["logits_a"]) < bound


def test_sampling_keeps_to_what_is_allowed() -> None:
    model, ids = opened("mamba"), reference("mamba")["input_ids_a"][0]
    greedy = model.generate(ids, 6)
    hot = {"key": jax.random.key(1), "temperature": 5.0}
    assert np.array_equal(model.generate(ids, 6, **hot, top_k=1), greedy)
    assert np.array_equal(model.generate(ids, 6, **hot, top_p=1e-6), greedy)
    assert not np.array_equal(model.generate(ids, 6, **hot), greedy)
    again = model.generate(ids, 6, **hot)
    assert np.array_equal(model.generate(ids, 6, **hot), again)


@pytest.mark.parametrize(
    ("prompt", "own", "message"),
    [
        ([], {}, "at least one token"),
        ([[1, 2], []], {}, "at least one token"),
        (5, {}, "at least one token"),
        ([64], {}, "token ids from 0 to 63, got 64 to 64"),
        ([0.5], {}, "whole numbers"),
        ([3], {"n": 0}, "n of at least 1"),
        ([3], {"temperature": -1.0}, "temperature of at least 0"),
        ([3], {"top_k": 0}, "top_k of at least 1"),
        ([3], {"top_p": 0.0}, "top_p above 0"),
    ],
)
def test_generation_that_cannot_be(prompt: Any, own: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened("mamba").generate(prompt, **{"n": 2, **own})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a checkpoint that may be damaged."""
    return Path(shutil.copytree(FOLDER / "mamba", tmp_path / "mamba"))


def edit(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({k: v for k, v in values.items() if v != "gone"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mumba"}, "unknown model_type of .*config.json: 'mumba'; did you mean"),
        ({"model_type": "gone"}, "unknown model_type"),
        ({"hidden_size": -24}, "config.json: hidden_size: expected a whole number from 1"),
        ({"hidden_size": 1 << 40}, "hidden_size: expected a whole number from 1"),
        ({"state_size": "gone"}, "state_size: expected a value, got none"),
        (
            {"hidden_act": "relu"},
            "hidden_act: 'relu' has no exact equivalent here; expected 'silu'",
        ),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon: expected a finite number"),
        ({"use_bias": 1}, "use_bias: expected true or false, got 1"),
        ({"moon_phase": 3}, "moon_phase: 3 is not known to this model_type"),
        ({"state_size": 9}, "tensor 'backbone.layers.0.mixer.x_proj.weight': expected shape"),
        ({"num_hidden_layers": 1}, "tensors that nothing reads: backbone.layers.1"),
        ({"num_hidden_layers": 3}, "missing tensor 'backbone.layers.2.norm.weight'"),
        ({"tie_word_embeddings": False}, "missing tensor .*of shape .64, 24."),
    ],
)
def test_configs_that_do_not_fit(copy: Path, settings: dict, message: str) -> None:
    edit(copy, **settings)
    with pytest.raises(ValueError, match=message):
        dsfjax.open(copy)


def test_float64_needs_x64() -> None:
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64 for float64"):
        dsfjax.open(FOLDER / "mamba", dtype="float64")


def test_every_family_has_its_own_types() -> None:
    assert len(REGISTRY) == len(set(REGISTRY)) and "mamba" in REGISTRY
    for name in FAMILIES:
        kind = json.loads((FOLDER / name / "config.json").read_text())["model_type"]
        assert kind in REGISTRY


def test_what_is_saved_opens_again(tmp_path: Path) -> None:
    """The file has the names, layouts and bytes of the one that was read."""
    model, ids = dsfjax.open(FOLDER / "mamba"), jnp.array([5, 9, 3])
    changed = {name: 2 * x for name, x in model.params.items()}
    again = dsfjax.open(model.save(tmp_path / "again"))
    assert jnp.array_equal(again.logits(ids), model.logits(ids))
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == model.params.keys()
    trained = dsfjax.open(model.save(tmp_path / "trained", changed))
    assert jnp.array_equal(trained.logits(ids), model.apply(changed, ids))
    narrow = dsfjax.open(FOLDER / "mamba", dtype="bfloat16").save(tmp_path / "narrow")
    assert dsfjax.open(narrow).dtype == jnp.bfloat16
    assert json.loads((narrow / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(FileExistsError, match="choose another folder"):
        model.save(narrow)
    del changed["backbone.norm_f.weight"]
    with pytest.raises(ValueError, match="not so: .'backbone.norm_f.weight'"):
        model.save(tmp_path / "less", changed)


def test_an_intervention_is_exact() -> None:
    """The first token taken from what layer 0 remembers: by nudges, and by other numbers."""
    model, ids = opened("mamba"), reference("mamba")["input_ids_a"][0]
    layers = model.systems(ids)
    ((system, u),) = layers[0]
    assert isinstance(system, dsfjax.System)
    changed = analysis.scale_write(system, 0, 0.0)
    y, without = (dsfjax.scan(s, u)[0] for s in (system, changed))
    zero = jax.tree.map(jnp.zeros_like, model.passes(ids).gradients)
    nudges = ((without - y,), *zero[1:])
    found = model.apply(model.params, ids, nudges=nudges)
    assert distance(model.apply(model.params, ids, nudges=zero), model.logits(ids)) == 0
    assert distance(found, model.logits(ids)) > 1e-3
    # The same by hand: the layer's own lines with another output of its System.
    w = model.layer(0).params
    x = model.hidden(ids)[0]
    mixed = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w["norm.weight"]
    z = jnp.split(mixed @ w["mixer.in_proj.weight"].T, 2, axis=1)[1]
    out = x + (without * jax.nn.silu(z)) @ w["mixer.out_proj.weight"].T
    rest = model.layer(1)(out)
    head = rest * jax.lax.rsqrt((rest**2).mean(-1, keepdims=True) + 1e-5)
    head = head * model.params["backbone.norm_f.weight"]
    by_hand = head @ model.params["backbone.embeddings.weight"].T
    assert distance(found, by_hand) < 1e-12


def test_names_of_the_hub_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name != "org/mamba":
            raise OSError("no network")
        return str(FOLDER / "mamba")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert dsfjax.open("org/mamba").num_layers == 2
    assert asked == [("org/mamba", ["*.json", "*.safetensors"])]  # nothing that could be executed
    with pytest.raises(FileNotFoundError, match="org/no: expected a folder, or .*no network"):
        dsfjax.open("org/no")


@pytest.mark.slow
def test_experts_whose_tensors_are_joined(tmp_path: Path) -> None:
    """As published files have them, within a model that reads images as well."""
    source, folder = HERE / "qwen3_5_moe", tmp_path / "joined"
    text, tensors = json.loads((source / "config.json").read_text()), {}
    for name, x in load_file(source / "model.safetensors").items():
        inner = name.removeprefix("model.")
        tensors[f"model.language_model.{inner}" if inner != name else name] = x
    for i in range(2):
        own = f"model.language_model.layers.{i}.mlp.experts."
        parts = {
            n: np.stack([tensors.pop(f"{own}{e}.{n}_proj.weight") for e in range(4)])
            for n in ("gate", "up", "down")
        }
        tensors[f"{own}gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        tensors[f"{own}down_proj"] = parts["down"]
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "qwen3_5_moe", "text_config": text, "vision_config": {"depth": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with np.load(source / "reference.npz") as known:
        ids, logits = known["input_ids_a"], known["logits_a"]
    model = dsfjax.open(folder, dtype="float64")
    assert distance(model.logits(ids), logits) < 1e-12
