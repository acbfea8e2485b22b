r"""A run on disk: one program, its metrics, its checkpoints and its result in one folder.

::

    config.json        the TrainConfig; dsfjax.training.config.from_json reads it
    environment.json   versions, device, git state (dsfjax.training.environment)
    metrics.jsonl      one line per evaluation and member that was training, in that order
    checkpoints/       the newest two (dsfjax.training.checkpoint)
    result.json        written last: a folder with it is finished

A line of ``metrics.jsonl`` is an object with ``step``, ``member`` (index), ``learning_rate``,
``seed``, ``train_loss`` and ``train_accuracy`` (means over the steps since the line before),
``eval_loss``, ``eval_accuracy``, ``seconds`` (wall time of these steps and the evaluation, all
members together, compilation not included) and ``tokens_per_second`` (training tokens of all
members over it). A member that has stopped writes no further lines.

``result.json`` has ``format``, ``members``, ``steps`` (taken by the program), ``num_params``,
``state_size`` (numbers that all layers carry at the end of a sequence), ``tokens_per_second``
(median over the evaluations), ``train_seconds``, ``compile_seconds``, and ``checkpoint`` (path of
the final one, relative to the folder). Each of ``members`` has ``member``, ``learning_rate``,
``seed``, ``status``, ``step`` (its last), ``train_loss``, ``train_accuracy``, ``eval_loss`` and
``eval_accuracy`` there, and ``steps_to_90``: the first evaluated step with at least 90 % held-out
accuracy, or null. The status is "solved" (it reached ``stop_at``), "diverged" (a loss was not
finite), "finished" (it took all steps), or "stopped" (it was still training when the run ended
because a learning rate had all its seeds solved). Numbers that are not finite are null, in both
files.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from dsfjax import nn
from dsfjax.tasks import mqar
from dsfjax.training import checkpoint, environment, loop, program, record, serial
from dsfjax.training.config import TrainConfig, from_json, to_json

# One Model per config, as programs are told apart by the functions of their model.
_model = functools.lru_cache(maxsize=32)(nn.build)


class Listener:
    """Is told how a run goes on, on the thread that trains; this one does nothing with it."""

    def started(self, name: str, config: TrainConfig) -> None:
        """Hear that a run begins: it compiles, then trains."""

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Hear of a block that is done; ``lines`` are those of ``metrics.jsonl``."""

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Hear of a run that is complete, now or since before; ``result`` is ``result.json``."""


class RunError(ValueError):
    """A run directory that cannot be used: another config's, unfinished, or damaged."""


class Loaded(NamedTuple):
    """A finished run, read back.

    Attributes:
        config: Its config.
        environment: What it ran on.
        metrics: The lines of ``metrics.jsonl``.
        result: ``result.json``.
        params: Final parameters, every leaf with a leading member axis.
    """

    config: TrainConfig
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    params: PyTree


def train(
    config: TrainConfig, run_dir: Path | str, *, name: str = "", listener: Listener | None = None
) -> dict[str, Any]:
    """Train a config in a folder, going on from its last checkpoint if it has one.

    Args:
        config: What to train.
        run_dir: Its folder; created if need be. A finished run is not run again.
        name: What to call it towards the listener; the mixer by default.
        listener: Is told of the progress.

    Returns:
        The result, as in ``result.json``.

    Raises:
        RunError: If the folder belongs to another config.
        ValueError: If the model cannot be built.
    """
    folder = Path(run_dir)
    name = name or config.model.mixer
    listener = listener or Listener()
    plan = program_of(config)  # fails on a model that cannot be built before anything is written
    _claim(folder, config)
    listener.started(name, config)
    if (folder / "result.json").exists():
        result = _read_json(folder / "result.json")
        listener.finished(name, result)
        return result
    write_json(folder / "environment.json", environment.describe())

    which = program.members(config.learning_rates, config.seeds)
    compiled = loop.compile_program(plan, len(which.seed))
    template = loop.template(plan, len(which.seed))
    found = checkpoint.restore(folder / "checkpoints", template)
    carry = found[1] if found else None
    done = found[0] if found else 0
    lines = _rewind(folder / "metrics.jsonl", done)
    blocks = loop.run(plan, which, config.steps, carry)
    while carry is None or not record.over(config, carry):
        block = next(blocks)
        carry = block.carry
        new = record.lines(config, block)
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in new)
        lines += new
        # Metrics first: on resuming, lines later than the checkpoint are dropped and made again.
        due = (block.step // config.eval_every) % config.checkpoint_every == 0
        if due or record.over(config, carry):
            checkpoint.save(folder / "checkpoints", block.step, carry)
        listener.evaluated(name, new)
    result = record.result(config, carry, lines, compiled.seconds)
    write_json(folder / "result.json", result)
    listener.finished(name, result)
    return result


def load(run_dir: Path | str) -> Loaded:
    """Read a finished run back.

    Args:
        run_dir: Its folder.

    Returns:
        Config, environment, metrics, result and final parameters.

    Raises:
        RunError: If the run is not finished, or its final checkpoint is damaged.
    """
    folder = Path(run_dir)
    if not (folder / "result.json").exists():
        raise RunError(f"expected a finished run in {folder}, found no result.json; train it")
    config = from_json((folder / "config.json").read_text(encoding="utf-8"))
    result = _read_json(folder / "result.json")
    plan, which = program_of(config), program.members(config.learning_rates, config.seeds)
    path = folder / result["checkpoint"]
    try:
        _, carry = checkpoint.read(path, loop.template(plan, len(which.seed)))
    except checkpoint.CheckpointError as error:
        raise RunError(f"checkpoint {path}: {error}") from error
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return Loaded(
        config,
        _read_json(folder / "environment.json"),
        [json.loads(line) for line in text.splitlines()],
        result,
        carry.states.params,
    )


def program_of(config: TrainConfig) -> program.Program:
    """The program that a config describes.

    Args:
        config: The config.

    Returns:
        A program; equal configs give programs that share a compilation.

    Raises:
        ValueError: If the model cannot be built.
    """
    return program.Program(
        model=_model(config.model),
        sample=mqar.sample,
        task=config.task,
        optimizer=config.optimizer,
        batch_size=config.batch_size,
        block_steps=config.eval_every,
        eval_examples=config.eval_examples,
        stop_at=config.stop_at,
        shared_data=config.shared_data,
    )


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file so that it is there whole or not at all.

    Args:
        path: The file; its folder is created if need be.
        data: JSON data without NaN.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Args:
        path: The file; its folder is created if need be.
        text: Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _claim(folder: Path, config: TrainConfig) -> None:
    """Take a folder for a config, or find that it is already taken by the same one."""
    path = folder / "config.json"
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise RunError(
                f"expected an empty or new run directory, or one of a run, got {folder}; "
                "it has files but no config.json: choose another"
            )
        write_text(path, to_json(config))
        return
    theirs, ours = json.loads(path.read_text(encoding="utf-8")), serial.to_dict(config)
    if changed := serial.differences(theirs, ours):
        raise RunError(
            f"{folder} is a run of another config ({'; '.join(changed[:5])}); "
            "choose another run directory, or remove it"
        )


def _rewind(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the metrics up to a checkpoint's step; what came after it is made again."""
    if not path.exists():
        return []
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # the line a kill cut short, which is later than any checkpoint
        if line["step"] <= step:
            kept.append(line)
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))
    return kept


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
