"""The comparison's rows, from results made by hand, and its folders."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dsfjax.training import MemberResult, load, presets, sweep
from dsfjax.training.config import AXES, grid
from dsfjax.training.storage.record import row


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
    model = dataclasses.replace(configs["ssd"].model, num_heads=5)
    configs["ssd"] = dataclasses.replace(configs["ssd"], model=model)
    with pytest.raises(ValueError, match="not divisible by 5"):
        sweep(configs, tmp_path)
    assert not list(tmp_path.iterdir())
