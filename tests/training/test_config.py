"""Configs: checked when made, and the same after a trip through JSON."""

import dataclasses
import inspect
import json
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.nn import ModelConfig
from dsfjax.tasks import MSE, Metric
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import OptimizerConfig, TrainConfig, from_json, presets, to_json
from dsfjax.training.storage import serial

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
        ("steps", "20", TypeError, "config.steps: expected an integer, got '20'"),
        ("steps", True, TypeError, "config.steps: expected an integer, got True"),
        ("optimizer.decay_all", 1, TypeError, "config.optimizer.decay_all: expected True or False"),
        ("seeds", 3, TypeError, "config.seeds: expected a list"),
        ("seeds", [0, 0.5], TypeError, r"config.seeds\[1\]: expected an integer, got 0.5"),
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


@dataclasses.dataclass(frozen=True)
class Errors(MQARConfig):
    metric: ClassVar[Metric] = MSE


def test_what_solved_means_depends_on_the_metric() -> None:
    task = dataclasses.asdict(TASK)
    plain = TrainConfig(CONFIG.task, MODEL)
    assert plain.stop_at == 0.999
    assert TrainConfig(Errors(**task), MODEL).stop_at is None
    assert TrainConfig(Errors(**task), MODEL, stop_at=1.5).stop_at == 1.5
    assert dataclasses.replace(plain, task=CONFIG.task).stop_at == 0.999


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
        ({"learning_rates": (float("nan"),)}, r"learning_rates\[0\]: expected a finite number"),
        ({"weight_decays": (float("nan"),)}, r"weight_decays\[0\]: expected a finite number"),
        ({"stop_at": float("nan")}, "stop_at: expected a finite number"),
        ({"train_examples": 0}, "train_examples >= 1 or None"),
        ({"stop_at": 1.5}, r"stop_at in \(0, 1\]"),
        ({"stop_when": "one_rat"}, "did you mean 'one_rate'"),
        ({"optimizer": OptimizerConfig(warmup_steps=20)}, "warmup_steps below steps = 20"),
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def made(config: Any, **fields: Any) -> Any:
    """A config with these values, past the type check of the fields, which only pytest has on."""
    other = dataclasses.replace(config)
    for name, value in fields.items():
        object.__setattr__(other, name, value)
    inspect.unwrap(type(other).__post_init__)(other)
    return other


def test_values_of_other_types_are_converted_when_the_config_is_made() -> None:
    """As they come out of NumPy and JAX; written to disk they are those of Python."""
    options = (["num_groups", np.int64(1)], ("x", np.arange(2)))
    other = made(
        CONFIG,
        task=made(TASK, seq_len=np.int64(32), power_a=np.float32(0.5)),
        model=made(MODEL, d_model=np.int32(16), options=options),
        optimizer=made(
            OptimizerConfig(), warmup_steps=np.uint8(3), weight_decay=1, decay_all=np.True_
        ),
        batch_size=jnp.asarray(8),
        steps=np.int64(20),
        eval_every=np.int16(10),
        seeds=range(3),
        learning_rates=np.logspace(-2, -1, 2),
        weight_decays=jnp.asarray([0.0, 1.0]),
        init_scales=[1, np.float64(0.5)],
        stop_at=np.float64(0.5),
        shared_data=np.False_,
    )
    again = from_json(to_json(other))
    assert again == other
    assert to_json(again) == to_json(other)
    assert (other.steps, other.seeds, other.init_scales) == (20, (0, 1, 2), (1.0, 0.5))
    assert other.model.options == (("num_groups", 1), ("x", (0, 1)))
    for value in (other.steps, other.batch_size, other.task.seq_len, other.model.d_model):
        assert type(value) is int
    for value in (*other.learning_rates, *other.weight_decays, other.optimizer.weight_decay):
        assert type(value) is float
    assert type(other.optimizer.decay_all) is type(other.shared_data) is bool


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (CONFIG, {"steps": 20.0}, "TrainConfig.steps: expected an integer, got 20.0; write 20"),
        (CONFIG, {"steps": None}, "steps: expected an integer, got None"),
        (CONFIG, {"seeds": [0.5]}, r"seeds\[0\]: expected an integer"),
        (CONFIG, {"seeds": 0}, "seeds: expected a list, got 0"),
        (CONFIG, {"seeds": {1, 2}}, "seeds: expected a list, got {1, 2}"),
        (CONFIG, {"seeds": np.eye(2)}, r"seeds\[0\]: expected an integer"),
        (CONFIG, {"learning_rates": "0.1"}, "learning_rates: expected a list"),
        (CONFIG, {"shared_data": 1}, "shared_data: expected True or False"),
        (OptimizerConfig(), {"weight_decay": "0"}, "weight_decay: expected a number"),
        (MODEL, {"vocab_size": 64.5}, "ModelConfig.vocab_size: expected an integer"),
        (MODEL, {"options": (("f", max),)}, r"options\[0\]\[1\]: expected a list"),
    ],
)
def test_what_does_not_stand_for_its_type_is_refused(
    config: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        made(config, **fields)


@pytest.mark.parametrize("field", ["weight_decay", "eps", "b1", "clip"])
def test_numbers_that_are_not_finite_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"OptimizerConfig.{field}: expected a finite number"):
        OptimizerConfig(**{field: float("nan")})  # pyright: ignore[reportArgumentType]


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
    assert {config.task.seq_len for config in demo.values()} == {16}


def test_preset_of_the_task_with_fields_of_a_mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = tasks.Preset(settings={"steps": 12}, own={"ssd": {"d_model": 32}})
    monkeypatch.setattr(MQARConfig, "presets", {"smoke": own})
    found = presets.configs("smoke", "mqar", ["ssd", "s6"])
    assert {config.steps for config in found.values()} == {12}
    assert [config.architecture.d_model for config in found.values()] == [32, 16]
