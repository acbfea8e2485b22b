"""Pieces of the page: cells, sortable tables, figures. Text is escaped here and nowhere else."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dsfjax.report.svg import to_svg
from dsfjax.report.verdict import Verdict


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its head.
        first: Direction of the first click, "ascending" or "descending".
        kind: "number" or "text".
        sorted: Direction in which the rows arrive ordered by it, if they do.
    """

    name: str
    first: str = "descending"
    kind: str = "number"
    sorted: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        shown: Plain text.
        value: What sorting compares: a number, or a text; None where there is nothing.
        spread: Plain text set small after it.
        color: Of a swatch before it, or "".
    """

    shown: str
    value: object
    spread: str = ""
    color: str = ""


def table(label: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> str:
    """A table that a click on a head sorts; the first cell of a row is its head.

    Args:
        label: What a screen reader calls it.
        columns: The columns.
        rows: A cell per column.

    Returns:
        HTML.
    """
    heads = []
    for column in columns:
        order = f' aria-sort="{column.sorted}"' if column.sorted else ""
        words = ' class="words"' if column.kind == "text" else ""
        heads.append(
            f'<th scope="col"{words} data-kind="{column.kind}" data-first="{column.first}"{order}>'
            f'<button type="button">{html.escape(column.name)}</button></th>'
        )
    body = []
    for row in rows:
        cells = [_cell(c, k, i == 0) for i, (c, k) in enumerate(zip(row, columns, strict=True))]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">
<table>
<thead><tr>
{chr(10).join(heads)}
</tr></thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table>
</div>"""


def _cell(cell: Cell, column: Column, head: bool) -> str:
    kind = 'th scope="row"' if head else "td"
    key = "" if cell.value is None else html.escape(str(cell.value))
    words = ' class="words"' if column.kind == "text" and not head else ""
    swatch = f'<span class="swatch" style="background:{cell.color}"></span>' if cell.color else ""
    spread = f'<span class="spread"> {html.escape(cell.spread)}</span>' if cell.spread else ""
    text = subscripts(html.escape(cell.shown))
    return f'<{kind}{words} data-value="{key}">{swatch}{text}{spread}</{kind.split()[0]}>'


def subscripts(text: str) -> str:
    """η_t and η_{t−1} as they are read; names with an underscore stay.

    Example:
        >>> subscripts("η_{t−1}/η_t, s_long")
        'η<sub>t−1</sub>/η<sub>t</sub>, s_long'
    """
    return re.sub(
        r"(?:(?<=[ηΛΦ])|(?<=\bq))_(?:\{([^}]*)\}|(\w)\b)",
        lambda m: f"<sub>{m[1] or m[2]}</sub>",
        text,
    )


def figure(drawn: Any, name: str, title: str, caption: str, data: str) -> str:
    """A figure with its caption and a link to its numbers.

    Args:
        drawn: The Matplotlib figure.
        name: Unique in the page, letters, digits and hyphens.
        title: What a screen reader says in place of the drawing.
        caption: Plain text: how to read it.
        data: Name of the CSV file with its numbers.

    Returns:
        HTML.
    """
    text = subscripts(html.escape(caption))
    link = f'<a href="data/{html.escape(data)}">data</a>'
    return f"<figure>{to_svg(drawn, name, title)}<figcaption>{text} {link}</figcaption></figure>"


def section(heading: str, how: str, *parts: str) -> str:
    """A section with a heading and a paragraph that says how to read what follows.

    Args:
        heading: Plain text.
        how: Plain text, or "".
        parts: HTML.

    Returns:
        HTML.
    """
    intro = lead(how) if how else ""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{intro}\n{body}\n</section>"


def decision(heading: str, verdict: Verdict, *parts: str) -> str:
    """The frame with an answer, its evidence and what makes it doubtful.

    Args:
        heading: HTML.
        verdict: The answer.
        parts: HTML between the answer and the doubts.

    Returns:
        HTML.
    """
    said = f'<p class="verdict">{subscripts(html.escape(verdict.answer))}</p>'
    doubts = bullets("doubts", verdict.doubts)
    thin = f"<p>What makes this evidence thin:</p>\n{doubts}" if doubts else ""
    body = "\n".join(part for part in (said, *parts, thin) if part)
    return f'<section class="decision">\n<h2>{heading}</h2>\n{body}\n</section>'


def lead(text: str) -> str:
    """A paragraph that says how to read what follows, of plain text."""
    return f'<p class="lead">{subscripts(html.escape(text))}</p>'


def grid(kind: str, parts: Sequence[str]) -> str:
    """Figures side by side: ``kind`` is "pair" for wide ones, "panels" for small ones."""
    return f'<div class="{kind}">\n{chr(10).join(parts)}\n</div>' if parts else ""


def note(text: str) -> str:
    """A paragraph in small type, of plain text."""
    return f'<p class="note">{subscripts(html.escape(text))}</p>'


def definitions(kind: str, items: dict[str, str]) -> str:
    """Terms and what is said of them, plain text."""
    rows = [
        f"<div><dt>{html.escape(term)}</dt><dd>{subscripts(html.escape(text))}</dd></div>"
        for term, text in items.items()
    ]
    return f'<dl class="{kind}">\n{chr(10).join(rows)}\n</dl>'


def bullets(kind: str, items: Sequence[str]) -> str:
    """A list of plain text; nothing for an empty one."""
    rows = "\n".join(f"<li>{subscripts(html.escape(item))}</li>" for item in items)
    return f'<ul class="{kind}">\n{rows}\n</ul>' if items else ""
