"""Analysis reads systems: no architecture is named in its code, and none is imported."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from dsfjax import systems

FOLDER = Path(__file__).parents[2] / "dsfjax" / "analysis"
# Names of the registry, the families they come from, and names by which they are known elsewhere.
FAMILIES = (
    "softmax mamba mamba2 lstm qlstm gru rglru griffin hawk lru s4 s4d s5 s6 ssd rwkv".split()
)
NAMES = re.compile(
    rf"(?<![a-z0-9])({'|'.join([*FAMILIES, *systems.names()])})(?![a-z0-9])", re.IGNORECASE
)


def named(source: str) -> list[str]:
    """Architectures named in the code of a file; docstrings and comments may refer to papers."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add((node.value.lineno, node.value.col_offset))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.start in docstrings:
            continue
        found += [f"{token.start[0]}: {match[0]}" for match in NAMES.finditer(token.string)]
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_architecture_is_named(path: Path) -> None:
    found = named(path.read_text(encoding="utf-8"))
    assert not found, f"{path.name}: {found}"


def test_names_are_found() -> None:
    assert named("x = 's6'") and named("import dsfjax.systems.ssd") and named("is_qlstm = 1")
    assert named("def mamba_states(): pass") and named("softmax_attention")
    assert not named('"""Of S6."""\n# and ssd\nclass3, passed, sd = 1, 2, 3')
