"""From run directories to a folder with the page and its data."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from dsfjax.report.export import write_data
from dsfjax.report.page import render
from dsfjax.report.read import names_by_task, read
from dsfjax.report.verdict import Verdict, decide
from dsfjax.training.files import write_text


class Report(NamedTuple):
    """A report that has been written.

    Attributes:
        page: Path of the page. It needs no network and no other file.
        verdict: What it answers.
    """

    page: Path
    verdict: Verdict


def write_all(
    run_dir: Path | str, out_dir: Path | str, *, said: Callable[[str], Any] = str
) -> list[Report]:
    """Write a report for every task of a sweep: into the folder itself if there is one task only.

    Args:
        run_dir: Folder of a sweep, a comparison or one run.
        out_dir: Where to write; several tasks get a folder each in it, named by their sizes.
        said: Told of every stage, with its time.

    Returns:
        The reports, one per task.

    Raises:
        ValueError: If ``run_dir`` has no finished run.
    """
    tasks = names_by_task(Path(run_dir))
    if len(tasks) < 2:
        return [write(run_dir, out_dir, said=said)]
    return [write(run_dir, Path(out_dir) / task.slug(), n, said=said) for task, n in tasks.items()]


def write(
    run_dir: Path | str,
    out_dir: Path | str,
    names: Collection[str] | None = None,
    *,
    said: Callable[[str], Any] = str,
) -> Report:
    """Analyse a comparison and write its report: ``index.html``, and ``data/*.csv`` beside it.

    Args:
        run_dir: Folder of a comparison (``dsfjax compare``) or of one run (``dsfjax train``).
        out_dir: Where to write; made if it does not exist, files of the same names are replaced.
        names: The runs of a comparison that it is about; all by default.
        said: Told of every stage, with its time.

    Returns:
        The report.

    Raises:
        ValueError: If ``run_dir`` has no finished run, or its runs are not of one task.
    """
    out = Path(out_dir)
    comparison = read(Path(run_dir), names, said=said)
    began = time.perf_counter()
    files = write_data(comparison, out / "data")
    page = out / "index.html"
    verdict = decide(comparison)
    write_text(page, render(comparison, verdict, comparison.title, files))
    said(f"page drawn in {time.perf_counter() - began:.1f} s")
    return Report(page, verdict)
