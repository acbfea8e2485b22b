"""A process killed at any moment, then run again, ends with the numbers of one left alone."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.processes import python, start

SWEEP = ("sweep", "mqar", "--preset", "smoke", "--steps", "80", "--no-report", "--run-dir")
RANDOM = random.Random(0)


def sweep(folder: Path) -> subprocess.Popen[str]:
    return start("-m", "dsfjax", *SWEEP, folder)


def results(folder: Path) -> str:
    return python("-m", "dsfjax", "results", folder, "--json", "--no-timing")


def finish(folder: Path) -> None:
    process = sweep(folder)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err


def at_once(folder: Path) -> bool:
    return True


def at_a_checkpoint(folder: Path) -> bool:
    return any(folder.glob("*/checkpoints/*"))


def at_the_second_program(folder: Path) -> bool:
    return len(list(folder.glob("*/checkpoints"))) == 2


def kill(folder: Path, reached: Callable[[Path], bool], within: float) -> bool:
    """Kill a sweep within so many seconds after it got there; whether it was still running."""
    process = sweep(folder)
    while process.poll() is None and not reached(folder):
        time.sleep(0.01)
    time.sleep(RANDOM.uniform(0, within))
    running = process.poll() is None
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The results of a sweep left alone, and the seconds it took."""
    folder = tmp_path_factory.mktemp("sweep") / "alone"
    began = time.perf_counter()
    finish(folder)
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
    kills = sum(kill(folder, reached, within) for _ in range(1 + attempt % 2))
    finish(folder)
    assert kills > 0
    assert results(folder) == expected
    members = [json.loads(line) for line in expected.splitlines()]
    assert len(members) == 8
    assert {member["final"]["step"] for member in members} == {80}
