"""From a small trained comparison to the folder with the report."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dsfjax import nn
from dsfjax.aspects import aspect as registry
from dsfjax.cli import main
from dsfjax.report import read, write, write_all
from dsfjax.report.entries import Comparison
from dsfjax.report.examine import examine
from dsfjax.training import Loaded, from_json, load, presets, sweep
from dsfjax.training.storage.record import row

MIXERS = ("softmax_attention", "s6")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    sweep(presets.configs("smoke", "mqar", MIXERS), path)
    return path


@pytest.fixture(scope="module")
def whole(run_dir: Path) -> Comparison:
    return read.read(run_dir)


def _of_the_runs(page: str) -> str:
    """A page without its last section, which also has results that come with the package."""
    own, heading, _ = page.partition("Which architecture, by all results on tasks like this")
    assert heading
    return own


@pytest.mark.slow  # what `run_dir` trains
def test_page_and_data(run_dir: Path, tmp_path: Path) -> None:
    page, verdict = write(run_dir, tmp_path / "report")
    assert page == tmp_path / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    assert all(mixer in text for mixer in MIXERS)
    assert "the folder of this run" in text and "Nearest tasks: mqar, L = 16" in text
    assert verdict.doubts[0].startswith("2 seeds per learning rate")
    assert verdict.doubts[0] in text
    with (tmp_path / "report" / "data" / "summary.csv").open(newline="", encoding="utf-8") as file:
        summary = {row["mixer"]: row for row in csv.DictReader(file)}
    rows = json.loads((run_dir / "compare.json").read_text(encoding="utf-8"))
    assert list(summary) == [r["mixer"] for r in sorted(rows, key=lambda r: -r["accuracy_mean"])]
    for found in rows:
        for name in ("accuracy_mean", "accuracy_std", "num_params", "tokens_per_second"):
            assert float(summary[found["mixer"]][name]) == found[name]


@pytest.mark.slow  # what `run_dir` trains
def test_curves_are_those_of_the_best_rate(run_dir: Path, whole: Comparison) -> None:
    rows = {r["mixer"]: r for r in json.loads((run_dir / "compare.json").read_text("utf-8"))}
    for entry in whole.entries:
        best, loaded = rows[entry.mixer], load(run_dir / entry.mixer)
        assert list(entry.scores) == best["accuracies"]
        assert [curve.seed for curve in entry.curves] == list(loaded.config.seeds)
        for curve in entry.curves:
            expected = [
                (line["step"], line["eval_accuracy"])
                for line in loaded.metrics
                if (line["learning_rate"], line["seed"]) == (best["best_learning_rate"], curve.seed)
            ]
            assert list(zip(curve.steps.tolist(), curve.score.tolist(), strict=True)) == expected


@pytest.mark.slow  # what `run_dir` trains
def test_entries_know_their_runs(whole: Comparison) -> None:
    assert sorted((e.mixer, e.run) for e in whole.entries) == sorted((m, m) for m in MIXERS)
    assert read.labels(["ssd-a-0123abcd"]) == ["ssd-a"]


@pytest.mark.slow  # what `run_dir` trains
def test_facts_and_chance(whole: Comparison) -> None:
    assert (whole.chance, whole.unbound) == (1 / 16, 1 / 2)
    assert "L = 16, 2 key–value pairs, vocabulary 32" in whole.facts["Task"]
    assert jax.__version__ in whole.facts["Versions"]
    assert jax.devices()[0].device_kind in whole.facts["Device"]


@pytest.mark.slow  # what `run_dir` trains
def test_the_best_member_is_the_one_that_is_analysed(run_dir: Path, whole: Comparison) -> None:
    loaded = load(run_dir / "s6")
    (entry,) = (entry for entry in whole.entries if entry.mixer == "s6")
    at_rate = [
        member
        for member in loaded.result["members"]
        if member["learning_rate"] == entry.learning_rate
    ]
    index = max(at_rate, key=lambda member: member["eval_accuracy"])["member"]
    params = jax.tree.map(lambda leaf: leaf[index], loaded.params)
    found = examine(nn.build(loaded.config.model), params, loaded.config.task)
    assert entry.findings is not None
    for aspect, name in (("phi", "kernel"), ("eigenvalues", "moduli")):
        ours, theirs = (getattr(x[aspect][0], name) for x in (entry.findings, found))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow  # what `run_dir` trains
def test_state_and_cost_are_those_of_the_model(whole: Comparison) -> None:
    found = {entry.mixer: entry for entry in whole.entries}
    assert [found[mixer].grows for mixer in MIXERS] == [True, False]
    for entry in whole.entries:
        assert (entry.cost.state_size, entry.cost.parameters) == (
            entry.state_size,
            entry.num_params,
        )
        assert entry.cost.decode is not None and entry.cost.decode.flops > 2 * entry.num_params
        assert len(entry.outcomes) == 4


OWN_ASPECT = """
import numpy as np
from matplotlib.figure import Figure
from dsfjax.aspects import Aspect, register

def draw(mixer, layers, color):
    figure = Figure()
    figure.add_subplot().bar(range(len(layers)), layers, color=color)
    return figure

register(
    Aspect(
        name="largest_token",
        title="How large tokens are",
        how="How to read: a bar per layer.",
        measure=lambda system, u, dy: abs(u).max(),
        summarise=lambda found: float(np.mean(found)),
        draw=draw,
        rows=lambda layer: [{"largest": layer}],
        caption=lambda layers: "The mean over sequences.",
        columns={"largest token": max},
        find=lambda models: f"Tokens of {', '.join(models)} were measured.",
    )
)
"""


@pytest.mark.slow  # what `run_dir` trains
def test_an_aspect_of_ones_own_is_in_the_report_of_a_single_run(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_aspect.py").write_text(OWN_ASPECT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_ASPECTS", {})  # alone, so that little is compiled
    out = tmp_path / "report"
    given = ["analyze", str(run_dir / "s6"), "--report", str(out), "--import", "my_own_aspect"]
    assert main(given) == 0
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "<h2>How large tokens are</h2>" in text and "How to read: a bar per layer." in text
    assert "largest token</button>" in text and "The mean over sequences." in text
    assert "Tokens of s6 were measured." in text
    with (out / "data" / "largest_token.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["mixer"], row["layer"]) == ("s6", "1") and float(row["largest"]) > 0
    assert "largest_token.csv" in text
    assert "softmax_attention" not in _of_the_runs(text)


@pytest.mark.slow  # what `run_dir` trains
def test_diverged_mixer_is_shown_with_zero(run_dir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run_dir, runs)
    path = runs / "s6" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for member in result["members"]:
        member |= {"status": "diverged", "eval_accuracy": None, "steps_to_90": None}
    path.write_text(json.dumps(result), encoding="utf-8")
    rows = json.loads((runs / "compare.json").read_text(encoding="utf-8"))
    rows = [row(load(runs / "s6").members) if one["mixer"] == "s6" else one for one in rows]
    (runs / "compare.json").write_text(json.dumps(rows), encoding="utf-8")
    bad = read.read(runs).entries[-1]
    members = len(result["members"])
    assert (bad.mixer, bad.score_mean, bad.num_diverged) == ("s6", 0, members)
    assert bad.findings is None
    assert all(curve.score[-1] == 0.0 for curve in bad.curves)
    text = write(runs, tmp_path / "report").page.read_text(encoding="utf-8")
    assert f"Members diverged in s6 ({members} of {members})." in text
    assert "s6: every member at its best learning rate diverged" in text


def test_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither compare\.json nor result\.json"):
        write(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # what `run_dir` trains
def test_two_tasks_are_two_reports(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run_dir, runs)
    path = runs / "s6" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["task"]["num_kv_pairs"] = 1
    path.write_text(json.dumps(config), encoding="utf-8")

    def altered(folder: Path) -> Loaded:
        text = (folder / "config.json").read_text(encoding="utf-8")
        return load(run_dir / folder.name)._replace(config=from_json(text))

    monkeypatch.setattr(read, "load", altered)
    with pytest.raises(ValueError, match="one task"):
        write(runs, tmp_path / "out")
    index, reports, joint = write_all(runs, tmp_path / "out")
    pages = [page for page, _ in reports]
    # One kind of task in two sizes: its sizes tell them apart. The rows come by name of the run.
    assert [page.parent.name for page in pages] == ["mqar-L16-n1-v32", "mqar-L16-n2-v32"]
    assert [list(task.scores) for task in joint] == [["s6"], ["softmax_attention"]]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert ["1 key–value pairs" in text for text in texts] == [True, False]
    assert ["softmax_attention" in _of_the_runs(text) for text in texts] == [False, True]
    assert index == tmp_path / "out" / "index.html"
    first = index.read_text(encoding="utf-8")
    links = re.findall(r'href="([^"#]+)"', first)
    assert links == [*(f"{page.parent.name}/index.html" for page in pages), "joint.csv"]
    assert all((tmp_path / "out" / link).exists() for link in links)
    assert all(html.escape(verdict.answer) in first for _, verdict in reports)
