"""Every command that the documentation prints is one: its words parse, and its settings fit."""

import re
import shlex
from pathlib import Path

import pytest

from dsfjax.cli import options, parse, recommend, sweep, training
from dsfjax.cli.usage import UsageError
from dsfjax.tasks.data.reading import MissingDataError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
STANDING_FOR = {"TASK": "imdb", "N": "8", "NAME": "digits", "my_module": "json"}
"""Words that stand for a name; others in capitals stand for a path, as which they parse."""
PART = re.compile(r"[a-z]+(?: --[a-z-]+)?")
"""What is no whole command: one that is spoken of, `dsfjax train` or `dsfjax sweep --devices`."""


def commands(text: str) -> list[str]:
    """The whole commands of blocks and of inline code, without comments and what "…" leaves out."""
    prose, *rest = re.split(r"^```(.*)\n", text, flags=re.M)
    blocks = [block for kind, block in zip(rest[::4], rest[1::4], strict=True) if kind != "python"]
    prose += "".join(rest[3::4])
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.partition("# ")[2] if " = " in line else line for line in lines]  # of settings
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = [re.match(r"dsfjax ([a-z].*)", line) for line in (*lines, *inline)]
    whole = [re.sub(r"\s+#.*| …(?= |$)", "", match[1]).strip() for match in found if match]
    return [one for one in whole if not PART.fullmatch(one)]


def test_commands_are_found_in_blocks_and_in_prose() -> None:
    text = (
        "a `dsfjax\ntrain x …`, `dsfjax train`\n```sh\ndsfjax sweep a \\\n  --b 1  # c\n```\n"
        "```python\ndsfjax is x\n```\n```toml\nsteps = 2  # dsfjax train y\n```\n`dsfjax data list`"
    )
    assert commands(text) == ["sweep a    --b 1", "train y", "train x", "data list"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # As where nothing was prepared yet: what a process has read, it remembers.
    monkeypatch.delenv("DSFJAX_DATA", raising=False)
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path))
    for block in re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S):
        name = re.search(r"--config (\S+\.toml)", block)
        assert name, f"{page.name} has a file of settings without its command"
        Path(name[1]).write_text(block, encoding="utf-8")
    for words in commands(text):
        if "--import mine" in words:  # what CONTRIBUTING.md defines: tests/test_contributing.py
            continue
        try:
            accept([STANDING_FOR.get(word, word) for word in shlex.split(words)])
        except MissingDataError:
            continue  # the number of its series is in the file
        except (ValueError, UsageError) as error:
            pytest.fail(f"{page.name}: dsfjax {words}: {error}")


def accept(words: list[str]) -> None:
    """Parse a command and make its configs, or its question."""
    match command := parse.parse(words):
        case options.Train() | options.Compare():
            assert training.plan(command)
        case options.Sweep():
            assert sweep.plan(command)
        case options.Recommend():
            recommend.profile_from(command)
