"""docs/checkpoints.md lists the families there are; ``DSFJAX_WRITE_DOCS=1`` writes it anew."""

import inspect
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from dsfjax.interop import published
from dsfjax.interop.published.naming import REGISTRY
from dsfjax.interop.published.reducible import FAMILIES
from tests import pages
from tests.opened import with_tokenizer

PAGE = pages.DOCS / "checkpoints.md"
BEGIN, END = "<!-- table: written by tests/interop/test_docs.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    """A row per family: its types, what it is, and its papers."""
    assert published.open
    types: dict[object, list[str]] = {}
    for name, define in REGISTRY.items():
        types.setdefault(define, []).append(f"`{name}`")
    rows = ["| `model_type` | what | of |", "| --- | --- | --- |"]
    for define, names in sorted(types.items(), key=lambda item: item[1]):
        module = inspect.getmodule(define)
        what = " ".join((inspect.getdoc(define) or "").split("\n\n")[0].split())
        assert what and module is not None and module.__doc__, define
        number = r"\b\d{4}\.\d{5}\b"
        papers = re.findall(number, what) or re.findall(number, module.__doc__)
        what = re.sub(rf" \(arXiv:{number}\)", "", what)
        links = ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(papers))
        rows.append(f"| {', '.join(names)} | {what} | {links} |")
    return "\n".join(rows) + "\n"


def test_the_page_is_current() -> None:
    pages.check(PAGE, BEGIN, table(), END)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path) -> None:
    """In the order of the page, on a checkpoint of ours; the last line gives other logits."""
    folder, names = with_tokenizer(tmp_path / "folder"), {}
    first, second = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    exec(first.replace("path/to/folder", str(folder)), names)
    model, ids = names["model"], names["ids"]
    changed = re.sub(r"^model\.apply", "found = model.apply", second, flags=re.M)
    exec(changed, names)
    assert jnp.abs(names["found"] - model.logits(ids)).max() > 1e-3


def test_the_families_whose_states_get_smaller_are_listed() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Smaller states")[1].split("\n## ")[0]
    listed = [row.split("|")[3] for row in section.splitlines() if row.startswith("| ")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(listed[2:]))) == sorted(FAMILIES)
