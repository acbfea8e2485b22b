"""The architecture as a test: imports go strictly downward, heavy libraries stay in one place."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dsfjax"

FLOORS = {
    "_util": 0,
    "core": 1,
    "engines": 2,
    "ops": 3,
    "systems": 4,
    "tasks": 4,
    "cost": 4,
    "analysis": 5,
    "nn": 5,
    "aspects": 6,
    "training": 7,
    "interop": 8,
    "selfcheck": 8,
    "guidance": 8,
    "bench": 9,
    "report": 9,
    "cli": 10,
    "__main__": 11,
}
OWNERS = {"difflib": "_util", "flax": "nn", "optax": "training", "orbax": "training"}
FACADE = "__init__"


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import below ``tree``, a file of ``package``.

    ``from a import b`` counts as ``a.b``, since b may be a module. Functions are searched too, and
    ``import_module`` of a literal, so that no import escapes by being late.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((node.lineno, ".".join((*parts, alias.name))) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            literal = node.args[0]
            if name in ("import_module", "__import__") and isinstance(literal, ast.Constant):
                yield node.lineno, str(literal.value)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What the file ``module`` (dotted, without the leading package) imports and must not."""
    parts = ("dsfjax", *module.split("."))
    area = parts[1]
    package = parts if is_package and area != FACADE else parts[:-1]
    found = []
    if area != FACADE and area not in FLOORS:
        found.append(f"{module}: {area!r} stands on no floor; add it to FLOORS")
    for line, name in imported(ast.parse(source), package):
        root, *rest = name.split(".")
        owner = OWNERS.get(root)
        if owner is not None and area != owner:
            found.append(f"{module}:{line} imports {name}, which only {owner} may")
        if root != "dsfjax" or area == FACADE:
            continue
        target = rest[0] if rest else FACADE
        if target == area:
            continue
        if target not in FLOORS:
            found.append(f"{module}:{line} imports {name} through the facade")
        elif FLOORS[target] >= FLOORS.get(area, -1):
            found.append(f"{module}:{line} imports {name}, which is not below {area}")
    return found


def test_imports_go_downward() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    found = []
    for path in files:
        relative = path.relative_to(PACKAGE).with_suffix("")
        is_package = relative.name == "__init__" and len(relative.parts) > 1
        module = ".".join(relative.parts[:-1] if is_package else relative.parts)
        found += violations(path.read_text(encoding="utf-8"), module, is_package=is_package)
    assert not found, "\n".join(found)


def test_rooms_name_their_floor() -> None:
    for room in PACKAGE.glob("*/__init__.py"):
        if said := re.match(r'"""Floor (\d+)', room.read_text(encoding="utf-8")):
            assert int(said[1]) == FLOORS[room.parent.name], room.parent.name


def test_no_module_name_stands_twice() -> None:
    names = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.system", "from dsfjax.engines import scan"),
        ("core.system", "import dsfjax.engines.scan"),
        ("core.system", "def f():\n    from ..engines import scan"),
        ("_util.names", "from dsfjax.core import System"),
        ("systems.ssd", "from dsfjax.tasks.mqar import sample"),
        ("systems.ssd", "from .. import tasks"),
        ("analysis.spectra", "import dsfjax.nn"),
        ("core.system", "from dsfjax import System"),
        ("core.system", "import dsfjax"),
        ("core.system", "import importlib\nimportlib.import_module('dsfjax.nn.model')"),
        ("interop.reference", "from flax import nnx"),
        ("nn.model", "import optax"),
        ("nn.config", "import difflib"),
        ("report.tables", "import orbax.checkpoint as ocp"),
        ("extras.thing", "import numpy"),
        (FACADE, "import flax"),
    ],
)
def test_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engines.scan", "from dsfjax.core.system import System"),
        ("engines.scan", "from ..core import system\nfrom . import chunked"),
        ("nn.model", "from flax import nnx\nfrom dsfjax.systems import get"),
        ("training.step", "import optax\nimport orbax.checkpoint\nimport dsfjax.tasks.mqar"),
        ("__main__", "from dsfjax.cli import main"),
        (FACADE, "from dsfjax.core.system import System"),
        ("core.system", "import flaxformer"),
        ("core.system", "from dsfjax._util.names import choose"),
    ],
)
def test_downward_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_import_of_a_package() -> None:
    assert violations("from .scan import scan", "engines", is_package=True) == []
    assert violations("from ..nn import model", "engines", is_package=True) != []
