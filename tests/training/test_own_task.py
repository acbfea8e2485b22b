"""A task of one's own: 30 lines in the user's file, and everything that is made for tasks."""

import csv
import dataclasses
import json
import re
import sqlite3
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.cli import main
from dsfjax.nn import ModelConfig
from dsfjax.training import TrainConfig, from_json, load, read_results, to_json
from experiments.claims import Claim, judge
from experiments.experiment import summarize

TASK = '''
import dataclasses

import jax
import jax.numpy as jnp

from dsfjax import tasks


@dataclasses.dataclass(frozen=True)
class Peak(tasks.Generated):
    """Which of three waves is the loudest: two channels of values, one question."""

    title = "The loudest wave"
    channels = 2
    num_classes = 3

    seq_len: int = 12
    noise: float = tasks.option(0.1, "Standard deviation of what is added.")

    def sample(self, key):
        which, rest = jax.random.split(key)
        loudest = jax.random.randint(which, (), 0, 3, jnp.int32)
        t = jnp.arange(self.seq_len)[:, None] * jnp.array([1.0, 0.5])
        added = self.noise * jax.random.normal(rest, (self.seq_len, 2))
        inputs = jnp.sin(t * (1 + loudest)) + added
        return tasks.Example(inputs, jnp.array([self.seq_len - 1]), loudest[None])


tasks.register("peak", Peak)
'''


FORECAST = '''
import dataclasses

import jax
import jax.numpy as jnp

from dsfjax import tasks


@dataclasses.dataclass(frozen=True)
class Swing(tasks.Generated):
    """The next two values of a swing of unknown frequency and phase."""

    title = "A swing"
    channels = 1
    num_outputs = 2
    metric = tasks.MSE
    also = (tasks.MAE,)

    seq_len: int = 10

    def sample(self, key):
        rate, phase = jax.random.uniform(key, (2,)) + 0.5
        wave = jnp.sin(rate * jnp.arange(self.seq_len + 2.0) + 4 * phase)
        last = jnp.array([self.seq_len - 1])
        return tasks.Example(wave[: self.seq_len, None], last, wave[None, self.seq_len :])

    def measure(self, outputs, targets):
        mse = ((outputs - targets) ** 2).mean(axis=-1)
        return {"loss": mse, "mse": mse, "mae": abs(outputs - targets).mean(axis=-1)}

    def baselines(self):
        return {"trivial": tasks.Baseline(2.0, "repeating the last value")}


tasks.register("swing", Swing)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "waves.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_trains_from_the_command_line(own: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(TASK.splitlines()) < 40
    words = "train peak --import waves --preset smoke --mixer ssd --noise 0.2 --seq-len 10"
    assert main([*words.split(), "--run-dir", str(own / "run")]) == 0
    out = capsys.readouterr().out
    assert "ssd: step 24/24" in out
    text = (own / "run" / "config.json").read_text()
    assert json.loads(text)["task"] == {"name": "peak", "seq_len": 10, "noise": 0.2}
    assert json.loads(text)["imports"] == ["waves"]
    loaded = load(own / "run")
    assert loaded.config == from_json(to_json(loaded.config))
    assert (loaded.config.model.channels, loaded.config.model.num_classes) == (2, 3)
    losses = [line["train_loss"] for line in loaded.metrics]
    assert losses[-1] < losses[0]
    assert 0 <= loaded.metrics[-1]["eval_accuracy"] <= 1
    assert main(["train", "peek", "--import", "waves", "--mixer", "ssd"]) == 2
    assert "unknown task 'peek'; did you mean 'peak'?" in capsys.readouterr().err


@pytest.mark.slow
def test_its_report_is_written(own: Path, capsys: pytest.CaptureFixture) -> None:
    """A classifier of values: no single token is the answer, and nothing is decoded."""
    words = "compare peak --import waves --preset smoke --mixers ssd softmax_attention"
    assert main([*words.split(), "--run-dir", str(own / "run")]) == 0
    assert "report: " in capsys.readouterr().out
    page = (own / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "The loudest wave" in page and "Multi-query" not in page


@pytest.mark.slow
def test_a_task_of_which_less_is_better_from_training_to_the_verdict(
    own: Path, capsys: pytest.CaptureFixture
) -> None:
    (own / "swings.py").write_text(FORECAST)
    words = (
        "compare swing --import swings --preset smoke --mixers ssd linear_attention --lrs 1e-3 3e-2"
    )
    assert main([*words.split(), "--run-dir", str(own / "run")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"ssd: step 24/24, loss \d\.\d{4}, MSE \d\.\d+ \(lr 0\.03, seed", out)
    assert "accuracy" not in out and "90 %" not in out
    assert re.search(r"mixer +MSE ↓ +MAE ↓ +best lr", out)
    # The store, the files and the rows say the same, the lowest mean first.
    rows = json.loads((own / "run" / "compare.json").read_text())
    order = sorted(rows, key=lambda row: row["mse_mean"])
    members = read_results(own / "run")
    for row in rows:
        each = [m for m in members if m.run == row["mixer"]]
        assert all(m.measured == (tasks.MSE, tasks.MAE) and m.status == "finished" for m in each)
        means = {
            rate: np.mean([m.score for m in each if m.point.learning_rate == rate])
            for rate in (1e-3, 3e-2)
        }
        assert row["mse_mean"] == pytest.approx(min(means.values()))
        assert row["best_learning_rate"] == min(means, key=lambda rate: means[rate]) == 3e-2
        assert row["steps_to_90"] is None and not any("accura" in name for name in row)
        last = each[0].metrics[-1]
        assert (last["eval_mse"], last["eval_mae"]) == (each[0].eval_score, each[0].also["mae"])
        assert last["eval_loss"] == last["eval_mse"] > last["eval_mae"] ** 2
        assert load(own / "run" / row["mixer"]).config.stop_at is None
    connection = sqlite3.connect(own / "run" / "results.sqlite")
    query = "SELECT run, min(eval_score) FROM members GROUP BY run ORDER BY 2"
    assert connection.execute(query).fetchone()[0] == min(members, key=lambda m: m.score).run
    connection.close()
    shown = [line for line in out.splitlines() if re.match(r"(ssd|linear_attention) .* ± ", line)]
    assert [line.split()[0] for line in shown] == [row["mixer"] for row in order]
    # The report: order, words and columns.
    report = own / "run" / "report"
    page = (report / "index.html").read_text(encoding="utf-8")
    assert page.index(f'<th scope="row" data-value="{order[0]["mixer"]}"') > 0
    assert "MSE ↓" in page and "repeating the last value" in page and "ccuracy" not in page
    with (report / "data" / "summary.csv").open(newline="", encoding="utf-8") as file:
        summary = list(csv.DictReader(file))
    assert [line["mixer"] for line in summary] == [row["mixer"] for row in order]
    assert float(summary[0]["mse_mean"]) == order[0]["mse_mean"]
    assert float(summary[0]["mae_std"]) == order[0]["mae_std"]
    assert main(["results", str(own / "run")]) == 0
    assert re.search(r"learning rate +seed +MSE ↓ +loss +status", capsys.readouterr().out)
    assert main(["results", str(own / "run"), "--json"]) == 0
    final = json.loads(capsys.readouterr().out.splitlines()[0])["final"]
    assert (
        final["eval_mse"] == members[0].eval_score and final["eval_mae"] == members[0].also["mae"]
    )
    # A row of an experiment.
    points = [
        summarize(
            f"{row['mixer']}, L=10",
            load(own / "run" / row["mixer"]).config,
            row,
            [m for m in members if m.run == row["mixer"]],
        )
        for row in rows
    ]
    for point, row in zip(json.loads(json.dumps(points, allow_nan=False)), rows, strict=True):
        assert (point["mean"], point["mae"]) == (row["mse_mean"], [row["mae_mean"], row["mae_std"]])
        assert point["min"] == min(m.score for m in members if m.run == row["mixer"])
        assert point["task"] == {"name": "swing", "seq_len": 10} and point["trivial"] == 2.0
        assert {member["mse"] for member in point["members"]} >= {point["min"]}
    claim = Claim("", {"series": order[0]["mixer"]}, {"series": order[1]["mixer"]})
    assert judge(claim, points).gain == order[1]["mse_mean"] - order[0]["mse_mean"]


def test_a_module_that_is_not_there(capsys: pytest.CaptureFixture) -> None:
    assert main(["systems", "--import", "no_such_module"]) == 2
    assert "expected a module 'no_such_module'" in capsys.readouterr().err


def test_resident_data_are_an_argument_of_the_program() -> None:
    @dataclasses.dataclass(frozen=True)
    class Rows(tasks.Resident):
        seq_len = 4
        vocab_size = 5
        num_classes = 2

        def arrays(self, split):
            del split
            return np.arange(24).reshape(6, 4) % 5

        def read(self, row):
            return tasks.Example(row, jnp.array([3]), row[:1] % 2)

    task = Rows()
    model = ModelConfig("ssd", vocab_size=5, head="classifier", num_classes=2)
    with pytest.raises(ValueError, match="batch_size of at most 6, the examples of split 'train'"):
        TrainConfig(task, model, batch_size=7, eval_examples=2)
    with pytest.raises(ValueError, match="train_examples None for a task with a training set of 6"):
        TrainConfig(task, model, batch_size=2, eval_examples=2, train_examples=3)
    batch = tasks.examples(task, tasks.TRAIN, 6, jax.random.key(0))
    assert sorted(batch.inputs[:, 0].tolist()) == sorted((np.arange(6) * 4 % 5).tolist())
    with pytest.raises(ValueError, match="task Rows is not registered"):
        to_json(TrainConfig(task, model, batch_size=2, eval_examples=2))
