"""docs/api.md is what the packages export; ``DSFJAX_WRITE_DOCS=1`` writes it anew."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dsfjax
from tests import pages

PAGE = pages.DOCS / "api.md"
BEGIN, END = "<!-- names: written by tests/test_api.py -->\n", "<!-- end of names -->\n"
PACKAGES = sorted(
    path.parent.name
    for path in Path(dsfjax.__file__).parent.glob("*/__init__.py")
    if not path.parent.name.startswith("_")
)
ELSEWHERE = {"cli", "ops"}
"""The commands are no library, and docs/ops.md has the ops."""


def exports(module: Any) -> Iterator[str]:
    """The names that a package imports under themselves, which makes them public."""
    for line in ast.parse(inspect.getsource(module)).body:
        if isinstance(line, ast.ImportFrom):
            yield from (x.name for x in line.names if x.asname == x.name)


def summary(thing: Any) -> str:
    """The first sentence of a docstring; of a value that has none of its own, its type."""
    own = thing if callable(thing) or inspect.ismodule(thing) else None
    doc = inspect.getdoc(own)
    if not doc:
        return f"value of type `{type(thing).__name__}`"
    line = " ".join(doc.split("\n\n")[0].split())
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", line).replace("|", "\\|")


def names() -> str:
    """The tables of all packages."""
    top = list(dsfjax.__all__)
    parts = {"dsfjax": top}
    for package in PACKAGES:
        if package not in ELSEWHERE:
            module = importlib.import_module(f"dsfjax.{package}")
            parts[f"dsfjax.{package}"] = [n for n in exports(module) if n not in top]
    lines = []
    for where, public in parts.items():
        lines += [f"\n## {where}\n", "| name | what |", "|---|---|"]
        module = importlib.import_module(where)
        lines += [f"| `{name}` | {summary(getattr(module, name))} |" for name in sorted(public)]
    return "\n".join(lines) + "\n\n"


def test_the_page_is_current() -> None:
    pages.check(PAGE, BEGIN, names(), END)


def test_every_package_is_an_attribute_and_on_the_map() -> None:
    readme = (pages.DOCS.parent / "README.md").read_text(encoding="utf-8")
    for package in PACKAGES:
        assert f"`dsfjax/{package}`" in readme
        assert package == "cli" or getattr(dsfjax, package).__name__ == f"dsfjax.{package}"
