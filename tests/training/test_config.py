"""Configs: checked when made, and the same after a trip through JSON."""

import dataclasses
import json
from typing import Any

import pytest

from dsfjax import tasks
from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import OptimizerConfig, TrainConfig, from_json, presets, serial, to_json

TASK = MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4)
MODEL = ModelConfig("ssd", vocab_size=64, d_model=16, options=(("num_groups", 1),))
CONFIG = TrainConfig(
    TASK,
    MODEL,
    OptimizerConfig(schedule="cosine_per_epoch", steps_per_epoch=10, clip=1.0, decay_all=False),
    steps=20,
    eval_every=10,
    seeds=(3, 4),
    learning_rates=(0.1, 1.0),
    stop_at=None,
    shared_data=True,
)


def data() -> dict[str, Any]:
    return json.loads(to_json(CONFIG))


def test_json_round_trip() -> None:
    again = from_json(to_json(CONFIG))
    assert again == CONFIG
    assert hash(again) == hash(CONFIG)
    assert isinstance(again.learning_rates, tuple)


def test_whole_numbers_stand_for_floats() -> None:
    changed = data() | {"learning_rates": [1, 2]}
    assert from_json(json.dumps(changed)).learning_rates == (1.0, 2.0)
    assert isinstance(from_json(json.dumps(changed)).learning_rates[0], float)


def test_absent_fields_take_their_defaults() -> None:
    less = {"task": {"vocab_size": 64, "seq_len": 32}, "model": data()["model"]}
    assert from_json(json.dumps(less)) == TrainConfig(TASK, MODEL)


def change(path: str, value: Any) -> dict[str, Any]:
    changed = data()
    *folders, name = path.split(".")
    inner = changed
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("step", 3, ValueError, "unknown key of config 'step'; did you mean 'steps'"),
        (
            "optimizer.weight_decy",
            0.0,
            ValueError,
            "key of config.optimizer 'weight_decy'; did you mean 'weight_decay'",
        ),
        ("model.d_modl", 3, ValueError, "did you mean 'd_model'"),
        ("steps", "20", TypeError, "config.steps: expected int, got '20'"),
        ("steps", True, TypeError, "config.steps: expected int, got True"),
        ("optimizer.decay_all", 1, TypeError, "config.optimizer.decay_all: expected bool"),
        ("seeds", 3, TypeError, "config.seeds: expected a list"),
        ("seeds", [0, 0.5], TypeError, r"config.seeds\[1\]: expected int, got 0.5"),
        ("task", 3, TypeError, "config.task: expected an object of Task"),
        ("stop_when", "all", ValueError, "unknown stop_when 'all'"),
        ("task.num_kv_pairs", 9, ValueError, "num_kv_pairs"),
    ],
)
def test_json_errors(path: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_json(json.dumps(change(path, value)))


def test_missing_key() -> None:
    less = data()
    del less["task"]
    with pytest.raises(ValueError, match="expected the key 'task'"):
        from_json(json.dumps(less))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": dataclasses.replace(MODEL, vocab_size=65)}, "model.vocab_size = task.vocab_s"),
        ({"model": dataclasses.replace(MODEL, max_length=31)}, "at least task.seq_len = 32"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"steps": 25}, "eval_every = 10, got 25; nearest: 20"),
        ({"steps": 4}, "nearest: 10"),
        ({"seeds": ()}, "distinct seeds, at least one"),
        ({"seeds": (1, 1)}, "distinct seeds"),
        ({"seeds": (-1,)}, "seeds in"),
        ({"learning_rates": (0.1, -0.1)}, "positive learning_rates"),
        ({"learning_rates": (float("nan"),)}, "positive learning_rates"),
        ({"train_examples": 0}, "train_examples >= 1 or None"),
        ({"stop_at": 1.5}, r"stop_at in \(0, 1\]"),
        ({"stop_when": "one_rat"}, "did you mean 'one_rate'"),
        ({"optimizer": OptimizerConfig(warmup_steps=20)}, "warmup_steps below steps = 20"),
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_a_field_that_came_later_is_written_only_where_it_says_something() -> None:
    assert "train_examples" not in data()
    fixed = dataclasses.replace(CONFIG, train_examples=10)
    assert json.loads(to_json(fixed)) == data() | {"train_examples": 10}
    assert from_json(to_json(fixed)) == fixed
    assert fixed.fingerprint != CONFIG.fingerprint


def test_differences_name_the_path() -> None:
    other = change("model.d_model", 32) | {"steps": 40}
    assert serial.differences(data(), other) == ["model.d_model: 16 -> 32", "steps: 20 -> 40"]
    assert serial.differences(data(), data()) == []


def test_presets_give_a_config_per_mixer() -> None:
    demo = presets.configs("demo", "mqar")
    assert tuple(demo) == presets.PAPER_MIXERS
    assert all(config.model.mixer == mixer for mixer, config in demo.items())
    assert {config.task for config in demo.values()} == {TASK}


def test_preset_of_the_task_with_fields_of_a_mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = tasks.Preset(settings={"steps": 12}, own={"ssd": {"d_model": 32}})
    monkeypatch.setattr(MQARConfig, "presets", {"smoke": own})
    found = presets.configs("smoke", "mqar", ["ssd", "s6"])
    assert {config.steps for config in found.values()} == {12}
    assert [config.model.d_model for config in found.values()] == [32, 16]
