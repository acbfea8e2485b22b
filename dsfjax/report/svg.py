"""A matplotlib figure as an SVG element that can stand inline in a page next to others."""

import io
import re
from typing import Any

from dsfjax.aspects.style import CSS_VARIABLES, SETTINGS

_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def to_svg(figure: Any, name: str, title: str) -> str:
    """Draw a figure into an SVG element.

    The same figure gives the same string on every run. Identifiers and the references to them get
    the prefix ``name``, because they share one name space with all other SVGs of the page.
    Placeholder colours become the CSS variables of :mod:`dsfjax.aspects.style`, and the size is
    left to the page (the ``viewBox`` keeps the proportions).

    Args:
        figure: A Matplotlib figure.
        name: Letters, digits and hyphens; unique in the page.
        title: What a screen reader says in place of the drawing.

    Returns:
        The ``<svg>…</svg>`` element.

    Raises:
        ValueError: If ``name`` cannot be part of an identifier.

    Example:
        >>> from matplotlib.figure import Figure
        >>> to_svg(Figure(), "empty", "Nothing")[:4]
        '<svg'
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise ValueError(f"expected a name of letters, digits and hyphens, got {name!r}")
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = _METADATA.sub("", _PROLOGUE.sub("", buffer.getvalue(), count=1))
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for placeholder, variable in CSS_VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    head, body = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{body}'.strip()
