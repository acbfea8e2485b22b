"""The report reads systems as analysis does: no architecture is named in its code."""

from pathlib import Path

import pytest

from tests.analysis.test_no_names import named

FOLDER = Path(__file__).parents[2] / "dsfjax" / "report"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_architecture_is_named(path: Path) -> None:
    # functools.lru_cache is a cache, not a recurrent unit.
    found = named(path.read_text(encoding="utf-8").replace("lru_cache", "cache"))
    assert not found, f"{path.name}: {found}"
