"""The report page: one HTML file that needs nothing else, neither network nor other files."""

import html
from collections.abc import Sequence
from importlib import resources
from string import Template

from dsfjax.aspects import registered
from dsfjax.report import sections
from dsfjax.report.entries import Comparison
from dsfjax.report.html import decision, definitions
from dsfjax.report.joint import TaskScores
from dsfjax.report.verdict import Verdict


def render(comparison: Comparison, verdict: Verdict, title: str, files: list[str]) -> str:
    """The page as a string.

    Args:
        comparison: What is to be shown; entries with the best score first.
        verdict: What follows from it.
        title: Heading of the page, plain text.
        files: Names of the data files, for the footer.

    Returns:
        A complete HTML document.
    """
    shown = [
        sections.results(comparison),
        sections.inside(comparison),
        *[sections.of_aspect(comparison.entries, aspect) for aspect in registered()],
        sections.training(comparison),
        sections.costs(comparison),
        sections.guidance(comparison),
    ]
    heading = "Which architecture for this task, and why"
    answer = decision(heading, verdict, definitions("reasons", verdict.reasons))
    return document(title, comparison.facts, [answer, *shown], data_files(files))


def render_index(joint: Sequence[TaskScores], verdicts: Sequence[Verdict], data: str) -> str:
    """The page over several tasks: one table, and a verdict and a link per task.

    Args:
        joint: The columns of the table; the page of a task is ``index.html`` in the folder of its
            name.
        verdicts: One per task, in the same order.
        data: Name of the CSV file with the numbers of the table.

    Returns:
        A complete HTML document.
    """
    answers = []
    for task, verdict in zip(joint, verdicts, strict=True):
        page = f"{html.escape(task.name)}/index.html"
        link = (
            f'<p><a href="{page}">All results and the analysis of {html.escape(task.name)}</a></p>'
        )
        heading = f"Which architecture for {html.escape(task.name)}, and why"
        answers.append(decision(heading, verdict, link))
    facts = {task.name: f"{task.title}: {task.sizes}" for task in joint}
    file = html.escape(data)
    said = f'The numbers of the table are in <a href="{file}">{file}</a> next to this page.'
    return document(f"{len(joint)} tasks", facts, [sections.joint(joint), *answers], said)


def data_files(files: Sequence[str]) -> str:
    """What is said of the CSV files next to a page."""
    links = [f'<a href="data/{html.escape(name)}">{html.escape(name)}</a>' for name in files]
    return (
        "The numbers behind every table and figure are in <code>data/</code> next to this page: "
        f"{', '.join(links)}."
    )


def document(title: str, facts: dict[str, str], shown: Sequence[str], files: str) -> str:
    """A page that needs nothing else."""
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        css=_asset("page.css"),
        script=_asset("page.js"),
        facts=definitions("facts", facts),
        sections="\n".join(shown),
        files=files,
    )


def _asset(name: str) -> str:
    return resources.files("dsfjax.report").joinpath("assets", name).read_text(encoding="utf-8")
