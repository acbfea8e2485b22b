"""Other processes, for tests: with devices, threads and a working directory of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def environment(devices: int = 1) -> dict[str, str]:
    """The variables of a process with so many CPU devices, that compiles quickly."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **own}


def start(*words: object, devices: int = 1, **variables: str) -> subprocess.Popen[str]:
    """Python with these words, which goes on by itself."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**environment(devices), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(*words: object, devices: int = 1, **own: Any) -> str:
    """Standard output of Python with these words, which must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment(devices),
        capture_output=True,
        text=True,
        check=False,
        **own,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
