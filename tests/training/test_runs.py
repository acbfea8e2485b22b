"""A run on disk: resumed bit for bit, finished once, and never another config's."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsfjax.cost import count_operations
from dsfjax.cost.peak import measured
from dsfjax.nn import ModelConfig, build
from dsfjax.tasks.mqar import MQARConfig, sample
from dsfjax.training import (
    Listener,
    Resources,
    RunError,
    TrainConfig,
    load,
    query_loss,
    to_json,
    train,
)
from dsfjax.training.compilation import compiling
from dsfjax.training.step import HELD_OUT, stream
from dsfjax.training.trackers import EventFiles, Together

CONFIG = TrainConfig(
    MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2),
    ModelConfig("linear_attention", vocab_size=32, d_model=16, num_layers=1, block="mamba"),
    batch_size=4,
    steps=12,
    eval_every=2,
    eval_examples=8,
    seeds=(0, 1),
    learning_rates=(1e-3, 1e-2),
    stop_at=None,
    checkpoint_every=2,
)
TIMES = ("seconds", "tokens_per_second", "memory_bytes")


class Killed(Exception):
    """In the place of a signal."""


class KillAt(Listener):
    """Ends the run after an evaluation, as a kill would: nothing more is written."""

    def __init__(self, step: int) -> None:
        self._step = step

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        if lines[0]["step"] == self._step:
            raise Killed


class Heard(Listener):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def started(self, name: str, config: TrainConfig) -> None:
        self.events.append(("started", name))

    def compiling(self, name: str) -> None:
        self.events.append(("compiling", name))

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        self.events.append((f"step {lines[0]['step']}", name))

    def finished(self, name: str, result: dict[str, Any]) -> None:
        self.events.append(("finished", name))


def numbers(folder: Path) -> list[str]:
    """The lines of metrics.jsonl without their wall times, as text: equal means every bit."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in line.items() if k not in TIMES}) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    train(CONFIG, folder)
    return folder


def assert_same_run(a: Path, b: Path) -> None:
    assert numbers(a) == numbers(b)
    one, other = load(a), load(b)
    for x, y in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True):
        np.testing.assert_array_equal(x, y)
    strip = [
        {k: v for k, v in r.items() if k in ("members", "steps")}
        for r in (one.result, other.result)
    ]
    assert strip[0] == strip[1]


# Killed where a checkpoint was just written (8), and where the last one is a block older (6).
@pytest.mark.parametrize("step", [8, 6, 2])
def test_resumes_bit_for_bit(step: int, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    with pytest.raises(Killed):
        train(CONFIG, folder, listener=KillAt(step))
    assert len(numbers(folder)) == 4 * step // 2
    assert not (folder / "result.json").exists()
    if step == 6:
        compiling.cache_clear()  # as in another process
    heard = Heard()
    train(CONFIG, folder, listener=heard)
    assert heard.events[2] == (f"step {step // 4 * 4 + 2}", "linear_attention")
    assert_same_run(finished, folder)


def test_resumes_after_a_torn_line_and_a_torn_checkpoint(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    with pytest.raises(Killed):
        train(CONFIG, folder, listener=KillAt(8))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "mem')
    shutil.rmtree(folder / "checkpoints" / "step_00000008" / "state")
    heard = Heard()
    train(CONFIG, folder, listener=heard)
    assert heard.events[2] == ("step 6", "linear_attention")
    assert (folder / "checkpoints" / "broken_step_00000008").is_dir()
    assert_same_run(finished, folder)


def test_killed_between_last_checkpoint_and_result(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    with pytest.raises(Killed):
        train(CONFIG, folder, listener=KillAt(12))
    heard = Heard()
    train(CONFIG, folder, listener=heard)
    assert [event for event, _ in heard.events] == ["started", "compiling", "finished"]
    assert_same_run(finished, folder)


def test_a_tracker_has_each_line_once(finished: Path, tmp_path: Path) -> None:
    def told() -> list[tuple[int, float]]:
        (place,) = (tmp_path / "events").glob("*/learning_rate=0.01,seed=1")
        reader = EventAccumulator(str(place), purge_orphaned_data=False).Reload()
        return [(event.step, event.value) for event in reader.Scalars("eval/loss")]

    folder, tracker = tmp_path / "run", EventFiles(tmp_path / "events")
    with pytest.raises(Killed):
        train(CONFIG, folder, listener=Together(tracker, KillAt(8)))
    assert [step for step, _ in told()] == [2, 4, 6, 8]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "mem')
    shutil.rmtree(folder / "checkpoints" / "step_00000008" / "state")
    train(CONFIG, folder, listener=EventFiles(tmp_path / "events"))
    lines = [line for line in load(folder).metrics if line["member"] == 3]
    expected = [(line["step"], pytest.approx(line["eval_loss"])) for line in lines]
    assert told() == expected
    # Of a run that is finished already it writes the same.
    shutil.rmtree(tmp_path / "events")
    train(CONFIG, folder, listener=EventFiles(tmp_path / "events"))
    assert told() == expected


def test_memory_and_use_of_the_peak(finished: Path, tmp_path: Path) -> None:
    result = train(CONFIG, tmp_path / "run", resources=Resources(mfu=True))
    plain = load(finished)
    # Where no peak is declared none is measured unless that was asked for.
    assert "mfu" not in plain.result and "mfu" not in plain.metrics[0]
    assert plain.result["memory_bytes"] == result["memory_bytes"] > 2**16
    task = CONFIG.task
    batch = jax.vmap(task.held_out, (None, 0))(jax.random.key(0), jnp.arange(1))
    examples = jax.eval_shape(jax.vmap(lambda pick: task.example(pick, ())), batch)
    model = build(CONFIG.model)
    counted = count_operations(
        jax.value_and_grad(lambda params, examples: query_loss(model, params, examples)[0]),
        jax.eval_shape(model.init, jax.random.key(0)),
        examples,
    )
    each = counted.flops / task.seq_len
    for read in (result, *load(tmp_path / "run").metrics):
        expected = read["tokens_per_second"] * each / measured("float32")
        assert read["mfu"] == pytest.approx(expected, rel=0.05)
    member = load(tmp_path / "run").members[0]
    assert member.timing["mfu"] == result["mfu"]
    assert "memory_bytes" not in member.metrics[0]


@pytest.mark.slow
def test_resumes_in_another_process(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    code = (
        "import sys, os, jax; jax.config.update('jax_enable_x64', True)\n"
        "from dsfjax.training import Listener, from_json, train\n"
        "class Kill(Listener):\n"
        "    def evaluated(self, name, lines):\n"
        "        if lines[0]['step'] == 8: os.kill(os.getpid(), 9)\n"
        "train(from_json(sys.argv[1]), sys.argv[2], listener=Kill())\n"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, to_json(CONFIG), str(folder)], check=False
        )
    assert done.returncode == 0  # the second begins after step 8
    assert numbers(finished) == numbers(folder)


def stop(folder: Path, step: int = 8) -> None:
    with pytest.raises(Killed):
        train(CONFIG, folder, listener=KillAt(step))


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder but the lock, which is empty."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def assert_refused(folder: Path, message: str) -> None:
    """Training there is an error, and no file is changed, renamed or added."""
    before = contents(folder)
    with pytest.raises(RunError, match=message):
        train(CONFIG, folder)
    assert contents(folder) == before


def test_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    """One of the same shapes, which nothing but the config it names tells from ours."""
    folder, other = tmp_path / "resumed", tmp_path / "other"
    stop(folder)
    with pytest.raises(Killed):
        train(dataclasses.replace(CONFIG, seeds=(5, 6)), other, listener=KillAt(8))
    ours = folder / "checkpoints" / "step_00000008"
    shutil.rmtree(ours)
    shutil.copytree(other / "checkpoints" / "step_00000008", ours)
    assert_refused(folder, "not of this program .*it is a checkpoint of")


def test_another_precision_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    stop(folder)
    with jax.enable_x64(False):
        assert_refused(folder, r"expected float32.*got float64.*JAX_ENABLE_X64")
    train(CONFIG, folder)
    assert_same_run(finished, folder)


@pytest.mark.parametrize("content", ["", '{"format": 2, "members"'])
def test_torn_result_is_set_aside(content: str, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "result.json").write_text(content)
    train(CONFIG, folder)
    assert (folder / "broken_result.json").read_text() == content
    assert_same_run(finished, folder)


@pytest.mark.parametrize("change", ["[1]", '{"format": 2}', {"config": "01234567"}, {"format": 9}])
def test_foreign_result_is_refused(change: str | dict, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "result.json"
    path.write_text(
        change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    )
    assert_refused(folder, "is not a result of the config next to it")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mixer": "linear_attention"', '"mixer": "hyena"', "unknown mixer 'hyena'"),
        ('"batch_size": 4', '"batch_sise": 4', "did you mean 'batch_size'"),
        ('"steps": 12', '"steps": 14', "steps: 14 -> 12"),
        ("}", "", "cannot be read"),
    ],
)
def test_foreign_config_is_refused(
    old: str, new: str, message: str, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    text = (folder / "config.json").read_text()
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new))
    assert_refused(folder, message)
    if "steps" not in message:
        with pytest.raises(RunError, match=message):
            load(folder)


@pytest.mark.parametrize("damage", ["gone", "torn early", "not ours", "a line is missing"])
def test_metrics_are_made_whole_from_the_checkpoint(
    damage: str, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    stop(folder)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    elif damage == "torn early":
        path.write_text("".join(lines[:5]) + lines[5][:20])
    elif damage == "not ours":
        path.write_text("1\n" + "".join(lines))
    else:
        path.write_text("".join(lines[:5] + lines[6:]))
    heard = Heard()
    train(CONFIG, folder, listener=heard)
    assert heard.events[2] == ("step 10", "linear_attention")
    assert_same_run(finished, folder)


def test_a_run_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError, match="expected a folder for the run, got the file"):
        train(CONFIG, tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot write to the run directory .*Not a directory"):
        train(CONFIG, tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "precious"


def test_killed_while_taking_the_folder(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / "config.json.123.tmp").write_text('{"ta')
    train(CONFIG, folder)
    assert not (folder / "config.json.123.tmp").exists()
    assert_same_run(finished, folder)


def test_configs_that_differ_in_members_share_a_compilation(finished: Path, tmp_path: Path) -> None:
    before = compiling.cache_info().misses
    other = dataclasses.replace(
        CONFIG,
        learning_rates=(0.5, 0.25),
        seeds=(7, 8),
        init_scales=(2.0,),
        optimizer=dataclasses.replace(CONFIG.optimizer, weight_decay=0.5),
        steps=8,
    )
    result = train(other, tmp_path / "run")
    assert compiling.cache_info().misses == before
    assert {member["weight_decay"] for member in result["members"]} == {0.5}
    assert {member["init_scale"] for member in result["members"]} == {2.0}


def test_finished_run_is_not_run_again(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    heard = Heard()
    result = train(CONFIG, finished, name="again", listener=heard)
    assert heard.events == [("started", "again"), ("finished", "again")]
    assert result == load(finished).result
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "result.json",
        ".lock",
    }
    run = load(finished)
    assert run.config == CONFIG
    assert run.environment["versions"]["jax"] == jax.__version__
    assert run.environment["backend"] == "cpu"
    assert len(run.metrics) == 6 * 4
    assert [line["step"] for line in run.metrics[::4]] == [2, 4, 6, 8, 10, 12]
    line = run.metrics[5]
    assert (line["member"], line["learning_rate"], line["seed"]) == (1, 1e-3, 1)
    assert line["tokens_per_second"] == pytest.approx(4 * 2 * 4 * 16 / line["seconds"])
    result = run.result
    assert result["train_seconds"] == pytest.approx(sum(x["seconds"] for x in run.metrics[::4]))
    assert result["tokens_per_second"] == pytest.approx(4 * 12 * 4 * 16 / result["train_seconds"])
    last = run.metrics[-1]
    member = result["members"][3]
    assert {k: member[k] for k in ("eval_loss", "eval_accuracy", "train_loss")} == {
        k: last[k] for k in ("eval_loss", "eval_accuracy", "train_loss")
    }
    assert member["status"] == "finished"
    assert result["steps"] == member["step"] == 12
    size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert size == 4 * result["num_params"]


def test_loaded_parameters_are_those_evaluated(finished: Path) -> None:
    run = load(finished)
    model = build(run.config.model)
    keys = [stream(jax.random.key(0), HELD_OUT, index) for index in range(8)]
    batch = jax.vmap(lambda key: sample(key, CONFIG.task))(jax.numpy.stack(keys))  # pyright: ignore[reportArgumentType]
    evaluate = jax.jit(lambda params: query_loss(model, params, batch))
    for index, member in enumerate(run.result["members"]):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], run.params)
        loss, metrics = evaluate(params)
        np.testing.assert_allclose(loss, member["eval_loss"], rtol=1e-10)
        np.testing.assert_allclose(metrics["accuracy"], member["eval_accuracy"], atol=1e-12)


def test_folder_of_another_config(finished: Path) -> None:
    other = dataclasses.replace(CONFIG, steps=14)
    with pytest.raises(RunError, match=r"steps: 12 -> 14.*choose another run directory"):
        train(other, finished)


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="no config.json: choose another"):
        train(CONFIG, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_load_says_what_is_missing(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunError, match="no result.json"):
        load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000012" / "state")
    with pytest.raises(RunError, match="checkpoint .*step_00000012"):
        load(copy)


def test_diverged_and_stopped_members_are_reported(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        learning_rates=(1e300, 1e-9, 1e-2),
        seeds=(0,),
        stop_at=0.08,
        stop_when="one_rate",
        eval_examples=64,
        steps=200,
        eval_every=10,
    )
    result = train(config, tmp_path / "run")
    statuses = [member["status"] for member in result["members"]]
    assert statuses == ["diverged", "stopped", "solved"]
    assert result["members"][0]["train_loss"] is None
    assert result["members"][0]["step"] == 10
    assert result["steps"] < config.steps
    # Only steps that a member took count: the first one stopped after 10.
    metrics = load(tmp_path / "run").metrics
    for line in metrics:
        trained = sum(other["step"] == line["step"] for other in metrics)
        expected = trained * 10 * 4 * 16 / line["seconds"]
        assert line["tokens_per_second"] == pytest.approx(expected)
    tokens = (10 + 2 * result["steps"]) * 4 * 16
    assert result["tokens_per_second"] == pytest.approx(tokens / result["train_seconds"])
    # JSON has no NaN: any reader must be able to read these.
    for name in ("metrics.jsonl", "result.json"):
        assert "NaN" not in (tmp_path / "run" / name).read_text()
