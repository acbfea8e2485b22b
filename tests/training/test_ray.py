"""Programs as Ray tasks; the points of a worker that dies are run again by another."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dsfjax.training import Listener, load, sweep, train
from dsfjax.training.sweeps import on_ray
from tests.training.processes import environment
from tests.training.small_config import CONFIG

LONG = dataclasses.replace(CONFIG, steps=2000, eval_every=10, checkpoint_every=2)


class KillWorker(Listener):
    """Kills the process that has the run's folder, once, after some of its evaluations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.killed_at = 0
        self.steps: list[int] = []

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        self.steps.append(lines[0]["step"])
        if name == "long" and lines[0]["step"] >= 40 and not self.killed_at:
            self.killed_at = lines[0]["step"]
            os.kill(owner(self._folder / name / ".lock"), signal.SIGKILL)


def owner(path: Path) -> int:
    """The process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.resolve() == path.resolve():
                return int(link.parts[2])
        except OSError:
            continue  # a process that has just ended
    raise AssertionError(f"nobody has {path} open")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, of forks and open files
def test_dead_workers_points_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    if not Path("/proc/self/fd").exists():
        pytest.skip("finding the worker needs /proc")
    own = {"JAX_ENABLE_X64": "1", "RAY_USAGE_STATS_ENABLED": "0", **environment()}
    for name in ("JAX_ENABLE_X64", "RAY_USAGE_STATS_ENABLED", "XLA_FLAGS", "PYTHONPATH"):
        monkeypatch.setenv(name, own[name])
    listener = KillWorker(tmp_path / "ray")
    try:
        configs = {"long": LONG, "short": CONFIG}
        rows = sweep(configs, tmp_path / "ray", listener=listener, launcher=on_ray)
    finally:
        ray.shutdown()
    assert listener.killed_at >= 40
    assert listener.steps.count(2000) == 1
    assert [row["mixer"] for row in rows] == ["long", "short"]
    train(LONG, tmp_path / "alone")
    members = [load(tmp_path / path).result["members"] for path in ("alone", "ray/long")]
    assert members[0] == members[1]
