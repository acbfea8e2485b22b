"""Words to a typed command, with every misspelling answered by the nearest choice."""

import contextlib
import dataclasses
import importlib.metadata
import io
import sys
from collections.abc import Collection, Sequence

import tyro

from dsfjax._util.names import unknown
from dsfjax.cli import options
from dsfjax.cli.usage import UsageError

COMMANDS = {
    "train": options.Train,
    "compare": options.Compare,
    "sweep": options.Sweep,
    "results": options.Results,
    "systems": options.Systems,
    "explain": options.Explain,
    "analyze": options.Analyze,
    "bench": options.Bench,
    "selfcheck": options.Selfcheck,
}
POSITIONAL = {
    "train": "task",
    "compare": "task",
    "sweep": "task",
    "results": "run_dir",
    "analyze": "run_dir",
}


def parse(words: Sequence[str]) -> options.Command | None:
    """Parse a command line.

    Args:
        words: The words after ``dsfjax``.

    Returns:
        The command, or None if the words asked for help, which has been printed then.

    Raises:
        UsageError: If the words are no command.

    Examples:
        >>> parse(["systems", "--d-model", "32"]).d_model
        32
        >>> parse(["systems", "--d-modle", "32"])
        Traceback (most recent call last):
            ...
        dsfjax.cli.usage.UsageError: dsfjax systems has no option '--d-modle'; did you mean
        '--d-model'? Known: --d-model, --d-state, --help, --num-heads.
    """
    _check_spelling(words)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(options.Command, prog="dsfjax", args=list(words))  # type: ignore
    except SystemExit as end:
        if end.code in (0, None):
            sys.stderr.write(errors.getvalue())
            return None
        raise UsageError(_sentence(errors.getvalue())) from end


def version() -> str:
    """The version of the installed package.

    Returns:
        The version, or "(not installed)" in a source tree that is only on the path.
    """
    try:
        return importlib.metadata.version("dsfjax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _check_spelling(words: Sequence[str]) -> None:
    if not words:
        raise UsageError(f"expected a command: {', '.join(COMMANDS)}; see dsfjax --help")
    if words[0].startswith("-"):
        _check("dsfjax has no option", words[0], ("--help", "-h", "--version"))
        return
    _check("unknown command", words[0], COMMANDS)
    names = {field.name for field in dataclasses.fields(COMMANDS[words[0]])}
    names -= {POSITIONAL.get(words[0], "")}
    flags = sorted({"--help", *("--" + name.replace("_", "-") for name in names)})
    for word in words[1:]:
        if word.startswith("--"):
            name = word.split("=")[0].replace("_", "-")
            _check(f"dsfjax {words[0]} has no option", name, flags)


def _check(what: str, given: str, known: Collection[str]) -> None:
    if given not in known:
        raise UsageError(unknown(what, given, known))


def _sentence(box: str) -> str:
    """The first paragraph of the parser's framed message, as one line."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    body = []
    for line in lines[1:]:
        if set(line) <= {"─"}:
            break
        body.append(line)
    return " ".join(body) + "; see dsfjax --help"
