"""``dsfjax sweep`` and ``dsfjax results``: every combination, one object per member, same again."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from dsfjax.cli import main, parse, sweep
from dsfjax.training import TrainConfig, load
from dsfjax.training.compilation import compiling
from dsfjax.training.devices import layout
from dsfjax.training.runs import program_of

SWEEP = "sweep mqar --preset smoke --mixers softmax_attention --d-model 8 16 --seq-len 16".split()


def run(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Standard output of a command that succeeds."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def objects(capsys: pytest.CaptureFixture, folder: Path, *words: str) -> list[dict[str, Any]]:
    out = run(capsys, "results", folder, "--json", *words)
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "run"
    words = [*SWEEP, "--lrs", "1e-3", "1e300", "--weight-decay", "0", "--steps", "8"]
    assert main([*words, "--run-dir", str(path), "--no-report"]) == 0
    return path


def plan(text: str) -> dict[str, TrainConfig]:
    command = parse.parse(["sweep", "mqar", "--preset", "smoke", *text.split()])
    return sweep.plan(command)  # type: ignore[arg-type]


def test_every_shape_is_a_program() -> None:
    found = plan("--mixers ssd s6 --d-model 8 16 --num-layers 3 --seq-len 8 12")
    shapes = [(c.model.mixer, c.task.seq_len, c.architecture.d_model) for c in found.values()]
    lengths = [(8, 8), (8, 16), (12, 8), (12, 16)]
    assert shapes == [(mixer, *size) for mixer in ("ssd", "s6") for size in lengths]
    assert {c.architecture.num_layers for c in found.values()} == {3}
    names = [name.rpartition("-") for name in found]
    assert names[1][0] == "ssd-seq_len8-d_model16"
    assert [name[2] for name in names] == [config.fingerprint for config in found.values()]


def test_every_other_axis_is_a_member() -> None:
    text = "--mixers ssd --lrs 0.1 --seeds 3 4 --weight-decay 0 1 --init-scale 0.5 --embed-dropout"
    ((_, config),) = plan(text + " 0.2 --dropout 0 0.1").items()
    assert [tuple(member) for member in config.members] == [
        (0.1, decay, 0.5, dropout, seed)
        for decay in (0, 1)
        for dropout in (0, 0.1)
        for seed in (3, 4)
    ]


def test_sizes_that_are_not_given_are_the_presets() -> None:
    found = plan("")
    assert [config.model.mixer for config in found.values()] == ["linear_attention", "ssd"]
    assert {config.task.seq_len for config in found.values()} == {16}
    assert all(re.fullmatch(r"(ssd|linear_attention)-[0-9a-f]{8}", name) for name in found)


def test_files(folder: Path) -> None:
    rows = json.loads((folder / "compare.json").read_text())
    assert len(rows) == 2
    for row in rows:
        assert load(folder / row["mixer"]).config.architecture.d_model in (8, 16)
        assert row["best"]["weight_decay"] == 0


@pytest.mark.slow
def test_report(folder: Path, tmp_path: Path) -> None:
    assert main(["analyze", str(folder), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "softmax_attention-d_model8" in page and "softmax_attention-d_model16" in page


def test_an_object_per_member(folder: Path, capsys: pytest.CaptureFixture) -> None:
    found = objects(capsys, folder)
    assert [(x["config"]["learning_rate"], x["config"]["seed"]) for x in found] == 2 * [
        (1e-3, 0), (1e-3, 1), (1e300, 0), (1e300, 1),
    ]  # fmt: skip
    assert [x["run"] for x in found] == sorted(x["run"] for x in found)
    assert [x["final"]["status"] for x in found] == 2 * [*2 * ["finished"], *2 * ["diverged"]]
    for x in found:
        member = load(folder / x["run"]).result["members"][x["member"]]
        assert x["final"] == {name: member[name] for name in x["final"]}
        assert x["final"]["eval_loss"] == member["eval_loss"]
        assert {"train_seconds", "compile_seconds", "finished_at"} < set(x["timing"])
    without = objects(capsys, folder, "--no-timing")
    assert without == [{k: v for k, v in x.items() if k != "timing"} for x in found]
    assert "seconds" not in json.dumps(without)


def test_table(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "results", folder)
    assert len(re.findall(r"^softmax_attention-d_model(8|16)-\w{8} .*finished$", out, re.M)) == 4
    assert len(re.findall(r"^softmax_attention-d_model(8|16)-\w{8} .*–.*diverged$", out, re.M)) == 4


def test_finished_points_are_skipped_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    expected = run(capsys, "results", folder, "--json", "--no-timing")
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    first, second = (x["mixer"] for x in json.loads((other / "compare.json").read_text()))
    (other / "results.sqlite").unlink()
    (other / second / "result.json").write_text("{")
    words = [*SWEEP, "--lrs", "1e-3", "1e300", "--weight-decay", "0", "--steps", "8"]
    out = run(capsys, *words, "--no-report", "--run-dir", other)
    assert f"{first}: step" not in out
    assert f"{second}: step" not in out  # from its last checkpoint, which is the end
    assert (other / second / "broken_result.json").read_text() == "{"
    assert run(capsys, "results", other, "--json", "--no-timing") == expected


@pytest.mark.slow
def test_members_that_do_not_fit_take_turns_or_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    size = "--mixers softmax_attention --d-model 8 --steps 4 --seeds 0 1 2"
    (config,) = plan(size).values()
    one, six = (
        compiling(program_of(config), layout(count, jax.devices()[:1])).result().bytes
        for count in (1, 6)
    )
    words = [*SWEEP[:4], *size.split(), "--devices", 1, "--run-dir", tmp_path]
    out = run(capsys, *words, "--no-report", "--memory", (one + six) / 2 / 2**30)
    assert re.search(r"6 members do not fit at once: \d slices of \d take turns", out)
    assert main([*map(str, words), "--memory", "1e-6", "--block", "prenorm"]) == 1
    expected = "failed: MemoryShortage: expected one member per device to fit into 0 MiB"
    assert expected in capsys.readouterr().err


def test_two_sweeps_share_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    before = objects(capsys, other)
    words = [*SWEEP[:6], "--d-model", 8, "--steps", 4, "--seeds", 0, "--no-report"]
    run(capsys, *words, "--run-dir", other)
    after = objects(capsys, other)
    assert [x for x in after if x in before] == before
    assert len(after) == len(before) + 2
