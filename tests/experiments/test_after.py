"""What is asked of trained models: the test split where validation chose, and eigenvalues."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dsfjax.tasks.language_modelling import Language
from dsfjax.training import load, score
from dsfjax.training.runs import program_of
from experiments import plots
from experiments.experiment import Experiment, Options, run
from experiments.rows import Row, configs
from tests.tasks.conftest import MakeUp
from tests.tasks.conftest import made_up as made_up

TEXT = b"To be, or not to be:\nthat is the question.\n" * 200
SMALL = {"seq_len": 16, "learning_rates": (1e-2,)}
ROW = Row("plays", "language", {"corpus": "tinyshakespeare", "tokens": "bytes"}, SMALL)
EXPERIMENT = Experiment(
    "plays",
    "",
    configs((ROW,), ("linear_attention",)),
    functools.partial(plots.bars, by=("where",)),
    after=True,
)


@pytest.mark.slow
def test_the_test_split_is_shown_where_validation_chose(made_up: MakeUp, tmp_path: Path) -> None:
    end = len(TEXT) * 19 // 20  # what is for testing reads otherwise
    made_up({"tinyshakespeare/input.txt": TEXT[:end] + TEXT[end:].upper()})
    options = Options(devices=1, run_dir=tmp_path / "runs", out=tmp_path / "out")
    (point,) = run(EXPERIMENT, options)["points"]
    (config,) = EXPERIMENT.configs("demo", False).values()
    loaded = load(tmp_path / "runs" / point["run"])
    model, metric = program_of(config).model, config.task.metric

    def scores(task) -> list[float]:
        each = [jax.tree.map(lambda x, i=i: np.asarray(x)[i], loaded.params) for i in range(2)]
        count = config.eval_examples if task is config.task else None
        return [score(model, task, params, num_examples=count)[metric.name] for params in each]

    assert isinstance(config.task, Language)
    assert config.task.judged_on == "validation"
    held_out, test = scores(config.task), scores(dataclasses.replace(config.task, judged_on="test"))
    np.testing.assert_allclose(point["validation"]["mean"], np.mean(held_out), rtol=1e-5)
    np.testing.assert_allclose(point["mean"], np.mean(test), rtol=1e-5)
    np.testing.assert_allclose(point["std"], np.std(test, ddof=1), rtol=1e-4)
    assert abs(np.mean(test) - np.mean(held_out)) > 1e-3  # they are different texts
    (layer,) = point["spectra"]
    assert 0 < layer["modulus_0.05"] <= layer["modulus_0.5"] <= layer["modulus_0.95"]
    # What has been found is read again.
    before = json.loads((tmp_path / "out" / "plays.json").read_text())["points"]
    assert json.loads(json.dumps(run(EXPERIMENT, options)["points"])) == before
