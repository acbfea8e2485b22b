"""Words to a typed command, with every misspelling answered by the nearest choice."""

import contextlib
import dataclasses
import importlib.metadata
import io
import itertools
import math
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from dsfjax import tasks
from dsfjax._util import extensions
from dsfjax._util.names import unknown
from dsfjax.cli import opened_options, options
from dsfjax.cli.commands import COMMANDS
from dsfjax.cli.usage import UsageError, usage_errors

POSITIONAL = {
    "train": ("task",),
    "compare": ("task",),
    "sweep": ("task",),
    "results": ("run_dir",),
    "analyze": ("run_dir",),
    "inspect": ("path",),
    "convert": ("path",),
    "reduce": ("path",),
    "finetune": ("path", "task"),
    "data": ("action", "names"),
    "lengths": ("run_dir",),
    "recommend": ("task",),
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
        '--d-model'? Known: --d-model, --d-state, --help, --import, --num-heads.
    """
    words = _with_task_of_file(words)
    commands = _commands(words)
    _check_spelling(words, commands)
    errors = io.StringIO()
    known = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items()]
    try:
        with contextlib.redirect_stderr(errors):
            command: options.Command = tyro.cli(Union[*known], prog="dsfjax", args=list(words))  # type: ignore
    except SystemExit as end:
        if end.code in (0, None):
            sys.stderr.write(errors.getvalue())
            return None
        raise UsageError(_sentence(errors.getvalue())) from end
    _check_values(command)
    return command


def version() -> str:
    """The version of the installed package.

    Returns:
        The version, or "(not installed)" in a source tree that is only on the path.
    """
    try:
        return importlib.metadata.version("dsfjax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _commands(words: Sequence[str]) -> dict[str, type[options.Command]]:
    """All commands; that of these words with the options of its task, once its modules are read."""
    name, *rest = words or [""]
    if name not in COMMANDS:
        return COMMANDS
    with usage_errors(ValueError):
        extensions.load(_values(rest, "--import"))
    kind = COMMANDS[name]
    before = {options.Training: 0, opened_options.Finetune: 1}
    skipped = next((n for one, n in before.items() if issubclass(kind, one)), None)
    if skipped is None:
        return COMMANDS
    # A task may come after other options, but a first word is meant to be one.
    first = itertools.takewhile(lambda word: not word.startswith("-"), rest)
    chosen = [*first][skipped:] or [word for word in rest if word in tasks.names()][:1]
    for word in chosen:
        _check("unknown task", word, tasks.names())
    if not issubclass(kind, options.Training):
        fields = {k: v for task in chosen for k, v in tasks.options(task).items()}
        return COMMANDS | {name: options.completed(kind, fields, ())}
    # These bring Flax, which other commands need not wait for.
    from dsfjax.training import presets
    from dsfjax.training.config import AXES

    fields, known = {}, {}
    for task in chosen:
        fields |= tasks.options(task)
        known |= {one: presets.get(one, task).about for one in presets.names(task)}
    return COMMANDS | {name: options.completed(kind, fields, AXES, known)}


def _with_task_of_file(words: Sequence[str]) -> list[str]:
    """The words with the task that the file of ``--config`` names, if they name none."""
    name, *rest = words or [""]
    files = _values(rest, "--config")[:1]
    if not (files and issubclass(COMMANDS.get(name, options.Command), options.Training)):
        return list(words)
    from dsfjax.training.presets import read_file
    from dsfjax.training.storage.serial import strings

    with usage_errors(ValueError, TypeError):
        data = read_file(Path(files[0]))
        extensions.load(strings(data.get("imports", ()), "config.imports"))
    named = rest and not rest[0].startswith("-") or set(rest) & set(tasks.names())
    return [name, *([] if named or "task" not in data else [tasks.name_in(data["task"])]), *rest]


def _values(words: Sequence[str], wanted: str) -> list[str]:
    """The values of an option that decides what other words can mean."""
    found, inside = [], False
    for word in words:
        if word.startswith("-"):
            option, _, value = word.partition("=")
            inside = option == wanted
            found += [value] if inside and value else []
        elif inside:
            found.append(word)
    return found


def _check_spelling(words: Sequence[str], commands: Mapping[str, type[options.Command]]) -> None:
    if not words:
        raise UsageError(f"expected a command: {', '.join(COMMANDS)}; see dsfjax --help")
    if words[0].startswith("-"):
        _check("dsfjax has no option", words[0], ("--help", "-h", "--version"))
        return
    _check("unknown command", words[0], COMMANDS)
    fields = {
        _flag(field.name): field
        for field in dataclasses.fields(commands[words[0]])
        if field.name not in POSITIONAL.get(words[0], ())
    }
    hints = typing.get_type_hints(commands[words[0]])
    seen = set()
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        _check(f"dsfjax {words[0]} has no option", name, sorted(["--help", *fields]))
        if name == "--help" or fields[name].default is False:
            continue
        if name in seen and name != "--mixer-option":
            raise UsageError(f"expected {name} once, got it twice")  # the parser takes the last
        seen.add(name)
        rest = itertools.takewhile(lambda word: not word.startswith("--"), words[index + 1 :])
        _check_words(name, hints[fields[name].name], [value] if equals else list(rest))


def _check_words(name: str, hint: Any, values: Sequence[str]) -> None:
    """Refuse words that are no values of an option, or none."""
    if not values:  # of a list the parser would take the default
        raise UsageError(f"expected a value after {name}")
    options_of = {hint, *typing.get_args(hint)}
    for number, noun in ((int, "an integer"), (float, "a number")):
        if number in options_of:
            for value in values if typing.get_origin(hint) is tuple else values[:1]:
                try:
                    number(value)
                except ValueError:
                    raise UsageError(f"expected {name} to be {noun}, got {value!r}") from None


def _check_values(command: options.Command) -> None:
    """Refuse what has the right type and no meaning for any option."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            if isinstance(one, float) and not math.isfinite(one):
                raise UsageError(f"expected {_flag(field.name)} to be finite, got {one}")
        repeats = field.name == "ids"  # a text may have a token twice
        if field.default == () and not repeats and len(set(values)) != len(values):
            raise UsageError(
                f"expected distinct values of {_flag(field.name)}, got "
                f"{' '.join(str(one) for one in values)}"
            )


def _flag(field: str) -> str:
    # "import" is a word of Python, so the field cannot have that name.
    return "--import" if field == "imports" else "--" + field.replace("_", "-")


def _check(what: str, given: str, known: Collection[str]) -> None:
    if given not in known:
        raise UsageError(unknown(what, given, known))


def _sentence(box: str) -> str:
    """The first paragraph of the parser's framed message, as one line."""
    # The frame is of ASCII characters where the terminal has no others.
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.splitlines()]
    body = []
    for line in lines[1:]:
        if set(line) <= {"─", "-"}:
            if body:
                break
            continue
        body.append(line)
    return " ".join(body) + "; see dsfjax --help"
