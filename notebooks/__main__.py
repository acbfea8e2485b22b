"""Run the notebooks: ``python notebooks`` executes the scripts and writes each beside itself."""

import argparse
from pathlib import Path

import jupytext  # type: ignore[import-not-found]
import nbclient  # type: ignore[import-not-found]

HERE = Path(__file__).parent


def execute(script: Path, folder: Path) -> None:
    """Run one script as a notebook; an assertion that fails in it raises.

    Args:
        script: A script in jupytext's percent format.
        folder: Where the notebook goes, with its outputs.
    """
    notebook = jupytext.read(script)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # not random: running them again changes only what comes out
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute()
    jupytext.write(notebook, folder / f"{script.stem}.ipynb", fmt="ipynb")


def main() -> None:
    """Run those whose names begin as the words do, all without words."""
    parser = argparse.ArgumentParser(prog="python notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", default=[""], help="first letters, such as 01 03")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the notebooks")
    words = parser.parse_args()
    for name in words.names:
        scripts = sorted(HERE.glob(f"{name}[0-9]*_*.py" if name == "" else f"{name}*.py"))
        if not scripts:
            parser.error(f"no script here begins with {name!r}")
        for script in scripts:
            print(script.stem, flush=True)
            execute(script, words.out)


if __name__ == "__main__":
    main()
