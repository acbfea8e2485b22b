"""``dsfjax finetune``: a published checkpoint in, a published checkpoint out."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import dsfjax
from dsfjax.cli import finetune, main, parse
from tests.opened import HERE
from tests.training.processes import python, start

WORDS = ["finetune", str(HERE / "mamba"), "language", "--layers", "1", "--lr", "1e-2"]
WORDS += ["--corpus", "wikitext103", "--tokens", "words", "--seq-len", "16"]
WORDS += ["--batch-size", "4", "--eval-examples", "8"]


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


def test_a_text_is_in_the_tokens_of_the_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DSFJAX_DATA", str(data))
    folder = tmp_path / "mamba"
    shutil.copytree(HERE / "mamba", folder)

    def asked(*more: str) -> Any:
        return parse.parse(["finetune", str(folder), "language", "--corpus", "wikitext103", *more])

    assert finetune.task_of(asked()).slug() == "wikitext103-bytes-L256"
    vocabulary = {word: i for i, word in enumerate("to be or not that is".split())}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="to"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    config = finetune.plan(asked("--seq-len", "16", "--eval-examples", "8"))
    assert config.task.vocab_size == 6 and config.task.seq_len == 16
    assert finetune.task_of(asked("--tokens", "bytes")).slug() == "wikitext103-bytes-L256"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["languge"], "unknown task 'languge'; did you mean 'language'?"),
        (["digits", "--corpus", "x"], "dsfjax finetune has no option '--corpus'"),
        ([], "expected a task after the checkpoint, one whose token ids are its own"),
        (["language", "--seq-len", "x"], "expected --seq-len to be an integer, got 'x'"),
        (["mqar"], "at most the 64 tokens of the checkpoint, got 8192"),
        (["language", "--steps", "30"], "steps to be a multiple of eval_every = 50, got 30"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*WORDS[:2], *words]) == 2
    assert message in capsys.readouterr().err
