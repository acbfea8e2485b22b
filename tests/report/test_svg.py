"""SVG elements that share a page."""

import re

import pytest
from matplotlib.figure import Figure

from dsfjax.aspects.style import INK
from dsfjax.report.svg import to_svg


def drawing() -> Figure:
    figure = Figure(figsize=(2, 1))
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color=INK, marker="o")
    return figure


def test_identifiers_carry_the_name() -> None:
    svg = to_svg(drawing(), "curve-1", "A curve")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert ids
    assert all(name.startswith("curve-1-") for name in ids)
    assert references
    assert all((a or b) in ids for a, b in references)


def test_title_size_and_colours() -> None:
    svg = to_svg(drawing(), "a", 'x < "y" & z')
    head = svg.split(">", 1)[0]
    assert 'aria-label="x &lt; &quot;y&quot; &amp; z"' in head
    assert 'viewBox="0 0 144 72"' in head
    assert not re.search(r'\s(width|height)="', head)
    assert "var(--ink)" in svg
    assert INK not in svg


def test_no_date_and_stable() -> None:
    assert to_svg(drawing(), "a", "") == to_svg(drawing(), "a", "")
    assert "metadata" not in to_svg(drawing(), "a", "")


def test_bad_name() -> None:
    with pytest.raises(ValueError, match="letters, digits and hyphens"):
        to_svg(drawing(), "a b", "")
