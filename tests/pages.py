"""Pages of the documentation of which a part is written by a test."""

import os
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def check(page: Path, begin: str, content: str, end: str) -> None:
    """What is between two marks of a page is this; ``DSFJAX_WRITE_DOCS=1`` writes it anew."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    written = before + begin + content + end + after
    if os.environ.get("DSFJAX_WRITE_DOCS"):
        page.write_text(written, encoding="utf-8")
    assert text == written, "run this test with DSFJAX_WRITE_DOCS=1 and commit the page"
