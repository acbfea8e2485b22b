"""``dsfjax finetune``: a published checkpoint in, a published checkpoint out."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

import dsfjax
from dsfjax.cli import main
from tests.opened import HERE
from tests.training.processes import python, start

LANGUAGE = ["--task", "language"]
WORDS = ["finetune", str(HERE / "mamba"), *LANGUAGE, "--layers", "1", "--rate", "1e-2"]
WORDS += ["--batch-size", "4"]
OF_TASK = ["corpus=wikitext103", "tokens=words", "seq_len=16"]
WORDS += [word for option in OF_TASK for word in ("--task-option", option)]
WORDS += ["--eval-examples", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up text of six words."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    (folder / "wikitext103").mkdir()
    for part, size in (("train", 900), ("valid", 300), ("test", 300)):
        text = " ".join(draw.choices("to be or not that is".split(), k=size)) + "\n"
        (folder / "wikitext103" / f"wiki.{part}.tokens").write_text(text)
    return folder


@pytest.mark.slow
def test_a_kill_leaves_no_trace(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a run that was killed after its first checkpoint is that of one left alone."""
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path / "cache"))
    words = ["-m", "dsfjax", *WORDS, "--steps", "30", "--eval-every", "10"]
    words += ["--data-dir", str(data), "--run-dir"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    out = python(*words, alone)
    losses = [float(x) for x in re.findall(r"held-out loss (\d+\.\d+)", out)]
    assert len(losses) == 2 and losses[1] < losses[0] - 0.5
    process = start(*words, killed)
    while process.poll() is None and not any(killed.glob("checkpoints/step_*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "result.json").exists()
    assert python(*words, killed).splitlines()[-3:-1] == out.splitlines()[-3:-1]
    files = [folder / "published" / "model.safetensors" for folder in (alone, killed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    before, after = (dsfjax.open(f).params for f in (HERE / "mamba", alone / "published"))
    assert {n.split(".")[2] for n in before if (before[n] != after[n]).any()} == {"1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "languge"], "unknown task 'languge'; did you mean 'language'?"),
        (["--task", "digits", "--task-option", "sequence=1"], "unknown option of digits"),
        ([], "expected --task, a task whose token ids are those of the checkpoint"),
        ([*LANGUAGE, "--task-option", "tokens"], "expected --task-option OPTION=VALUE, got"),
        (["--task", "mqar"], "at most the 64 tokens of the checkpoint, got 8192"),
        ([*LANGUAGE, "--steps", "30"], "steps to be a multiple of eval_every = 50, got 30"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*WORDS[:2], *words]) == 2
    assert message in capsys.readouterr().err
