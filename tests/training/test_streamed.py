"""Training on what the host sends: numbers do not depend on blocks, and a killed run resumes."""

from pathlib import Path

import numpy as np
import pytest

from dsfjax.training import TrainConfig, load, presets, train
from tests.tasks.conftest import MakeUp
from tests.tasks.conftest import made_up as made_up
from tests.training.test_runs import KillAt, Killed, assert_same_run

pytest.importorskip("grain")

SETTINGS = {
    "corpus": "tinyshakespeare",
    "seq_len": 8,
    "streamed": True,
    "d_model": 8,
    "num_layers": 1,
    "block": "mamba",
    "batch_size": 4,
    "steps": 12,
    "eval_every": 2,
    "eval_examples": 3,
    "seeds": (0, 1),
    "learning_rates": (1e-2,),
    "stop_at": None,
    "checkpoint_every": 2,
}


@pytest.fixture
def config(made_up: MakeUp) -> TrainConfig:
    lines = b"To be, or not to be:\nthat is the question.\n"
    made_up({"tinyshakespeare/input.txt": lines * 12})  # 57 windows: an epoch is 14 steps
    return presets.build("language", "linear_attention", SETTINGS)


@pytest.mark.parametrize(
    "at", [6, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 4, 8, 10))]
)
def test_a_killed_stream_resumes_in_mid_epoch(at: int, config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "straight")
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", listener=KillAt(at))
    train(config, tmp_path / "killed")
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    lines = load(tmp_path / "straight").metrics
    assert lines[-1]["eval_bits_per_byte"] < lines[0]["eval_bits_per_byte"] < 8
    assert lines[0]["eval_perplexity"] > 1
    # Members share the stream and differ in their initial parameters alone.
    assert not np.isclose(lines[-1]["eval_loss"], lines[-2]["eval_loss"])
