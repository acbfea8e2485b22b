"""What an import brings along, in a new process; and the sentence for what is missing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsfjax

CODE = """
import sys
for name in ("tyro", "matplotlib"):  # Flax itself brings rich
    sys.modules[name] = None  # as if it were not installed
import dsfjax
import dsfjax.systems, dsfjax.tasks, dsfjax.analysis
heavy = {"flax", "optax", "orbax", "scipy", "pandas", "tensorflow"} & set(sys.modules)
assert not heavy, heavy
import dsfjax.nn, dsfjax.training  # training works without the extra
from dsfjax.__main__ import main
sys.exit(main())
"""


def test_library_needs_no_extra_and_commands_say_which() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "pip install 'dsfjax[cli]'" in done.stderr


WINDOWS = """
import os, sys, types
import jax, flax.nnx, optax, rich.live, tyro, matplotlib.figure  # as they are there
sys.modules["fcntl"] = sys.modules["resource"] = None
locks = sys.modules["msvcrt"] = types.ModuleType("msvcrt")
locks.LK_NBLCK, locks.locking = 1, lambda *_: None
sys.platform = "win32"
for name in ("sysconf", "sched_getaffinity", "set_blocking"):
    delattr(os, name)
import importlib, pathlib, pkgutil
import dsfjax
for package in "analysis cli core engines nn report systems tasks training".split():
    inside = importlib.import_module(f"dsfjax.{package}")
    for module in pkgutil.walk_packages(inside.__path__, f"dsfjax.{package}."):
        importlib.import_module(module.name)
from dsfjax._util import interrupt, limits
from dsfjax.training.storage import files
assert limits.cores() >= 1
interrupt.end_at_once()
files.write_text(pathlib.Path(sys.argv[1]) / "a", "text")
with files.lock(pathlib.Path(sys.argv[1])) as mine:
    assert mine
"""


@pytest.mark.slow
def test_nothing_of_unix_is_needed_to_import(tmp_path: Path) -> None:
    """As on Windows, which has neither fcntl nor some functions of os."""
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(dsfjax.__file__).read_text())
    seen = [x.name for x in ast.walk(tree) if isinstance(x, ast.alias) and x.asname]
    assert seen == dsfjax.__all__
    assert all(getattr(dsfjax, name).__name__ == name for name in dsfjax.__all__)
    assert set(dsfjax.__all__) < set(dir(dsfjax))
    with pytest.raises(AttributeError, match="has no attribute 'scann'"):
        _ = dsfjax.scann
