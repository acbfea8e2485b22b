"""Commands from the words to the files and the table they leave."""

import errno
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dsfjax import systems
from dsfjax.cli import entry, main, options, parse, training
from dsfjax.training import OptimizerConfig, TrainConfig, load, presets, sweeps, to_json

SMOKE = ["--preset", "smoke"]


def run(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Standard output of a command that succeeds."""
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line of a command that is refused."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"dsfjax: .*\n", err)
    return err


def test_compare_trains_reports_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["compare", "mqar", *SMOKE, "--run-dir", tmp_path / "run"]
    first = run(capsys, *words, "--mixers", "softmax_attention", "--no-report")
    assert "softmax_attention: step 4/24, loss " in first
    assert "softmax_attention: 4 finished after 24 steps" in first
    assert "report:" not in first and not (tmp_path / "run" / "report").exists()
    out = run(capsys, *words, "--mixers", "softmax_attention", "rg_lru")
    assert "softmax_attention: step" not in out
    assert "rg_lru: compiling 4 members as one program" in out
    assert "rg_lru: step 24/24, loss " in out
    rows = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["mixer"] for row in rows] == ["rg_lru", "softmax_attention"]  # by name
    for row in rows:
        line = next(x for x in out.splitlines() if x.startswith(row["mixer"] + " "))
        assert f"{100 * row['accuracy_mean']:.1f} ±" in line
    assert "\x1b" not in out
    page = tmp_path / "run" / "report" / "index.html"
    assert out.endswith(f"report: {page}\n")
    assert "softmax_attention" in page.read_text()
    assert "rg_lru" in page.read_text()


def test_a_program_that_fails_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table, the results and the exit code tell; the report is about the others."""
    train = sweeps.train

    def no_memory(config: Any, path: Path, **keywords: Any) -> Any:
        if keywords["name"] == "ssd":
            raise MemoryError("out of memory")
        return train(config, path, **keywords)

    monkeypatch.setattr(sweeps, "train", no_memory)
    words = ["compare", "mqar", *SMOKE, "--mixers", "ssd", "softmax_attention", "--no-report"]
    words, reason = [*words, "--run-dir", str(tmp_path)], "MemoryError: out of memory"
    for _ in range(2):
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert "ssd: failed: MemoryError: out of memory" in out
        assert re.search(r"^softmax_attention +\d", out, re.MULTILINE)
        assert re.search(r"^ssd +failed", out, re.MULTILINE)
        assert err == f"dsfjax: ssd failed: {reason}; --retry-failed runs it again\n"
    shown = run(capsys, "results", tmp_path)
    assert shown.count("failed") == 5  # a row per member, and the reason
    lines = run(capsys, "results", tmp_path, "--json").splitlines()
    finals = [json.loads(line)["final"] for line in lines]
    assert [final.get("reason") for final in finals] == [None] * 4 + [reason] * 4


def test_train_puts_every_option_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = run(
        capsys, "train", "mqar", *SMOKE, "--mixer", "softmax_attention", "--lr", 0.02, "--seed", 5,
        "--steps", 4, "--eval-every", 2, "--batch-size", 3, "--d-model", 8, "--num-kv-pairs", 3,
        "--weight-decay", 0.0, "--vocab-size", 40, "--run-dir", tmp_path / "run",
        "--mfu", "--tensorboard",
    )  # fmt: skip
    assert "softmax_attention: step 4/4" in out
    assert re.search(r"tokens/s, MFU \d+\.\d %, .* [KM]iB$", out, re.MULTILINE)
    place = tmp_path / "run" / "tensorboard" / "softmax_attention" / "learning_rate=0.02,seed=5"
    assert len(list(place.glob("events.out.tfevents.*"))) == 1
    config = load(tmp_path / "run").config
    assert (config.learning_rates, config.seeds) == ((0.02,), (5,))
    assert (config.steps, config.eval_every, config.batch_size) == (4, 2, 3)
    assert (config.task.num_kv_pairs, config.task.vocab_size) == (3, 40)  # type: ignore[attr-defined]
    assert (config.architecture.d_model, config.architecture.vocab_size) == (8, 40)
    assert config.optimizer.weight_decay == 0.0
    assert config.task.seq_len == presets.configs("smoke", "mqar")["ssd"].task.seq_len


def test_tracking_without_its_package_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    for command in (["train", "mqar", "--mixer", "ssd"], ["sweep", "mqar"]):
        words = [*command, *SMOKE, "--wandb", "mine", "--run-dir", tmp_path / "run"]
        assert "pip install 'dsfjax[tracking]'" in fails(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_estimate_says_what_a_program_takes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = run(capsys, "train", "mqar", *SMOKE, "--mixer", "linear_attention", "--estimate")
    assert re.search(r"^linear_attention .+ 1 +[1-9][\d.]* [KM]iB *$", out, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_default_folder_depends_on_the_config() -> None:
    def folder(seed: int = 0, steps: int | None = None) -> Path:
        words = [*"train mqar --preset smoke --mixer ssd --seed".split(), str(seed)]
        command = parse.parse([*words, *([] if steps is None else ["--steps", str(steps)])])
        assert isinstance(command, options.Train)
        return training.folder_of(command, training.plan(command))

    assert folder() == folder()
    assert folder().parent == Path("runs")
    assert folder().name.startswith("mqar-ssd-")
    assert len({folder(), folder(seed=1), folder(steps=4)}) == 3


def test_what_decays_and_learned_positions_are_as_given() -> None:
    def plan(words: str = "") -> TrainConfig:
        command = parse.parse([*"train mqar --preset smoke --mixer ssd".split(), *words.split()])
        return training.plan(command)["ssd"]  # type: ignore[arg-type]

    before = to_json(plan())
    assert to_json(plan("--decay all")) == before  # as it was: recorded names and results hold
    assert plan("--decay matrices").optimizer == OptimizerConfig(decay_all=False)
    config = plan("--max-length 16 --seq-len 12")
    assert (config.model.max_length, config.task.seq_len) == (16, 12)


def test_folder_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["train", "mqar", *SMOKE, "--mixer", "ssd", "--run-dir", tmp_path]
    run(capsys, *words)
    assert "seeds: [0] -> [1]" in fails(capsys, *words, "--seed", 1)


def test_systems_lists_every_architecture(capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "systems", "--d-model", 32)
    for name in systems.names():
        assert re.search(rf"^{name} ", out, re.MULTILINE)
    assert re.search(r"^qlstm .* d = 32 ", out, re.MULTILINE)
    assert re.search(r"^softmax_attention .* grows: ", out, re.MULTILINE)


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert main(["systems"]) == 0
    text = shown.getvalue().decode("ascii")
    assert "|?|" in text  # |λ|
    assert all(name in text for name in systems.names())


def test_a_full_disk_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr(entry, "_run", full)
    assert "No space left on device: runs/x" in fails(capsys, "systems")


def test_explain_says_method_and_cost(capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "explain", "--mixer", "ssd", "--length", 512)
    assert out.startswith("ssd\n")
    for word in ("structure", "method", "Mflop", "L = 512"):
        assert word in out
