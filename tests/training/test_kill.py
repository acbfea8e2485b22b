"""A process killed at any moment, then run again, ends with the bits of one left alone."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from dsfjax.training import load
from tests.training.processes import python, start
from tests.training.test_runs import numbers

RANDOM = random.Random(0)


class Sweep(NamedTuple):
    """Words for the command line, and variables of its environment."""

    words: tuple[str, ...]
    variables: dict[str, str] = {}

    def start(self, folder: Path) -> subprocess.Popen[str]:
        words = ("sweep", *self.words, "--preset", "smoke", "--no-report", "--run-dir", folder)
        return start("-m", "dsfjax", *words, devices=1, **self.variables)

    def finish(self, folder: Path) -> None:
        process = self.start(folder)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err

    def kill(self, folder: Path, reached: Callable[[Path], bool], within: float) -> bool:
        """Kill it within so many seconds after it got there; whether it was still running."""
        process = self.start(folder)
        while process.poll() is None and not reached(folder):
            time.sleep(0.01)
        time.sleep(RANDOM.uniform(0, within))
        running = process.poll() is None
        if running:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return running


RECALL = Sweep(("mqar", "--steps", "80"))


def results(folder: Path) -> str:
    return python("-m", "dsfjax", "results", folder, "--json", "--no-timing")


def at_once(folder: Path) -> bool:
    return True


def at_a_checkpoint(folder: Path) -> bool:
    return any(folder.glob("*/checkpoints/*"))


def at_the_second_program(folder: Path) -> bool:
    return len(list(folder.glob("*/checkpoints"))) == 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The results of a sweep left alone, and the seconds it took."""
    folder = tmp_path_factory.mktemp("sweep") / "alone"
    began = time.perf_counter()
    RECALL.finish(folder)
    return results(folder), time.perf_counter() - began


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_kill_and_resume_leaves_no_trace(
    attempt: int, undisturbed: tuple[str, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    reached, within = [
        (at_once, 0.5 * seconds),
        (at_a_checkpoint, 1.0),
        (at_a_checkpoint, 0.3),
        (at_the_second_program, 1.0),
    ][attempt % 4]
    folder = tmp_path / "sweep"
    kills = sum(RECALL.kill(folder, reached, within) for _ in range(1 + attempt % 2))
    RECALL.finish(folder)
    assert kills > 0
    assert results(folder) == expected
    members = [json.loads(line) for line in expected.splitlines()]
    assert len(members) == 8
    assert {member["final"]["step"] for member in members} == {80}


class Epochs(NamedTuple):
    """A sweep of one program that goes through a training split several times.

    Attributes:
        sweep: The sweep.
        per_epoch: Steps of an epoch.
        alone: What it leaves behind when nothing disturbs it (`left_by`).
    """

    sweep: Sweep
    per_epoch: float
    alone: tuple[list[str], list[Any], list[bytes]]


STEPS, OFTEN = 120, 4
PROGRAM = ("--mixers", "linear_attention", "--steps", str(STEPS), "--eval-every", str(OFTEN))
PROGRAM += ("--checkpoint-every", "2")


def left_by(sweep: Sweep, folder: Path) -> tuple[list[str], list[Any], list[bytes]]:
    """All evaluations without their times, how members ended, and the final parameters' bytes."""
    (log,) = folder.glob("*/metrics.jsonl")
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):  # as in the other process
        for name, value in sweep.variables.items():
            patch.setenv(name, value)
        run = load(log.parent)
    leaves = [leaf.tobytes() for leaf in jax.tree.leaves(run.params)]
    return numbers(log.parent), run.result["members"], leaves


@pytest.fixture(scope="module", params=["resident", "streamed"])
def epochs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Epochs:
    """The digits, which come with the package; or a made-up text, sent by the host."""
    folder = tmp_path_factory.mktemp("epochs")
    if request.param == "resident":
        sweep, per_epoch = Sweep(("digits", *PROGRAM, "--batch-size", "60")), 1437 // 60.0
    else:
        pytest.importorskip("grain")
        corpus, draw = folder / "wikitext103", random.Random(0)
        corpus.mkdir()
        for part, size in (("train", 2500), ("valid", 300), ("test", 300)):
            text = "".join(draw.choices("to be or not that is ", k=size - 1)) + "\n"
            (corpus / f"wiki.{part}.tokens").write_text(text)
        windows = (2500 - 1) // 16  # as the preset has them, in batches of 8; none is passed over
        words = ("language", "--corpus", "wikitext103", "--streamed", "True", *PROGRAM)
        data = {"DSFJAX_DATA": str(folder), "DSFJAX_CACHE": str(folder / "cache")}
        sweep, per_epoch = Sweep(words, data), windows / 8
    assert STEPS > 5 * per_epoch
    sweep.finish(folder / "alone")
    return Epochs(sweep, per_epoch, left_by(sweep, folder / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_a_kill_in_mid_epoch_leaves_no_trace(attempt: int, epochs: Epochs, tmp_path: Path) -> None:
    point = random.Random(attempt).randrange(2 * OFTEN, STEPS - OFTEN, OFTEN)

    def reached(folder: Path) -> bool:
        return any(f'"step": {point},' in log.read_text() for log in folder.glob("*/metrics.jsonl"))

    folder = tmp_path / "sweep"
    assert epochs.sweep.kill(folder, reached, 0.05)
    last = max(int(x.name.removeprefix("step_")) for x in folder.glob("*/checkpoints/step_*[0-9]"))
    assert last % epochs.per_epoch != 0
    epochs.sweep.finish(folder)
    assert left_by(epochs.sweep, folder) == epochs.alone
