"""Programs are executed from one thread, so nothing waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 30


@pytest.mark.slow
def test_training_and_reports_in_one_process_never_hang(tmp_path: Path) -> None:
    # A core and two devices to wait for, as on a small machine.
    flags = "--xla_force_host_platform_device_count=2"
    script = Path(__file__).with_name("rounds.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs"), str(ROUNDS)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(n) for n in range(1, ROUNDS + 1)]
