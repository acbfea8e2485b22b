"""From run directories to a folder with the page and its data."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from dsfjax.report.export import write_data
from dsfjax.report.joint import TaskScores, read_joint, write_joint
from dsfjax.report.page import render, render_index
from dsfjax.report.read import names_by_task, read
from dsfjax.report.verdict import Verdict, decide
from dsfjax.training.storage.files import write_text


class Report(NamedTuple):
    """A report that has been written.

    Attributes:
        page: Path of the page. It needs no network and no other file.
        verdict: What it answers.
    """

    page: Path
    verdict: Verdict


class Reports(NamedTuple):
    """The reports of all tasks of a run directory.

    Attributes:
        index: The page to open first. With one task it is that task's page.
        tasks: One report per task.
        joint: The columns of the table over all tasks; empty if there is one task only.
    """

    index: Path
    tasks: list[Report]
    joint: list[TaskScores]


def write_all(
    run_dir: Path | str, out_dir: Path | str, *, said: Callable[[str], Any] = str
) -> Reports:
    """Write a report for every task of a sweep: into the folder itself if there is one task only.

    Several tasks get a folder each, and ``index.html`` is a page with one table of all tasks, the
    verdict of each and a link to its page. The numbers of the table are in ``joint.csv``.

    Args:
        run_dir: Folder of a sweep, a comparison or one run.
        out_dir: Where to write.
        said: Told of every stage, with its time.

    Returns:
        The reports.

    Raises:
        ValueError: If ``run_dir`` has no finished run.
    """
    tasks = names_by_task(Path(run_dir))
    if len(tasks) < 2:
        report = write(run_dir, out_dir, said=said)
        return Reports(report.page, [report], [])
    out, joint = Path(out_dir), read_joint(Path(run_dir))
    reports = [
        write(run_dir, out / task.name, names, said=said)
        for task, names in zip(joint, tasks.values(), strict=True)
    ]
    write_joint(joint, out / "joint.csv")
    index = out / "index.html"
    write_text(index, render_index(joint, [report.verdict for report in reports], "joint.csv"))
    return Reports(index, reports, joint)


def write(
    run_dir: Path | str,
    out_dir: Path | str,
    names: Collection[str] | None = None,
    *,
    said: Callable[[str], Any] = str,
) -> Report:
    """Analyse a comparison and write its report: ``index.html``, and ``data/*.csv`` next to it.

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
