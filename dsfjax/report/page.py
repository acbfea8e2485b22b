"""The report page: one HTML file that needs nothing else, neither network nor other files."""

import html
from importlib import resources
from string import Template

from dsfjax.report import sections
from dsfjax.report.aspects import registered
from dsfjax.report.comparison import Comparison
from dsfjax.report.html import bullets, definitions, subscripts
from dsfjax.report.verdict import Verdict

_SECTIONS = (
    sections.results,
    sections.inside,
    sections.spectra,
    sections.memory,
    sections.state,
    sections.kernels,
    sections.stability,
    sections.training,
    sections.costs,
)


def render(comparison: Comparison, verdict: Verdict, title: str, files: list[str]) -> str:
    """The page as a string.

    Args:
        comparison: What is to be shown; entries ordered by mean accuracy.
        verdict: What follows from it.
        title: Heading of the page, plain text.
        files: Names of the data files, for the footer.

    Returns:
        A complete HTML document.
    """
    doubts = bullets("doubts", verdict.doubts)
    links = [f'<a href="data/{html.escape(name)}">{html.escape(name)}</a>' for name in files]
    shown = [section(comparison) for section in _SECTIONS]
    # Before what training and the mixers cost, where the page leaves the systems.
    shown[-2:-2] = [sections.own_section(comparison, aspect) for aspect in registered()]
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        css=_asset("page.css"),
        script=_asset("page.js"),
        verdict=subscripts(html.escape(verdict.answer)),
        reasons=definitions("reasons", verdict.reasons),
        doubts=f"<p>What makes this evidence thin:</p>\n{doubts}" if doubts else "",
        facts=definitions("facts", comparison.facts),
        sections="\n".join(shown),
        files=", ".join(links),
    )


def _asset(name: str) -> str:
    return resources.files("dsfjax.report").joinpath("assets", name).read_text(encoding="utf-8")
