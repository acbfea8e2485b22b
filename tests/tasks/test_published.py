"""Published settings: every one fits together, and is what its source says."""

import dataclasses
import math
from typing import Any

import jax
import pytest

from dsfjax import nn, systems, tasks
from dsfjax.cost.sizing import abstract_parameters
from dsfjax.tasks import published
from dsfjax.tasks.language_modelling import Language
from dsfjax.training import TrainConfig, from_json, presets, to_json

TASKS = tuple(name for name in tasks.names() if "paper" in presets.names(name))
LANGUAGE = ("softmax_attention", "s6", "ssd", "rg_lru")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """WikiText-103 in GPT-2's byte pairs, of which nothing is read."""
    monkeypatch.setattr(Language, "vocab_size", 50_257)
    monkeypatch.setattr(Language, "size", lambda task, split: 100_000 if split == "train" else 288)


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("task", TASKS)
def test_every_architecture_has_a_config(task: str) -> None:
    preset = presets.get("paper", task)
    found = presets.configs("paper", task, systems.names())
    assert {*preset.mixers} <= {*found} and {*preset.own} <= {*found}
    for config in found.values():
        assert from_json(to_json(config)) == config
        assert config.eval_examples <= (config.task.size("held_out") or config.eval_examples)


def test_which_tasks_have_them() -> None:
    wanted = {"language", "parity", "modular_arithmetic", "word_problem", "copying"}
    wanted |= {"random_automata", *published.LRA, "permuted_mnist"}
    assert {*TASKS} == wanted | {name for name in tasks.names() if name.startswith("mad_")}
    with pytest.raises(ValueError, match="unknown preset 'paper'.*Known: demo, smoke"):
        presets.get("paper", "digits")


def of(config: TrainConfig) -> tuple[Any, ...]:
    """What tells the sources apart."""
    model, trained = config.architecture, config.optimizer
    rates = tuple(float(f"{rate:.3g}") for rate in config.learning_rates)
    return (
        *(model.d_model, model.num_layers, model.bidirectional, config.batch_size, config.steps),
        *(trained.warmup_steps, rates, trained.weight_decay, round(trained.dynamics_rate, 3)),
        trained.decay_all,
    )


@pytest.mark.parametrize(
    ("task", "mixer", "wanted"),
    [
        # S5's scripts: epochs of ⌊examples / batch⌋ steps, one of warm-up.
        ("listops", "s6", (128, 8, True, 50, 76_800, 1_920, (3e-3,), 0.04, 0.333, False)),
        ("imdb", "s6", (256, 6, True, 50, 17_500, 0, (4e-3,), 0.07, 0.25, False)),
        ("aan", "ssd", (128, 6, True, 32, 91_920, 4_596, (2e-3,), 0.05, 0.5, False)),
        ("cifar10", "rg_lru", (512, 6, True, 50, 225_000, 900, (4.5e-3,), 0.07, 0.222, False)),
        ("pathfinder", "s6", (192, 6, True, 64, 500_000, 2_500, (4.5e-3,), 0.03, 0.2, False)),
        ("permuted_mnist", "s6", (128, 3, False, 50, 240_000, 0, (1e-3,), 0.0, 1.0, False)),
        # The authors' Mamba-2: five epochs of warm-up.
        ("listops", "ssd", (128, 6, False, 50, 96_000, 9_600, (5e-4,), 0.01, 1.0, True)),
        ("cifar10", "ssd", (512, 6, False, 50, 45_000, 4_500, (2e-4,), 0.0, 1.0, True)),
        # Long Range Arena's Transformers: 0.05/√1000 and 0.05/√8000 at their peak.
        ("listops", "softmax_attention",
         (512, 4, True, 32, 5_000, 1_000, (1.58e-3,), 0.1, 1.0, True)),
        ("imdb_bytes", "linear_attention",
         (256, 4, True, 32, 20_000, 8_000, (5.59e-4,), 0.1, 1.0, True)),
        ("aan", "softmax_attention", (128, 4, True, 32, 5_000, 4_999, (3.49e-4,), 0.1, 1.0, True)),
        ("cifar10", "normalized_attention",
         (128, 1, True, 256, 35_000, 175, (5e-4,), 0.0, 1.0, True)),
        ("pathfinder", "softmax_attention",
         (32, 4, True, 512, 62_400, 312, (1e-3,), 0.0, 1.0, True)),
        ("pathfinder", "linear_attention",
         (128, 1, True, 512, 62_400, 312, (1e-3,), 0.0, 1.0, True)),
        ("parity", "s6", (128, 2, False, 256, 20_000, 2_000, (1e-3,), 0.0, 1.0, False)),
        ("mad_memorization", "s6",
         (128, 2, False, 128, 400, 0, (1e-4, 5e-4, 1e-3), 0.1, 1.0, True)),
    ],
)  # fmt: skip
def test_settings_are_those_of_the_source(task: str, mixer: str, wanted: tuple[Any, ...]) -> None:
    (config,) = presets.configs("paper", task, [mixer]).values()
    assert of(config) == wanted


def test_mad_is_the_benchmarks_run() -> None:
    for task in (name for name in TASKS if name.startswith("mad_")):
        for config in presets.configs("paper", task).values():
            assert len(config.members) == 6 and config.eval_examples == 1280
            epoch = -(-(config.train_examples or 0) // config.batch_size)
            assert config.optimizer.steps_per_epoch == config.eval_every == epoch
            assert config.steps == 200 * epoch
    # The defaults of the tasks are the baselines of the benchmark.
    baselines = {
        one.task: one.train_examples for one in tasks.mad.difficulties() if not one.changed
    }
    for task, examples in baselines.items():
        (config,) = presets.configs("paper", tasks.name_of(task), ["ssd"]).values()
        assert (config.task, config.train_examples) == (task, examples)


def parameters(model: nn.ModelConfig) -> int:
    """Number of parameters: all blocks are alike, so a model of one tells."""
    one = abstract_parameters(nn.build(dataclasses.replace(model, num_layers=1)))
    sizes = {name: sum(math.prod(x.shape) for x in jax.tree.leaves(one[name])) for name in one}
    return sum(sizes.values()) + (model.num_layers - 1) * sizes["blocks"]


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("mixer", presets.PAPER_MIXERS)
def test_language_models_have_70_million_parameters(mixer: str) -> None:
    (config,) = presets.configs("paper", "language", [mixer]).values()
    assert parameters(config.architecture) == pytest.approx(70e6, rel=0.03)
    assert (config.steps, config.batch_size, config.task.seq_len) == (130_000, 8, 1024)


@pytest.mark.parametrize(("task", "mixer"), [("aan", "linear_attention"), ("cifar10", "ssd")])
def test_models_can_be_made(task: str, mixer: str) -> None:
    (config,) = presets.configs("paper", task, [mixer]).values()
    assert parameters(config.architecture) > 1e5
