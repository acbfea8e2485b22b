import tomllib
from pathlib import Path

import dsfjax


def test_version_is_that_of_the_project() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert dsfjax.__version__ == tomllib.loads(text)["project"]["version"]
