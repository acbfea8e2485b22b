"""An experiment from end to end, its figures and its page."""

import dataclasses
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.text import Text

from dsfjax import tasks
from dsfjax._util.atomic import LOCK, lock
from dsfjax.bench import machine
from dsfjax.tasks import ACCURACY, name_of
from dsfjax.tasks.data import MissingDataError
from dsfjax.tasks.metric import to_json
from dsfjax.training import read_results
from dsfjax.training.storage import files
from experiments import (
    comparison,
    convergence,
    experiment,
    fig2_normalization,
    heatmap_mqar,
    length_generalisation,
    page,
    plots,
    table_normalizers,
)
from experiments import points as measured
from experiments.experiment import RULE, Options, run, run_name, write


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An experiment that was run at demo scale: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("experiment")
    options = Options(devices=1, only="^exp, L=", run_dir=folder / "runs", out=folder / "out")
    run(table_normalizers.EXPERIMENT, options, "the command")
    return folder, json.loads((folder / "out" / "table_normalizers.json").read_text())


def test_the_json_says_what_the_store_says(done: tuple[Path, dict[str, Any]]) -> None:
    folder, result = done
    assert (result["command"], result["scale"], result["rule"]) == ("the command", "demo", RULE)
    (point,) = result["points"]
    rows = read_results(folder / "runs")
    assert {row.run for row in rows} == {point["run"]}
    assert len(rows) == len(point["members"]) == 4
    for member, row in zip(point["members"], rows, strict=True):
        same = ("learning_rate", "seed", "status", "step")
        assert {name: member[name] for name in same} == {name: row.columns()[name] for name in same}
        assert member["accuracy"] == row.score
        for level, step in member["steps_to"].items():
            reached = [
                line["step"]
                for line in row.metrics
                if line["eval_accuracy"] >= float(level[:-1]) / 100
            ]
            assert step == (reached[0] if reached else None)
    by_rate = {
        rate: [row.score for row in rows if row.point.learning_rate == rate]
        for rate in {row.point.learning_rate for row in rows}
    }
    best = by_rate[point["learning_rate"]]
    assert point["mean"] == max(statistics.fmean(some) for some in by_rate.values())
    assert point["mean"] == statistics.fmean(best)
    assert point["std"] == statistics.stdev(best)
    assert point["max"] == max(row.score for row in rows)
    assert point["environment"]["versions"]["jax"]


def test_the_files_are_whole(done: tuple[Path, dict[str, Any]]) -> None:
    out = done[0] / "out"
    files = [path.name for path in out.iterdir() if path.name != LOCK]
    assert sorted(files) == [f"table_normalizers.{kind}" for kind in ("json", "pdf", "png")]
    assert (out / "table_normalizers.pdf").read_bytes().startswith(b"%PDF")
    assert matplotlib.image.imread(out / "table_normalizers.png").std() > 0.01


def test_another_call_waits_while_a_result_is_read_and_written(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, free = done[0], []

    def written(*given: Any) -> None:
        with lock(given[-1], wait=False) as mine:
            free.append(mine)

    monkeypatch.setattr(experiment, "write", written)
    options = Options(devices=1, only="^exp, L=", run_dir=folder / "runs", out=folder / "other")
    run(table_normalizers.EXPERIMENT, options)
    with lock(folder / "other", wait=False) as mine:
        assert free == [False] and mine


def test_what_is_finished_stays_and_is_not_trained_again(
    done: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = done
    options = Options(devices=1, only="sigmoid, L=", run_dir=folder / "runs", out=folder / "again")
    again = json.loads(json.dumps(run(table_normalizers.EXPERIMENT, options)["points"]))
    assert [point["series"] for point in again] == ["exp", "sigmoid"]
    assert again[0] == result["points"][0]
    # Where its run is gone, a point stays as it was written; one of another config does not.
    shutil.rmtree(folder / "runs" / again[0]["run"])
    kept = run(table_normalizers.EXPERIMENT, options)["points"]
    assert [point["series"] for point in kept] == ["exp", "sigmoid"]
    assert kept[0] == again[0]
    path = folder / "again" / "table_normalizers.json"
    path.write_text(path.read_text().replace(again[0]["run"], f"{again[0]['run']}0"))
    assert [p["series"] for p in run(table_normalizers.EXPERIMENT, options)["points"]] == [
        "sigmoid"
    ]


def test_points_of_another_experiment_are_taken_where_they_say_as_much(tmp_path: Path) -> None:
    shared = {"name": "s6, digits", "series": "s6", "run": "s6-1"}
    looked = shared | {"run": "s6-2", "spectra": []}
    files.write_json(tmp_path / "table_lra.json", {"points": [shared, looked]})
    files.write_json(tmp_path / "throughput.json", {"rows": []})
    task = tasks.get("mqar", vocab_size=16, seq_len=8, num_kv_pairs=2)
    names = {"s6-1": "as it is, digits", "s6-2": "another name, digits", "s6-3": "not run"}
    known = {run: (name, task) for run, name in names.items()}
    plain = table_normalizers.EXPERIMENT._replace(after=False)

    def taken(one: experiment.Experiment, new: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        points = experiment._earlier(tmp_path, one, known, new)
        assert all(names[point["run"]] == point["name"] for point in points)
        # They are from before tasks had names: the task is that of the config.
        assert all(point["task"]["num_kv_pairs"] == 2 for point in points)
        assert all(point["trivial"] == task.trivial().score for point in points)
        return [(point["run"], point["series"]) for point in points]

    assert taken(plain) == [("s6-1", "as it is"), ("s6-2", "another name")]
    assert taken(plain, ("s6-1",)) == [("s6-2", "another name")]
    # An experiment that looks into its models takes no point that does not say what was seen.
    assert taken(plain._replace(after=True)) == [("s6-2", "another name")]
    assert taken(plain._replace(lengths=(1, 2))) == []


@pytest.mark.parametrize(
    ("only", "said"),
    [("exq", "expected --only to be found in the name .*; they are 'softmax"), ("(", "regular")],
)
def test_a_choice_without_points_is_refused(only: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        run(convergence.EXPERIMENT, Options(only=only, run_dir=tmp_path, out=tmp_path))
    assert not list(tmp_path.iterdir())


LENGTHS = [
    {"start": start, "factor": k, "length": 40 * k, "scores": [0.5, 1 / k], "trivial": 0.1}
    for start in ("empty", "carried")
    for k in (1, 2)
]


def canned(experiment: Any) -> dict[str, Any]:
    """A result of an experiment at small scale, with numbers that were not measured."""
    points = []
    for i, (name, config) in enumerate(experiment.configs("small", False).items()):
        mean, model, task = (i % 7) / 7, config.model, config.task
        metric = task.metric
        members = [
            {
                "learning_rate": member.learning_rate,
                "seed": member.seed,
                metric.name: mean,
                "status": "finished",
                "step": config.steps,
                "steps_to": {"50%": 100 * (1 + i % 3), "90%": None if i % 2 else 400, "99%": None},
            }
            for member in config.members
        ]
        points.append(
            {
                "name": name,
                "series": name.split(",")[0],
                "task": {"name": name_of(task), **dataclasses.asdict(task)},
                **({} if metric == ACCURACY else {"measured": to_json(task.measured())}),
                "seq_len": task.seq_len,
                "d_model": model.d_model,
                "d_state": model.d_state,
                "state_size": 1024,
                "num_params": 4096,
                "steps": config.steps,
                "batch_size": config.batch_size,
                "learning_rate": 0.01,
                "mean": mean,
                "std": 0.05,
                measured.extreme(metric): min(1.0, mean + 0.1),
                "trivial": 1 / task.num_kv_pairs if hasattr(task, "num_kv_pairs") else 0.1,
                "linear": 0.2,
                "spectra": [
                    {"modulus_0.05": 0.1, "modulus_0.5": 0.5, "modulus_0.95": 0.9}
                    | {"growing": 0.25, "positive": True}
                ],
                **({"lengths": LENGTHS} if experiment.lengths else {}),
                "steps_to": {"50%": 100.0, "90%": None, "99%": None},
                "diverged": 0,
                "members": members,
                "train_seconds": 12.0,
                "tokens_per_second": 1e5,
                "run": run_name(config),
            }
        )
    return {"scale": "small", "rule": RULE, "points": points}


# A figure of every kind; the others are drawn like one of them.
QUICK = ("fig2_normalization", "state_tracking", "length_generalisation", "heatmap_mqar")


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(e, id=e.name, marks=() if e.name in QUICK else pytest.mark.slow)
        for e in page.EXPERIMENTS
    ],
)
def test_a_figure_is_drawn_of_every_result(experiment: Any, tmp_path: Path) -> None:
    try:
        result = canned(experiment)
    except MissingDataError as error:
        pytest.skip(str(error))
    write(experiment, result, tmp_path)
    assert json.loads((tmp_path / f"{experiment.name}.json").read_text()) == result
    image = matplotlib.image.imread(tmp_path / f"{experiment.name}.png")
    assert (image[..., :3].min(axis=-1) < 0.5).mean() > 0.005
    with plots.style():
        figure = experiment.figure(result["points"])
    texts = " ".join(text.get_text() for text in figure.findobj(Text))
    for name in plots.series_of(result["points"]):
        assert name.replace("_", " ") in texts.replace("_", " ").replace("\n", " ")


def test_a_series_that_the_first_panel_lacks_is_named() -> None:
    points = canned(length_generalisation.EXPERIMENT)["points"]
    first = measured.where(points[0])
    points = [p for p in points if p["series"] != "ssd" or measured.where(p) != first]
    with plots.style():
        (legend,) = plots.lengths(points).legends
    assert [text.get_text() for text in legend.get_texts()].count("ssd") == 1


def test_the_page_is_renewed_from_the_json(tmp_path: Path) -> None:
    experiment = table_normalizers.EXPERIMENT
    write(experiment, canned(experiment), tmp_path / "results" / "small")
    readme = tmp_path / "README.md"
    readme.write_text((page.HERE / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    row = ["packed", "L = 4", 35_685.4, 10_698.4, "tokens/s", 3.34, 2]
    measured = {
        "command": "python -m experiments.throughput",
        "repeats": 5,
        "machine": machine.describe(),
        "rows": [comparison.Row(*row)._asdict()],
    }
    files.write_json(tmp_path / "results" / "small" / "throughput.json", measured)
    page.renew(readme, tmp_path / "results")
    once = readme.read_text(encoding="utf-8")
    # In every pair the mean of softplus is 2/7 higher; in one, 0 and 28.6 ± 5 % are both not told
    # apart from the 25 % of the trivial answer, so that pair counts for nothing.
    assert (
        "| Exp normalises better than softplus. | **not confirmed** (0 of 5 for, 4 against; "
        "-25.7 points); by the maxima **not confirmed** (0 of 5 for, 5 against; -25.7 points) | "
        "not run at this scale | `python -m experiments.table_normalizers --scale SCALE` |"
    ) in once
    assert "| sigmoid, L=32, 4 pairs, d=32, n=16 | 57.1 ± 5.0 % | 67.1 % |" in once
    image = "CIFAR-10, grey, JPEG copy"
    row = " | ".join(f"{x} ± 5.0 %" for x in ("28.6", "42.9", "57.1", "71.4"))
    assert f"| {image} | {row} | 10.0 % | 20.0 % |" in once
    assert f"| table_normalizers | {image} | exp | 0.100 | 0.500 | 0.900 | 25.0 % | yes |" in once
    line = "| packed | L = 4 | 35,685 tokens/s | 10,698 tokens/s | 3.34 | 2 |"
    assert line in once and "`python -m experiments.throughput`, medians of 5 rounds; " in once
    page.renew(readme, tmp_path / "results")
    assert readme.read_text(encoding="utf-8") == once


def test_a_point_of_two_experiments_is_tabled_once(tmp_path: Path) -> None:
    for module in (fig2_normalization, heatmap_mqar):
        result = canned(module.EXPERIMENT)
        points = [point | {"mean": 0.5} for point in result["points"]]  # one run has one result
        write(module.EXPERIMENT, result | {"points": points}, tmp_path / "small")
    lines = list(page.points(tmp_path))
    assert sum(line.startswith("| s6, L=32, 4 pairs, d=32, n=16 |") for line in lines) == 1
    shared = len(fig2_normalization.MIXERS) * 4  # two tasks, two widths
    assert f"{shared} of its points are in the tables above.\n" in lines


def test_two_runs_of_one_name_are_both_tabled(tmp_path: Path) -> None:
    result = canned(fig2_normalization.EXPERIMENT)
    (tmp_path / "small").mkdir()
    for module, of_run, mean in ((fig2_normalization, "a", 0.25), (heatmap_mqar, "b", 0.75)):
        points = [p | {"run": of_run, "mean": mean} for p in result["points"][:1]]
        file = tmp_path / "small" / f"{module.EXPERIMENT.name}.json"
        file.write_text(json.dumps(result | {"points": points}))
    name = result["points"][0]["name"]
    assert sum(line.startswith(f"| {name} | ") for line in page.points(tmp_path)) == 2


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="expected one pair <!-- claims -->"):
        page.renew(tmp_path / "README.md", tmp_path)
