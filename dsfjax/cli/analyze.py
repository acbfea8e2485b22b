"""``dsfjax analyze``."""

from pathlib import Path

from dsfjax.cli import opened_options
from dsfjax.cli.output import console, say_of_report
from dsfjax.cli.usage import UsageError, usage_errors, writable
from dsfjax.report import render_joint, write_all
from dsfjax.training import RunError


def main(command: opened_options.Analyze) -> int:
    """Look inside the trained models of a finished run, comparison or sweep, or at a text.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the folder holds no finished run, or one that is damaged.
    """
    if not command.run_dir:
        raise UsageError(
            "expected PATH, the folder of a run or of a published checkpoint, got none"
        )
    read = command.text is not None or command.text_file is not None or command.ids
    if read or any((f / "config.json").is_file() and not _is_run(f) for f in command.run_dir):
        from dsfjax.cli import checkpoints  # what reads them is not needed for runs

        return checkpoints.analyze(command)
    if command.stream:
        raise UsageError("expected a text with --stream: one of --text, --text-file and --ids")
    if len(command.run_dir) != 1:
        raise UsageError(
            f"expected one run, comparison or sweep, got {len(command.run_dir)} folders; several "
            "can only be published checkpoints, each with a config.json, or read a text (--text)"
        )
    (folder,) = command.run_dir
    if not _is_run(folder):
        raise UsageError(
            f"expected a finished run, comparison or sweep in {folder}, found neither "
            f"compare.json nor result.json; make one with: dsfjax compare TASK --run-dir {folder}"
        )
    with usage_errors(RunError):
        with usage_errors(ValueError):
            writable(command.report or folder / "report")
        report(folder, command.report)
    return 0


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("compare.json", "result.json"))


def report(folder: Path, out: Path | None) -> None:
    """Write the report of a folder, and print its answers and its place.

    Over several tasks the answers follow one table of all of them.

    Args:
        folder: The folder of a run, comparison or sweep.
        out: Folder of the report; None for ``report`` in the other one.
    """
    index, reports, joint = write_all(folder, out or folder / "report", said=say_of_report)
    if joint:
        console().print(render_joint(joint))
    for i, (_, verdict) in enumerate(reports):
        task = f"{joint[i].name}: " if joint else ""
        console().print(f"{task}{verdict.answer}", soft_wrap=True, highlight=False)
        for doubt in verdict.doubts:
            console().print(f"- {doubt}", soft_wrap=True, highlight=False)
    console().print(f"report: {index}", soft_wrap=True)
