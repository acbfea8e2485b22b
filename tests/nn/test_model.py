"""Blocks, heads, parameters, labels, dropout and the model as plain functions."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import nn, scan
from dsfjax.analysis import num_parameters, state_size
from tests.architectures import all_of_them
from tests.nn.small import VOCAB, compiled, config, perturbed, tokens
from tests.reference_loop import error

LENGTH = 7


def layer_norm(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
    return x * np.asarray(p["scale"]) + np.asarray(p["bias"])


def mlp(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    hidden = x @ np.asarray(p["fc1"]["kernel"]) + np.asarray(p["fc1"]["bias"])
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    return hidden @ np.asarray(p["fc2"]["kernel"]) + np.asarray(p["fc2"]["bias"])


def mixer(x: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    """Bare linear attention with two heads, in NumPy."""
    q, k, v = (np.einsum("hnd,ld->lhn", p["core"][W], x) for W in ("W_q", "W_k", "W_v"))
    q, k = (np.where(y > 0, y + 1, np.exp(np.minimum(y, 0))) for y in (q, k))
    weights = np.tril(np.einsum("thn,shn->hts", q, k))
    weights /= weights.sum(axis=-1, keepdims=True)
    y = np.einsum("hts,shp->thp", weights, v).reshape(len(x), -1)
    return y @ np.asarray(p["project_out"]["kernel"])


def test_gated_mlp_scales_and_soft_cap_by_hand() -> None:
    _, params, apply, *_ = compiled(
        "linear_attention",
        num_layers=1,
        mlp="swiglu",
        embed_scale=3.0,
        residual_scale=0.5,
        logit_scale=2.0,
        logit_cap=1.0,
    )
    ids, p = np.asarray(tokens(LENGTH)), params["blocks"]["block_0"]
    r = 3 * np.asarray(params["embed"]["embedding"])[ids]
    r = r + 0.5 * mixer(layer_norm(r, p["norm1"]), p["mixer"])
    x = layer_norm(r, p["norm2"])
    a, b = (x @ np.asarray(p["mlp"][name]["kernel"]) for name in ("fc1", "fc3"))
    r = r + 0.5 * (a / (1 + np.exp(-a)) * b) @ np.asarray(p["mlp"]["fc2"]["kernel"])
    logits = 2 * layer_norm(r, params["norm_f"]) @ np.asarray(params["embed"]["embedding"]).T
    assert set(p["mlp"]["fc1"]) == {"kernel"}
    assert np.abs(logits).max() > 1  # so that the cap is seen
    assert error(apply(params, tokens(LENGTH)), np.tanh(logits)) < 1e-13


@pytest.mark.parametrize("block", ["prenorm", "transformer", "mamba"])
def test_model_by_hand(block: str) -> None:
    _, params, apply, *_ = compiled("linear_attention", block=block, max_length=9)
    ids = np.asarray(tokens(LENGTH))
    embedding = np.asarray(params["embed"]["embedding"])
    h = embedding[ids] + np.asarray(params["positions"]["embedding"])[:LENGTH]
    r = np.zeros_like(h)
    for i in range(2):
        p = params["blocks"][f"block_{i}"]
        r = r + h
        h = mixer(layer_norm(r, p["norm1"]), p["mixer"])
        if block != "mamba":
            r = r + h
            h = layer_norm(r, p["norm2"])
            h = mlp(h, p["mlp"]) if block == "prenorm" else h
    features = layer_norm(r + h, params["norm_f"])
    assert error(apply(params, ids), features @ embedding.T) < 1e-12


def test_head_apart_from_features() -> None:
    for own in ({}, {"head": "untied"}, {"head": "classifier", "num_classes": 3}):
        model, params, apply, *_ = compiled("linear_attention", num_layers=1, **own)
        features = jax.jit(model.features)(params, tokens(LENGTH))
        assert error(model.head(params, features), apply(params, tokens(LENGTH))) < 1e-13


def test_untied_head_is_a_map_of_its_own() -> None:
    model, params, *_ = compiled("linear_attention", num_layers=1, head="untied")
    features = jax.random.normal(jax.random.key(0), (LENGTH, 8))
    assert params["head_map"].keys() == {"kernel"}
    assert error(model.head(params, features), features @ params["head_map"]["kernel"]) < 1e-14


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_classifier_pools_features(pooling: str) -> None:
    model, params, apply, *_ = compiled(
        "linear_attention", num_layers=1, head="classifier", num_classes=3, pooling=pooling
    )
    features = np.asarray(jax.jit(model.features)(params, tokens(LENGTH)))
    pooled = features.mean(axis=0) if pooling == "mean" else features[-1]
    logits = pooled @ np.asarray(params["head_map"]["kernel"]) + params["head_map"]["bias"]
    assert error(apply(params, tokens(LENGTH)), logits) < 1e-13
    with pytest.raises(ValueError, match="a classifier has no next token"):
        model.generate(params, tokens(4), 2)
    with pytest.raises(ValueError, match=r"a classifier pools over a sequence.*got \(8,\)"):
        model.head(params, jnp.ones(8))


@pytest.mark.parametrize("name", all_of_them())
@pytest.mark.parametrize("surroundings", ["paper", "practice"])
def test_parameters_are_counted_and_labelled(name: str, surroundings: str) -> None:
    c = config(name, surroundings=surroundings, max_length=5)
    model = nn.build(c)
    params = jax.eval_shape(model.init, jax.random.key(0))
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(params)]
    assert num_parameters(model) == sum(sizes)
    labels = model.labels(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    for path, label in jax.tree.leaves_with_path(labels):
        names = [str(part.key) for part in path]
        matrix = names[-1] in ("kernel", "embedding") or names[-1].startswith("W")
        decays = matrix and names[0] != "positions"
        core = "core" in names
        assert label == ("decay" if decays else "dynamics" if core else "no_decay"), names


def test_counts_of_a_model_by_hand() -> None:
    c = config("linear_attention", max_length=5)
    block = 2 * (3 + 3 + 4) * 8 + 8 * 8 + 2 * 2 * 8 + (8 * 32 + 32) + (32 * 8 + 8)
    assert num_parameters(nn.build(c)) == VOCAB * 8 + 5 * 8 + 2 * block + 2 * 8


@pytest.mark.parametrize(
    ("name", "at_1", "at_10"),
    [
        ("linear_attention", 2 * 3 * 8, 2 * 3 * 8),
        ("normalized_attention", 2 * 3 * 8, 2 * 3 * 8),
        ("softmax_attention", 2 * (2 * 3 + 8), 10 * 2 * (2 * 3 + 8)),
        ("s6", 2 * 3 * 8, 2 * 3 * 8),
        ("ssd", 2 * 3 * 8, 2 * 3 * 8),
        ("qlstm", 2 * 16, 2 * 16),
        ("rg_lru", 2 * 8, 2 * 8),
    ],
)
def test_state_size_is_that_of_all_layers(name: str, at_1: int, at_10: int) -> None:
    model = nn.build(config(name))
    assert state_size(model, 1) == at_1
    assert state_size(model, 10) == at_10


def test_authors_initialisation() -> None:
    c = config(
        "normalized_attention", d_model=64, d_state=32, num_layers=8, init="authors", max_length=32
    )
    params = nn.build(c).init(jax.random.key(0))
    stacked = jax.tree.map(lambda *x: np.stack(x), *params["blocks"].values())
    std = {
        "W_q": stacked["mixer"]["core"]["W_q"].std(),
        "W_v": stacked["mixer"]["core"]["W_v"].std(),
        "fc1": stacked["mlp"]["fc1"]["kernel"].std(),
        "embed": np.asarray(params["embed"]["embedding"]).std(),
        "positions": np.asarray(params["positions"]["embedding"]).std(),
    }
    assert std == pytest.approx(dict.fromkeys(std, 0.02), rel=0.1)
    into_residual = [stacked["mixer"]["project_out"]["kernel"], stacked["mlp"]["fc2"]["kernel"]]
    assert [x.std() for x in into_residual] == pytest.approx([0.02 / math.sqrt(16)] * 2, rel=0.03)
    assert (stacked["norm1"]["scale"] == 1).all() and (stacked["mlp"]["fc1"]["bias"] == 0).all()


def test_published_initialisation() -> None:
    c = config("normalized_attention", d_model=64, d_state=32, num_layers=4)
    params = nn.build(c).init(jax.random.key(0))
    stacked = jax.tree.map(lambda *x: np.stack(x), *params["blocks"].values())
    assert stacked["mixer"]["core"]["W_q"].std() == pytest.approx(1 / 8, rel=0.03)
    assert stacked["mixer"]["project_out"]["kernel"].std() == pytest.approx(1 / 8, rel=0.03)
    assert stacked["mlp"]["fc2"]["kernel"].std() == pytest.approx(1 / 16, rel=0.03)


def test_layers_and_seeds_start_differently() -> None:
    model = nn.build(config("ssd"))
    blocks = [model.init(jax.random.key(seed))["blocks"] for seed in (0, 1)]
    kernels = [np.asarray(b["mixer"]["core"]["W_v"]) for of in blocks for b in of.values()]
    assert len({k.tobytes() for k in kernels}) == 4


def test_systems_of_a_model_are_what_it_runs() -> None:
    """The first layer's System on the tokens it names gives what enters the rest."""
    model, params, *_ = compiled("linear_attention", num_layers=1, block="mamba")
    ids = tokens(LENGTH)

    @jax.jit
    def by_system(params: Any) -> Any:
        ((system, u),) = model.systems(params, ids)
        return scan(system, u)[0]

    embedding = np.asarray(params["embed"]["embedding"])
    p = params["blocks"]["block_0"]
    h = embedding[np.asarray(ids)]
    mixed = np.asarray(by_system(params)) @ np.asarray(p["mixer"]["project_out"]["kernel"])
    features = layer_norm(h + mixed, params["norm_f"])
    assert error(jax.jit(model.features)(params, ids), features) < 1e-12


def test_systems_of_all_layers_separate_documents() -> None:
    model, params, *_ = compiled("ssd", surroundings="practice", head="untied")
    reset = jnp.arange(LENGTH) == 4
    found = jax.jit(model.systems)(params, tokens(LENGTH), reset=reset)
    assert len(found) == 2
    for system, u in found:
        assert (system.reset == reset).all()
        assert u.shape == (LENGTH, 16) and system.length == LENGTH


def test_dropout_of_embedding_and_residual() -> None:
    plain, params, apply, *_ = compiled("linear_attention", num_layers=1, block="mamba")
    exact = apply(params, tokens(LENGTH))
    for own in ({"embed_dropout": 0.5}, {"residual_dropout": 0.5}, {"attention_dropout": 0.5}):
        model = nn.build(config("linear_attention", num_layers=1, block="mamba", **own))
        run = jax.jit(lambda key, m=model: m.apply(params, tokens(LENGTH), key=key))
        features = jax.eval_shape(model.features, params, tokens(LENGTH))
        assert features.shape == (LENGTH, 8)
        assert error(run(None), exact) < 1e-14, own
        first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
        assert (first == again).all()
        assert error(first, exact) > 1e-2 and error(first, other) > 1e-2
    without = jax.jit(lambda key: plain.apply(params, tokens(LENGTH), key=key))
    assert error(without(jax.random.key(0)), exact) < 1e-14


def test_traced_rate_stands_for_those_that_are_not_zero() -> None:
    where = {"embed_dropout": 0.5, "attention_dropout": 0.5}
    _, params, *_ = compiled("linear_attention", num_layers=1, block="mamba")

    def run(key: Any, rate: Any, **own: float) -> Any:
        model = nn.build(config("linear_attention", num_layers=1, block="mamba", **own))
        return model.features(params, tokens(LENGTH), key=key, dropout=rate)

    traced = jax.jit(lambda key, rate: run(key, rate, **where))
    for rate in (0.0, 0.25):
        fixed = jax.jit(lambda key, r=rate: run(key, None, **{name: r for name in where}))
        key = jax.random.key(0)
        assert error(traced(key, rate), fixed(key)) < 1e-14
    # A place where the config drops nothing keeps everything.
    key = jax.random.key(0)
    assert error(jax.jit(run)(key, 0.9), jax.jit(run)(None, None)) < 1e-14


def test_rates_are_those_of_their_places() -> None:
    """Dropping the embedding or all residual contributions leaves exactly what remains."""
    nearly_all = 1 - 1e-9
    _, params, *_ = compiled("linear_attention", num_layers=1)

    def run(**own: float) -> Any:
        model = nn.build(config("linear_attention", num_layers=1, **own))
        return jax.jit(lambda key: model.features(params, tokens(LENGTH), key=key))(
            jax.random.key(0)
        )

    embedding = np.asarray(params["embed"]["embedding"])[np.asarray(tokens(LENGTH))]
    only_embedding = layer_norm(embedding, params["norm_f"])
    assert error(run(residual_dropout=nearly_all), only_embedding) < 1e-12
    nothing = run(embed_dropout=nearly_all)
    assert error(nothing, np.broadcast_to(nothing[0], nothing.shape)) < 1e-12


def test_seeds_and_rates_in_one_program() -> None:
    model = nn.build(config("linear_attention", num_layers=1, block="mamba"))
    ids = tokens(LENGTH)

    def train_a_step(params: Any, rate: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = model.apply(params, ids)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), ids[1:, None], 1))

        before, slope = jax.value_and_grad(loss)(params)
        return before, loss(jax.tree.map(lambda p, g: p - rate * g, params, slope))

    keys, rates = jax.random.split(jax.random.key(0), 3), jnp.array([1e-3, 1e-2])

    def run(key: Any, rate: Any) -> Any:
        return train_a_step(model.init(key), rate)

    grid = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(keys, rates)
    one = jax.jit(train_a_step)
    for i, key in enumerate(keys):
        for j, rate in enumerate(rates):
            before, after = one(model.init(key), rate)
            assert float(grid[0][i, j]) == pytest.approx(float(before), rel=1e-12)
            assert float(grid[1][i, j]) == pytest.approx(float(after), rel=1e-12)
            assert after < before


def test_gradients_reach_every_parameter() -> None:
    for name, own in (("ssd", {"surroundings": "practice"}), ("rg_lru", {})):
        model = nn.build(config(name, max_length=LENGTH, num_layers=1, **own))
        params = perturbed(model)

        def loss(params: Any, m: nn.Model = model) -> Any:
            logits = m.apply(params, tokens(LENGTH))
            return jnp.sum(jnp.sin(jnp.arange(VOCAB) * logits))

        for path, slope in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
            assert (slope != 0).any(), (name, jax.tree_util.keystr(path))


def test_model_runs_in_float32_where_jax_does() -> None:
    with jax.enable_x64(False):
        model = nn.build(config("rg_lru", num_layers=1, block="mamba"))
        params = model.init(jax.random.key(0))
        logits = jax.jit(model.apply)(params, jnp.arange(LENGTH))
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    assert logits.dtype == jnp.float32
    wide = nn.build(config("rg_lru", num_layers=1, block="mamba"))
    exact = jax.jit(wide.apply)(jax.tree.map(_double, params), jnp.arange(LENGTH))
    assert exact.dtype == jnp.float64
    assert error(logits, exact) < 1e-5


def _double(x: Any) -> Any:
    return jnp.asarray(np.asarray(x), jnp.float64)


def test_config_is_immutable_data() -> None:
    c = config("ssd")
    assert c == config("ssd") and hash(c) == hash(config("ssd"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.d_model = 16  # type: ignore[misc]
