"""From run directories to a folder with the page and its data."""

from pathlib import Path

from dsfjax.report.export import write_data
from dsfjax.report.page import render
from dsfjax.report.read import read


def write(run_dir: Path | str, out_dir: Path | str) -> Path:
    """Write the report of a comparison: ``index.html`` and, beside it, ``data/*.csv``.

    Args:
        run_dir: Folder of a comparison (``dsfjax compare``) or of one run (``dsfjax train``).
        out_dir: Where to write; made if it does not exist, files of the same names are replaced.

    Returns:
        Path of the page. It needs no network and no other file.

    Raises:
        ValueError: If ``run_dir`` has no finished run, or its runs are not of one task.
    """
    out = Path(out_dir)
    comparison = read(Path(run_dir))
    files = write_data(comparison, out / "data")
    page = out / "index.html"
    title = "Multi-query associative recall"
    page.write_text(render(comparison, title, files), encoding="utf-8")
    return page
