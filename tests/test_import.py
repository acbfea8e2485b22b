"""What an import brings along, in a new process; and the sentence for what is missing."""

import subprocess
import sys

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
