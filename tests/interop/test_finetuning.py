"""Published checkpoints in the training loop."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax.engines import Shards
from dsfjax.interop.published.finetuning import Checkpoint
from dsfjax.nn import build
from dsfjax.report.read import read
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import (
    Listener,
    OptimizerConfig,
    RunError,
    TrainConfig,
    from_json,
    load,
    to_json,
    train,
)
from tests.opened import HERE, distance, opened, reference


def test_it_is_the_model_that_opens() -> None:
    """Values, the systems, and documents apart."""
    known = reference("mamba")
    ids = jnp.asarray(known["input_ids_a"][0])
    model = build(Checkpoint(str(HERE / "mamba"), vocab_size=64))
    params = jax.jit(model.init)(jax.random.key(3))
    assert distance(model.apply(params, ids), known["logits_a"][0]) < 1e-12
    systems = model.systems(params, ids)
    assert len(systems) == 2 and distance(systems[1][1], opened("mamba").systems(ids)[1][0][1]) == 0
    half = len(ids) // 2
    reset = jnp.arange(len(ids)) == half
    apart = model.apply(params, ids, reset=reset)
    assert distance(apart[half:], model.apply(params, ids[half:])) < 1e-12
    added = tuple(jnp.zeros((len(ids), u.shape[1])) for _, u in systems)
    moved = model.features(params, ids, added=(added[0], added[1].at[0].set(1)))
    assert distance(moved[0], model.features(params, ids)[0]) > 1e-3


CONFIG = TrainConfig(
    MQARConfig(vocab_size=64, seq_len=16, num_kv_pairs=2),
    Checkpoint(str(HERE / "mamba"), vocab_size=64, layers=(1,)),
    OptimizerConfig(decay_all=False, dynamics_rate=0.5, warmup_steps=2),
    batch_size=4,
    steps=12,
    eval_every=4,
    eval_examples=8,
    learning_rates=(3e-3,),
    stop_at=None,
    checkpoint_every=1,
    imports=("dsfjax.interop.published.finetuning",),
)


class Kill(Listener):
    """Ends a run after its second checkpoint."""

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        if lines[0]["step"] == 8:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train(CONFIG, folder)
    return folder


@pytest.mark.slow
def test_only_the_chosen_layers_are_trained(run: Path, tmp_path: Path) -> None:
    """And what was trained opens, and is written in the format that it had."""
    lines = load(run).metrics
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    before, after = opened("mamba"), dsfjax.open(run)
    for name, x in before.params.items():
        assert np.array_equal(after.params[name], x) == (".layers.1." not in name), name
    again = dsfjax.open(after.save(tmp_path / "published"))
    ids = reference("mamba")["input_ids_a"][0]
    assert again.dtype == after.dtype and np.array_equal(again.logits(ids), after.logits(ids))
    with pytest.raises(RunError, match="of our architectures .*, got one of mamba"):
        read(run)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "killed", listener=Kill())
    assert not (tmp_path / "killed" / "result.json").exists()
    train(CONFIG, tmp_path / "killed")
    found, expected = (load(folder).params for folder in (tmp_path / "killed", run))
    for name, x in expected.items():
        assert np.array_equal(found[name], x), name


def test_its_config_is_read_back() -> None:
    assert from_json(to_json(CONFIG)) == CONFIG
    other = to_json(CONFIG).replace('"Checkpoint"', '"Chekpoint"')
    with pytest.raises(ValueError, match="unknown kind of model 'Chekpoint'; did you mean"):
        from_json(other)
    with pytest.raises(ValueError, match="expected a run of one of our architectures, got one of"):
        dataclasses.replace(CONFIG, probe_every=4)


@pytest.mark.parametrize(
    ("vocab_size", "layers", "message"),
    [
        (65, (), "at most the 64 tokens of the checkpoint, got 65"),
        (64, (2,), r"layers from 0 to 1, got \[2\]"),
    ],
)
def test_what_cannot_be_trained(vocab_size: int, layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Checkpoint(str(HERE / "mamba"), vocab_size, layers))


def test_it_does_not_decode() -> None:
    model = build(Checkpoint(str(HERE / "mamba"), vocab_size=64))
    with pytest.raises(ValueError, match=r"generate: expected a model that trains.*dsfjax\.open"):
        model.generate({}, jnp.arange(3), 4)
    with pytest.raises(ValueError, match="neither around nor shards with Checkpoint"):
        build(Checkpoint(str(HERE / "mamba"), vocab_size=64), shards=Shards("steps"))
