"""The notebooks run, say what their scripts say, and use what a reader may use."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
OPEN_TO_READERS = {"analysis", "nn", "systems", "tasks", "training"}

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def cells_of_script(text: str) -> list[tuple[str, str]]:
    """Kind and source of every cell of a script in the percent format."""
    found = []
    for mark, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", text, re.M):
        kind = "markdown" if mark.strip() == "[markdown]" else "code"
        if kind == "markdown":
            body = re.sub(r"^# ?", "", body, flags=re.M)
        found.append((kind, body.strip()))
    return found


def notebook_of(script: Path) -> dict[str, Any]:
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


def test_there_are_six() -> None:
    assert [script.stem[:2] for script in SCRIPTS] == ["01", "02", "03", "04", "05", "06"]


def test_cells_of_a_script() -> None:
    text = "# ---\n# %% [markdown]\n# # A\n#\n# b\n\n# %%\nx = 1  # %%\n\n\n# %%\ny = 2\n"
    expected = [("markdown", "# A\n\nb"), ("code", "x = 1  # %%"), ("code", "y = 2")]
    assert cells_of_script(text) == expected


@each
def test_notebook_is_that_of_its_script(script: Path) -> None:
    """``make notebooks`` was run after the last change of the script, and everything worked."""
    cells = notebook_of(script)["cells"]
    shown = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]
    assert shown == cells_of_script(script.read_text(encoding="utf-8"))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert script.with_suffix(".ipynb").stat().st_size < 400_000


@each
def test_short_and_checked(script: Path) -> None:
    cells = cells_of_script(script.read_text(encoding="utf-8"))
    words = [body for kind, body in cells if kind == "markdown"]
    code = [body for kind, body in cells if kind == "code"]
    assert len(cells) <= 13
    assert "**Claim.**" in words[0] and "**Exercise.**" in words[-1]
    assert cells[-1][0] == "markdown"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse("\n".join(code))))


@each
def test_imports_what_is_open_to_readers(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "dsfjax" and rest:
                assert rest[0] in OPEN_TO_READERS, f"line {node.lineno}: {name}"


@pytest.mark.slow
@each
def test_runs(script: Path, tmp_path: Path) -> None:
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(
            package, reason="needs the notebooks extra; `make test-all` installs it"
        )
    # A reader's environment: compiled with optimisation, on as many cores as there are.
    variables = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    paths = [str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, ROOT / "notebooks", script.stem, "--out", tmp_path],
        env={**variables, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / f"{script.stem}.ipynb").exists()
