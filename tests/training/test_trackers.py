"""TensorBoard and Weights & Biases are told every evaluation once, whenever a run was killed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import Listener, OptimizerConfig, TrainConfig
from dsfjax.training.storage.folder import by_step
from dsfjax.training.trackers import EventFiles, Together, WeightsAndBiases, label, scalars

CONFIG = TrainConfig(
    MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2),
    ModelConfig("linear_attention", vocab_size=32, d_model=16, num_layers=1),
    OptimizerConfig(warmup_steps=2),
    steps=8,
    eval_every=2,
    seeds=(0, 1),
    learning_rates=(1e-3, 1e-2),
)
MEMBERS = [f"learning_rate={rate},seed={seed}" for rate in ("0.001", "0.01") for seed in ("0", "1")]


def lines(step: int) -> list[dict[str, Any]]:
    """An evaluation; the last member has diverged."""
    return [
        {
            "step": step,
            "member": index,
            **point._asdict(),
            "train_loss": None if index == 3 else 4 + index - step / 10,
            "train_accuracy": 0.125,
            "eval_loss": None if index == 3 else 5 + index - step / 10,
            "eval_accuracy": step / 16,
            "seconds": 0.5,
            "tokens_per_second": 1000.0,
            "memory_bytes": 2**20,
        }
        for index, point in enumerate(CONFIG.members)
    ]


def read(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Member to tag to (step, value), as TensorBoard's own reader finds them."""
    found = {}
    for place in sorted(folder.iterdir()):
        reader = EventAccumulator(str(place), purge_orphaned_data=False)
        reader.Reload()
        tags = reader.Tags()["scalars"]
        found[place.name] = {t: [(e.step, e.value) for e in reader.Scalars(t)] for t in tags}
        times = [event.wall_time for event in reader.Scalars("learning_rate")]
        assert times == sorted(set(times))
    return found


def test_scalars_have_the_rate_of_the_schedule_and_no_gaps() -> None:
    found = scalars(CONFIG, lines(2)[2] | {"mfu": 0.25, "probe": {"x": 1}})
    assert found == {
        "train/loss": 5.8,
        "train/accuracy": 0.125,
        "eval/loss": 6.8,
        "eval/accuracy": 0.125,
        "learning_rate": pytest.approx(1e-2),  # the end of the warm-up
        "tokens_per_second": 1000.0,
        "memory_bytes": 2**20,
        "mfu": 0.25,
    }
    assert scalars(CONFIG, lines(8)[0])["learning_rate"] < 1e-4
    assert "eval/loss" not in scalars(CONFIG, lines(2)[3])
    assert [label(CONFIG, index) for index in range(4)] == MEMBERS


def test_event_files_have_each_step_once_after_a_resume(tmp_path: Path) -> None:
    for _ in range(2):
        first = EventFiles(tmp_path)
        first.started("run", CONFIG)
        for step in (2, 4, 6):
            first.evaluated("run", lines(step))
        # Killed here; the last checkpoint was at step 4.
        second = EventFiles(tmp_path)
        second.started("run", CONFIG)
        second.restored("run", lines(2) + lines(4))
        assert read(tmp_path / "run")[MEMBERS[0]]["eval/accuracy"] == [(2, 0.125), (4, 0.25)]
        for step in (6, 8):
            second.evaluated("run", lines(step))
        found = read(tmp_path / "run")
        assert list(found) == MEMBERS
        for index, name in enumerate(MEMBERS):
            own = found[name]
            assert [step for step, _ in own["learning_rate"]] == [2, 4, 6, 8]
            assert own["eval/accuracy"] == [(2, 0.125), (4, 0.25), (6, 0.375), (8, 0.5)]
            assert ("eval/loss" in own) == (index != 3)
        assert found[MEMBERS[1]]["train/loss"][0] == (2, pytest.approx(4.8))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A module in the place of ``wandb``, and what its runs were told, by id."""
    runs: dict[str, Any] = {}

    def init(**given: Any) -> Any:
        run = runs.setdefault(given["id"], SimpleNamespace(logged=[], summary={}, ended=None))
        run.given = given
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda exit_code=0: setattr(run, "ended", exit_code)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # type: ignore[arg-type]
    yield runs


def test_wandb_has_a_run_per_member_and_each_step_once(
    fake: dict[str, Any], tmp_path: Path
) -> None:
    first = WeightsAndBiases("mine", tmp_path)
    first.started("run", CONFIG)
    assert fake == {}
    for step in (2, 4, 6):
        first.evaluated("run", lines(step))
    second = WeightsAndBiases("mine", tmp_path)
    second.started("run", CONFIG)
    second.restored("run", lines(2) + lines(4))
    for step in (6, 8):
        second.evaluated("run", lines(step))
    ended = [{"member": index, "status": "finished"} for index in range(4)]
    second.finished("run", {"members": ended})
    assert len(fake) == 4
    for index, run in enumerate(fake.values()):
        assert [step for step, _ in run.logged] == [2, 4, 6, 8]
        assert run.logged[0][1] == scalars(CONFIG, lines(2)[index])
        about = run.given
        assert (about["project"], about["group"], about["dir"]) == ("mine", "run", str(tmp_path))
        assert (about["resume"], about["reinit"]) == ("allow", "create_new")
        assert about["name"] == f"run {MEMBERS[index]}"
        assert about["config"]["learning_rate"] == CONFIG.members[index].learning_rate
        json.dumps(about["config"])
        assert run.summary["status"] == "finished" and run.ended == 0
    # A finished run that is looked at again has nothing new to say.
    third = WeightsAndBiases("mine", tmp_path)
    third.started("run", CONFIG)
    third.restored("run", [line for step in (2, 4, 6, 8) for line in lines(step)])
    third.finished("run", {"members": ended})
    assert len(fake) == 4 and all(len(run.logged) == 4 for run in fake.values())


def test_wandb_hears_of_a_failure(fake: dict[str, Any], tmp_path: Path) -> None:
    listener = Together(Listener(), WeightsAndBiases("mine", tmp_path))
    listener.started("run", CONFIG)
    listener.evaluated("run", lines(2))
    listener.failed("run", "no memory")
    assert [(run.ended, run.summary["reason"]) for run in fake.values()] == [(1, "no memory")] * 4
    # Another config in the same folder is another run.
    other = WeightsAndBiases("mine", tmp_path)
    other.started("run", TrainConfig(CONFIG.task, CONFIG.model, steps=8, eval_every=2))
    other.evaluated("run", lines(2)[:1])
    assert len(fake) == 5


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("wandb", lambda folder: WeightsAndBiases("mine", folder)),
        ("tensorboard.compat.proto", EventFiles),
    ],
)
def test_what_is_not_installed_names_the_extra(
    module: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dsfjax\[tracking\]'"):
        make(tmp_path)


def test_blocks_are_those_of_a_file() -> None:
    assert [[x["member"] for x in b] for b in by_step(lines(2) + lines(4)[:1])] == [
        [0, 1, 2, 3],
        [0],
    ]
