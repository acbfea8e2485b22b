"""A run directory: whose it is, how far it has come, and what in it cannot be used."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dsfjax.training import checkpoint, files, record, serial
from dsfjax.training.config import TrainConfig, from_json, to_json
from dsfjax.training.program import Carry


class RunError(ValueError):
    """A run directory that cannot be used: another config's, unfinished, or damaged."""


class Progress(NamedTuple):
    """How far an unfinished run has come.

    Attributes:
        lines: Its metrics so far.
        carry: The state that they belong to; None before the first checkpoint.
    """

    lines: list[dict[str, Any]]
    carry: Carry | None


def check(folder: Path) -> None:
    """Refuse a folder with somebody else's files, before anything is written to it.

    Args:
        folder: The folder; it need not exist.

    Raises:
        RunError: If it has files that are not a run's.
    """
    if folder.is_dir() and not (folder / "config.json").exists():
        if not all(files.is_ours(path) for path in folder.iterdir()):
            raise RunError(
                f"expected an empty or new run directory, or one of a run, got {folder}; "
                "it has files but no config.json: choose another"
            )


def claim(folder: Path, config: TrainConfig) -> None:
    """Take a folder for a config, or find that it is already taken by the same one.

    Args:
        folder: The folder.
        config: The config.

    Raises:
        RunError: If it is taken by another config.
    """
    path = folder / "config.json"
    if path.exists():
        try:
            theirs = from_json(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            files.set_aside(path, f"no config can be read from it ({error})")
        else:
            if changed := serial.differences(serial.to_dict(theirs), serial.to_dict(config)):
                raise RunError(
                    f"{folder} is a run of another config ({'; '.join(changed[:5])}); "
                    "choose another run directory, or remove it"
                )
            return
    files.write_text(path, to_json(config))


def finished(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The result of a folder's run; a file that is none of this config is set aside.

    Args:
        folder: The folder.
        config: The config.

    Returns:
        ``result.json``, or None if the run is not finished.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = files.read_json(path)
        if result["format"] != record.FORMAT or result["config"] != config.fingerprint:
            raise ValueError("it is of another config or format")
    except (ValueError, TypeError, KeyError) as error:
        files.set_aside(path, f"no result of this run ({error})")
        return None
    return result


def progress(folder: Path, config: TrainConfig, template: Carry) -> Progress:
    """The newest checkpoint with the metrics up to it; nothing if either is not whole.

    What came after the checkpoint is dropped from ``metrics.jsonl``: it is made again.

    Args:
        folder: The folder.
        config: The config.
        template: Shapes and dtypes of the carry.

    Returns:
        How far the run has come.
    """
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    restored = checkpoint.restore(checkpoints, template, owner=config.fingerprint)
    done = restored[0] if restored else 0
    lines = [line for line in read_metrics(folder) if line["step"] <= done]
    if {line["step"] for line in lines} != {*range(config.eval_every, done + 1, config.eval_every)}:
        files.set_aside(checkpoints, f"metrics.jsonl lacks evaluations before step {done}")
        lines, restored = [], None
    if metrics.exists():
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        files.write_text(metrics, text)
    return Progress(lines, restored[1] if restored else None)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, up to one that was cut short.

    Args:
        folder: The folder of a run, finished or not.

    Returns:
        The lines.
    """
    path, lines = folder / "metrics.jsonl", []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                break
            lines.append(line)
    return lines
