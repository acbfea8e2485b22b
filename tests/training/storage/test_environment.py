"""The environment of a run: what it says of git."""

import subprocess
from pathlib import Path

import jax
import pytest

from dsfjax.training.storage import environment


def git(*words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


def test_git_state_follows_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.describe()["git"] is None
    git("init", "--quiet")
    assert environment.describe()["git"] is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "-m", "first")
    clean = environment.describe()["git"]
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.describe()["git"] == {"commit": clean["commit"], "dirty": True}


def test_versions_and_device() -> None:
    found = environment.describe()
    assert found["versions"]["jax"] == jax.__version__
    assert found["device_kind"] == jax.devices()[0].device_kind
    assert found["device_count"] == jax.device_count()
