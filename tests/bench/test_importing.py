"""Modules of packages whose own start would fail."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsfjax.bench.peers.importing import is_installed, load, load_alone


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "package_that_cannot_start"
    inner = tmp_path / name / "inner"
    inner.mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('no GPU')\n")
    (inner / "__init__.py").write_text("import a_missing_kernel\n")
    (inner / "plain.py").write_text(
        "import warnings\nfrom . import other\nwarnings.warn('old')\nanswer = other.half * 2\n"
    )
    (inner / "other.py").write_text("half = 21\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [m for m in sys.modules if m.startswith(name)]:
        monkeypatch.delitem(sys.modules, module)


def test_module_without_its_packages(package: str) -> None:
    assert is_installed(package)
    assert load_alone(f"{package}.inner.plain").answer == 42
    assert package not in sys.modules  # an ordinary import still meets the package itself
    assert f"{package}.inner" not in sys.modules
    with pytest.raises(RuntimeError, match="no GPU"):
        load(package)


def test_absent_package() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_alone("no_such_package.module")
