"""Runs of ours through `dsfjax.open`: the same object as a published checkpoint."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax import Opened, nn
from dsfjax.interop.published import trained as published_runs
from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import Loaded, MemberResult, RunError, TrainConfig, load, sweep
from tests.opened import distance

TASK = MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 12)))
MODELS = {
    "hybrid": {
        "mixer": "gated_deltanet+softmax_attention",
        "num_heads": 2,
        "max_length": 20,
        "mlp": "swiglu",
        "residual_scale": 0.5,
        "embed_scale": 2.0,
    },
    "side_by_side": {"mixer": "ssd&mlstm", "surroundings": "practice", "block": "transformer"},
    "untied": {
        "mixer": "s6",
        "surroundings": "practice",
        "block": "mamba",
        "head": "untied",
        "norm": "rms",
        "logit_cap": 5.0,
    },
    "cell": {"mixer": "lstm", "num_layers": 1},
}
QUICK = ("untied",)


def config(name: str, **own: Any) -> TrainConfig:
    model = {"d_model": 8, "num_layers": 2, "mixer": name, **MODELS.get(name, {})}
    small: dict[str, Any] = {"batch_size": 4, "steps": 2, "eval_every": 2, "eval_examples": 32}
    return TrainConfig(TASK, ModelConfig(vocab_size=32, **model), **small, **own)


def opened(one: TrainConfig, params: Any) -> Opened:
    """A run that has ended with these parameters, without its training."""
    point = one.members[0]
    ended = MemberResult(run="", member=0, mixer="", point=point, status="finished", eval_score=0.5)
    leaves = jax.tree.map(lambda leaf: leaf[None], params)
    loaded = Loaded(one, {}, [], {}, (ended,), leaves)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(published_runs, "load", lambda _: loaded)
        (Path(folder) / "result.json").write_text("{}")
        return dsfjax.open(folder)


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MODELS
])  # fmt: skip
def run(request: pytest.FixtureRequest) -> tuple[Opened, nn.Model, Any]:
    """An opened run, and the model and parameters that it has to be."""
    one = config(request.param)
    own = nn.build(one.architecture)
    params = jax.jit(own.init)(jax.random.key(0))
    return opened(one, params), own, params


def test_it_computes_what_was_trained(run: tuple[Opened, nn.Model, Any]) -> None:
    model, own, params = run
    expected = jax.jit(jax.vmap(lambda ids: own.apply(params, ids)))(IDS)
    assert distance(model.logits(IDS), expected) < 1e-12
    hidden = model.hidden(IDS[0])
    assert len(hidden) == model.num_layers + 1
    assert distance(model.layer(0)(hidden[0]), hidden[1]) < 1e-12
    found = [each for layer in model.systems(IDS[0]) for each in layer]
    for (system, u), (known, v) in zip(found, own.systems(params, IDS[0]), strict=True):
        assert jax.tree.structure(system) == jax.tree.structure(known)
        assert distance(u, v) < 1e-12


def test_it_continues_prompts_padded_or_not(run: tuple[Opened, nn.Model, Any]) -> None:
    model, own, params = run
    mixed = [IDS[0, :4], IDS[1, :7]]
    alone = [own.generate(params, prompt, 5) for prompt in mixed]
    assert np.array_equal(model.generate(mixed, 5), np.stack(alone))


def test_nudges_are_added_to_the_outputs_of_systems(run: tuple[Opened, nn.Model, Any]) -> None:
    model, own, params = run
    gradients = model.passes(IDS[0]).gradients
    flat = tuple(x for layer in gradients for x in layer)
    expected = own.head(params, own.features(params, IDS[0], added=flat))
    assert distance(model.apply(model.params, IDS[0], nudges=gradients), expected) < 1e-12
    assert distance(expected, model.logits(IDS[0])) > 1e-6


def test_layers_that_know_their_place() -> None:
    """Each has its own decay, as in the model that was trained."""
    one = config("lightning")
    own = nn.build(one.architecture)
    params = jax.jit(own.init)(jax.random.key(0))
    layers: Any = opened(one, params).systems(IDS[0]), own.systems(params, IDS[0])
    found = [layer[0][0].A.log_a for layer in layers[0]]
    np.testing.assert_array_equal(found, [system.A.log_a for system, _ in layers[1]])
    assert (found[0] != found[1]).all()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"bidirectional": True}, "got one bidirectional"),
        ({"head": "classifier", "num_classes": 2}, "got one with the head 'classifier'"),
    ],
)
def test_what_does_not_continue_text_is_refused(own: dict[str, Any], message: str) -> None:
    one = config("untied")
    object.__setattr__(one, "model", dataclasses.replace(one.architecture, **own))
    with pytest.raises(ValueError, match=f"a model that continues text.*{message}"):
        opened(one, {"embed": jnp.ones((2, 3))})


def test_members_of_several_tasks_have_no_best(tmp_path: Path) -> None:
    """Their scores may be of one kind, and still are no order."""
    point = config("untied").members[0]
    ended = MemberResult(run="", member=0, mixer="", point=point, status="finished")
    members = [
        dataclasses.replace(ended, eval_score=score, config={"task": task})
        for score, task in ((0.5, {"name": "digits"}), (1.0, {}))
    ]
    with pytest.raises(RunError, match="expected finished runs of one task, got 2 tasks"):
        published_runs.best(tmp_path, members)
    assert published_runs.best(tmp_path, [members[0], members[0]]) is members[0]


@pytest.mark.slow
def test_the_best_of_a_sweep_is_opened(tmp_path: Path) -> None:
    """Of all members of all programs; and a run with learned positions ends with them."""
    rates = (1e-3, 1e-2)
    configs = {name: config(name, learning_rates=rates) for name in ("untied", "hybrid")}
    sweep(configs, tmp_path / "sweep")
    runs = {name: load(tmp_path / "sweep" / name) for name in configs}
    every = [(one.score, name, one.member) for name in sorted(runs) for one in runs[name].members]
    _, name, member = max(every, key=lambda one: one[0])
    assert len({score for score, *_ in every}) > 1
    model = dsfjax.open(tmp_path / "sweep")
    assert model.path.name == name
    table = runs[name].params["embed"]["embedding"][member]
    assert np.array_equal(model.params["embed.embedding"], table)
    hybrid = dsfjax.open(tmp_path / "sweep" / "hybrid")
    with pytest.raises(ValueError, match="at most 20 tokens, for so many positions were learned"):
        hybrid.generate(IDS[0], 10)
    with pytest.raises(ValueError, match="save: expected a model of a published format, got run"):
        hybrid.save(tmp_path / "other")
    with pytest.raises(ValueError, match="found a run of dsfjax; dsfjax.open opens it"):
        dsfjax.interop.published.inspect(tmp_path / "sweep" / "hybrid")
