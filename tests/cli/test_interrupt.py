"""Ctrl-C: one line and exit code 130 in every stage, and the same command continues."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = "compare mqar --preset smoke --mixers linear_attention --run-dir".split()


def interrupted(folder: Path, line: str, seconds: float) -> tuple[int, str]:
    """Exit code and stderr of a run that is interrupted some time after a line of its output."""
    # Tests that run in the background of a shell would hand down that it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "dsfjax", *WORDS, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert any(line in said for said in process.stdout)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.slow
def test_in_every_stage(tmp_path: Path) -> None:
    stages = [
        ("compiling", 0.0),
        ("compiling", 1.0),
        ("step 4/", 0.0),  # a checkpoint is written after every evaluation of this preset
        ("step 12/", 0.02),
        ("run directory", 0.0),  # the report begins
        ("run directory", 2.0),
    ]
    for line, seconds in stages:
        code, err = interrupted(tmp_path / "run", line, seconds)
        # Where the run before was ended while it wrote a checkpoint, this one says that it is gone.
        said = [x for x in err.splitlines() if not x.endswith("-tmp: it was not finished")]
        assert (code, len(said)) == (130, 1), (line, err)
        assert said[0].startswith("dsfjax: interrupted; ")


EARLY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process inherited

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["dsfjax", "systems"]
from dsfjax.__main__ import main
assert "jax" not in sys.modules
sys.exit(main())
"""


def test_before_jax_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
    assert done.stderr.startswith("dsfjax: interrupted; ")
