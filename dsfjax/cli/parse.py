"""Words to a typed command, with every misspelling answered by the nearest choice."""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import io
import sys
from collections.abc import Iterable, Sequence

import tyro

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
        dsfjax.cli.usage.UsageError: unknown option '--d-modle' of dsfjax systems; did you mean
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
        _known("option", words[0], ["--help", "-h", "--version"], "")
        return
    _known("command", words[0], COMMANDS, "")
    names = {field.name for field in dataclasses.fields(COMMANDS[words[0]])}
    names -= {POSITIONAL.get(words[0], "")}
    flags = sorted({"--help", *("--" + name.replace("_", "-") for name in names)})
    for word in words[1:]:
        if word.startswith("--"):
            name = word.split("=")[0].replace("_", "-")
            _known("option", name, flags, f" of dsfjax {words[0]}")


def _known(kind: str, given: str, known: Iterable[str], where: str) -> None:
    names = list(known)
    if given not in names:
        bare = {name.lstrip("-"): name for name in names}
        close = difflib.get_close_matches(given.lstrip("-"), bare, n=1, cutoff=0.4)
        hint = f"; did you mean {bare[close[0]]!r}?" if close else "."
        raise UsageError(f"unknown {kind} {given!r}{where}{hint} Known: {', '.join(names)}.")


def _sentence(box: str) -> str:
    """The first paragraph of the parser's framed message, as one line."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    body = []
    for line in lines[1:]:
        if set(line) <= {"─"}:
            break
        body.append(line)
    return " ".join(body) + "; see dsfjax --help"
