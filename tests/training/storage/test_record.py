"""The comparison's rows, from results made by hand, and its folders."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dsfjax.tasks import ACCURACY, MAE, MSE
from dsfjax.training import MemberResult, load, presets, sweep
from dsfjax.training.config import AXES, grid
from dsfjax.training.storage.record import in_result, mean_in, measured_in, row


def member(
    rate: float, accuracy: float | None, steps: int | None, status: str = "finished", **axes: Any
) -> MemberResult:
    point = {"learning_rate": rate, "seed": 0} | axes
    (made,) = grid(**{axis.field: [point[axis.name]] for axis in AXES if axis.name in point})
    return MemberResult(
        run="ssd",
        member=0,
        mixer="ssd",
        point=made,
        status=status,
        eval_score=accuracy,
        steps_to_90=steps,
        num_params=1000,
        state_size=128,
    )


def test_best_rate_has_the_highest_mean() -> None:
    found = row(
        (
            member(0.1, 1.0, 5),
            member(0.1, 0.2, None),
            member(0.2, 0.75, None),
            member(0.2, 0.65, 9),
        ),
    )
    assert found["best_learning_rate"] == 0.2
    assert found["accuracy_mean"] == pytest.approx(0.7)
    assert found["accuracy_std"] == pytest.approx(0.1 / 2**0.5)  # of a sample
    assert found["accuracies"] == [0.75, 0.65]
    assert found["steps_to_90"] is None
    assert found["state_size"] == 128
    assert [rate["accuracy_mean"] for rate in found["rates"]] == pytest.approx([0.6, 0.7])


def errors(rate: float, mse: float | None, mae: float | None, seed: int = 0, **own: Any) -> Any:
    plain = member(rate, mse, None, seed=seed, **own)
    return dataclasses.replace(plain, measured=(MSE, MAE), also={"mae": mae})


def test_less_is_better_where_the_metric_says_so() -> None:
    """The point with the lowest mean; one of which a seed diverged has none."""
    found = row(
        (
            errors(0.1, 0.5, 0.25),
            errors(0.1, 0.75, 0.5, seed=1),
            errors(0.2, 0.125, 0.25),
            errors(0.2, None, None, seed=1, status="diverged"),
            errors(0.4, 0.25, 1.0),
            errors(0.4, 0.5, 2.0, seed=1),
        )
    )
    assert found["best_learning_rate"] == 0.4
    assert (found["mse_mean"], found["mae_mean"], found["mses"]) == (0.375, 1.5, [0.25, 0.5])
    assert found["mse_std"] == pytest.approx(0.25 / 2**0.5)
    lost = found["rates"][1]
    assert (lost["mse_mean"], lost["mse_std"], lost["mses"]) == (None, None, [0.125, None])
    assert not any("accura" in name for name in found)
    assert measured_in(json.loads(json.dumps(found, allow_nan=False))) == (MSE, MAE)
    assert mean_in(found, MAE) == (1.5, found["mae_std"]) and mean_in(lost, MSE) == (math.inf, 0.0)
    assert measured_in(row((member(0.1, 0.5, None),))) == (ACCURACY,)


def test_steps_to_a_level_follow_the_direction() -> None:
    lines = [{"step": i, "eval_mse": x} for i, x in enumerate((0.9, None, 0.4, 0.5))]
    one = dataclasses.replace(errors(0.1, 0.5, 0.5), metrics=lines)
    assert [one.steps_to(level) for level in (0.9, 0.5, 0.4, 0.3)] == [0, 2, 2, None]
    assert (one.score, one.of(MAE)) == (0.5, 0.5)
    assert dataclasses.replace(one, status="diverged").of(MAE) == math.inf
    again = MemberResult.from_columns(json.loads(json.dumps(one.columns())))
    assert again.measured == one.measured and in_result(again) == in_result(one)
    assert in_result(one)["eval_mse"] == in_result(one)["eval_mae"] == 0.5


def test_diverged_counts_as_zero() -> None:
    found = row((member(1.0, None, None, "diverged"), member(0.1, 0.1, None)))
    assert found["best_learning_rate"] == 0.1
    assert found["rates"][0]["accuracies"] == [0.0]
    assert found["rates"][0]["statuses"] == ["diverged"]


def test_ties_go_to_the_quicker_then_the_smaller() -> None:
    quick = row((member(0.1, 1.0, 9), member(0.2, 1.0, 5), member(0.4, 1.0, None)))
    assert quick["best_learning_rate"] == 0.2
    assert quick["steps_to_90"] == 5
    small = row((member(0.2, 0.5, None), member(0.1, 0.5, None)))
    assert small["best_learning_rate"] == 0.1


def test_best_point_is_one_of_all_axes() -> None:
    found = row(
        (
            member(0.1, 0.5, None),
            member(0.1, 0.9, None, weight_decay=0.0),
            member(0.1, 0.9, None, weight_decay=0.0, init_scale=0.5),
            member(0.1, 0.7, None, weight_decay=0.0, init_scale=0.5, seed=1),
        ),
    )
    best = {"learning_rate": 0.1, "weight_decay": 0.0, "init_scale": 1.0, "dropout": None}
    assert found["best"] == best
    assert found["accuracies"] == [0.9]
    assert [rate["accuracies"] for rate in found["rates"]] == [[0.5], [0.9], [0.9, 0.7]]


def test_steps_to_90_is_a_mean_over_seeds() -> None:
    found = row((member(0.1, 1.0, 4), member(0.1, 0.96, 8)))
    assert found["steps_to_90"] == 6
    assert found["accuracy_std"] == pytest.approx(0.04 / 2**0.5)
    assert row([member(0.1, 1.0, 4)])["accuracy_std"] == 0.0


def test_sweep_writes_a_run_per_mixer_and_resumes(tmp_path: Path) -> None:
    configs = presets.configs("smoke", "mqar")
    assert list(configs) == ["linear_attention", "ssd"]
    first = sweep({"linear_attention": configs["linear_attention"]}, tmp_path)
    rows = sweep(configs, tmp_path)
    assert json.loads((tmp_path / "compare.json").read_text()) == rows
    assert [r["mixer"] for r in rows] == ["linear_attention", "ssd"]
    assert rows[0] == first[0]
    for r in rows:
        run = load(tmp_path / r["mixer"])
        best = [m for m in run.result["members"] if m["learning_rate"] == r["best_learning_rate"]]
        assert [m["eval_accuracy"] for m in best] == r["accuracies"]


def test_sweep_checks_every_model_first(tmp_path: Path) -> None:
    configs = presets.configs("smoke", "mqar")
    model = dataclasses.replace(configs["ssd"].architecture, num_heads=5)
    configs["ssd"] = dataclasses.replace(configs["ssd"], model=model)
    with pytest.raises(ValueError, match="not divisible by 5"):
        sweep(configs, tmp_path)
    assert not list(tmp_path.iterdir())
