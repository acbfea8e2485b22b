"""A run directory: whose it is, how far it has come, and what in it cannot be used."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dsfjax.training.config import TrainConfig, from_json, to_json
from dsfjax.training.program import Carry
from dsfjax.training.storage import checkpoint, files, record, serial


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


def check(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder that is not for this config, before anything is written to it.

    Args:
        folder: The folder; it need not exist.
        config: What is to be trained in it.

    Raises:
        RunError: If it is a file, has files that are not a run's, or has a run of another config or
            one that cannot be read. It is left as it is.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"expected a folder for the run, got the file {folder}; choose another")
    if not folder.is_dir():
        return
    if (folder / "config.json").exists():
        theirs = read_config(folder)
        if changed := serial.differences(serial.to_dict(theirs), serial.to_dict(config)):
            raise RunError(
                f"{folder} is a run of another config ({'; '.join(changed[:5])}); "
                "choose another run directory, or remove it"
            )
    elif not all(files.is_ours(path) for path in folder.iterdir()):
        raise RunError(
            f"expected an empty or new run directory, or one of a run, got {folder}; "
            "it has files but no config.json: choose another"
        )


@contextlib.contextmanager
def take(folder: Path, config: TrainConfig, *, wait: bool) -> Iterator[bool]:
    """Have a folder for a config, which is written into it.

    Args:
        folder: The folder; created if need be.
        config: What is to be trained in it.
        wait: Whether to wait while another process has it.

    Yields:
        Whether it is ours.

    Raises:
        RunError: If it is not for this config, or cannot be written to.
    """
    check(folder, config)
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(files.lock(folder, wait=wait))
            if mine:
                check(folder, config)  # again: the process that we waited for may have taken it
                if not (folder / "config.json").exists():
                    files.write_text(folder / "config.json", to_json(config))
        except OSError as error:
            raise RunError(
                f"cannot write to the run directory {folder} ({error.strerror}); choose another"
            ) from error
        yield mine


def read_config(folder: Path) -> TrainConfig:
    """The config of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The config.

    Raises:
        RunError: If there is none, or it cannot be read here, as one with an unknown mixer.
    """
    path = folder / "config.json"
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"expected a run in {folder}, found no config.json") from error
    except (ValueError, TypeError) as error:
        raise RunError(
            f"the config of a run cannot be read from {path} ({error}); nothing was changed: "
            "import the module that registers what it names (--import), or choose another folder"
        ) from error


def finished(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The result of a folder's run.

    Args:
        folder: The folder.
        config: The config.

    Returns:
        ``result.json``; None if the run is not finished, or if the file was cut short, which is
        set aside.

    Raises:
        RunError: If it is whole, but not a result of this config.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = files.read_json(path)
    except ValueError as error:
        files.set_aside(path, f"it is not JSON ({error})")
        return None
    whose = result.get("config") if isinstance(result, dict) else None
    if whose != config.fingerprint or result["format"] not in record.FORMATS:
        raise RunError(
            f"{path} is not a result of the config next to it, or of another version; nothing was "
            "changed: choose another run directory, or remove it"
        )
    if result["format"] == 2:  # in which members that had stopped counted
        steps = [member["step"] for member in result["members"]]
        rate = record.tokens_per_second(config, steps, result["train_seconds"])
        result["tokens_per_second"] = rate
    return result


def fail(folder: Path, config: TrainConfig, reason: str, traceback: str = "") -> dict[str, Any]:
    """Write down that a run has failed.

    Args:
        folder: The folder.
        config: The config.
        reason: Why, in a sentence.
        traceback: Where, for whoever looks for the cause.

    Returns:
        ``failure.json``.
    """
    if not (folder / "config.json").exists():  # it failed before it took the folder
        files.write_text(folder / "config.json", to_json(config))
    data = {"config": config.fingerprint, "status": "failed", "reason": reason}
    data["traceback"] = traceback
    files.write_json(folder / "failure.json", data)
    return data


def failure(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Why a run failed.

    Args:
        folder: The folder.
        config: The config.

    Returns:
        ``failure.json``; None if the run has not failed, is finished by now, or if the file is not
        of this config.
    """
    try:
        data = files.read_json(folder / "failure.json")
    except (OSError, ValueError):
        return None
    ours = isinstance(data, dict) and data.get("config") == config.fingerprint
    return data if ours and not (folder / "result.json").exists() else None


def progress(folder: Path, config: TrainConfig, template: Carry) -> Progress:
    """The newest whole checkpoint, with the metrics up to it.

    ``metrics.jsonl`` is made to be those: what came after the checkpoint is computed again, and
    what the file has lost is in the checkpoint.

    Args:
        folder: The folder.
        config: The config.
        template: Shapes and dtypes of the carry.

    Returns:
        How far the run has come.

    Raises:
        RunError: If there is a whole checkpoint that is not of this program. Nothing was changed.
    """
    metrics = folder / "metrics.jsonl"
    try:
        found = checkpoint.restore(folder / "checkpoints", template, owner=config.fingerprint)
    except checkpoint.CheckpointError as error:
        raise RunError(
            f"the checkpoints in {folder} are not of this program ({error}); nothing was changed: "
            "continue with the JAX_ENABLE_X64 and the version that it began with, or choose "
            "another run directory"
        ) from error
    lines = [] if found is None else found.notes
    if lines is None:
        assert found is not None
        lines = _lines_until(folder, config, found.step)
    if metrics.exists() or lines:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        files.write_text(metrics, text)
    return Progress(lines, None if found is None else found.tree)


def _lines_until(folder: Path, config: TrainConfig, step: int) -> list[dict[str, Any]]:
    """The metrics that belong to a checkpoint which has none, as those of format 2."""
    lines = [line for line in read_metrics(folder) if line["step"] <= step]
    if {line["step"] for line in lines} != {*range(config.eval_every, step + 1, config.eval_every)}:
        raise RunError(
            f"metrics.jsonl in {folder} lacks evaluations before step {step}; nothing was changed: "
            "remove the folder to train from the start"
        )
    return lines


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


def by_step(lines: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Lines of ``metrics.jsonl``, by evaluation.

    Args:
        lines: The lines, in order.

    Returns:
        The lines of each step.

    Examples:
        >>> [len(block) for block in by_step([{"step": 1}, {"step": 1}, {"step": 2}])]
        [2, 1]
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["step"], []).append(line)
    return list(found.values())
