"""A task of one's own: 30 lines in the user's file, and everything that is made for tasks."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.cli import main
from dsfjax.nn import ModelConfig
from dsfjax.training import TrainConfig, from_json, load, to_json

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
