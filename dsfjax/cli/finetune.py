"""``dsfjax finetune``."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from dsfjax import nn, tasks
from dsfjax._util import tokenizer
from dsfjax.cli import opened_options
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.cli.training import trackers_of
from dsfjax.cli.usage import UsageError, usage_errors, writable
from dsfjax.interop import published
from dsfjax.interop.published import finetuning
from dsfjax.tasks.language_modelling import Language
from dsfjax.training import (
    MemoryShortage,
    OptimizerConfig,
    RunError,
    TrainConfig,
    score,
    train,
)
from dsfjax.training.trackers import Together

PUBLISHED = "published"
"""Folder of the trained checkpoint in the run directory."""
LANGUAGE = tasks.name_of(Language())
"""The task whose tokens may be those of the checkpoint."""


def main(command: opened_options.Finetune) -> int:
    """Train a published checkpoint further, and write it in the format that it had.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the options do not fit each other, before anything is compiled.
    """
    with usage_errors(ValueError, TypeError, FileNotFoundError, ImportError):
        config = plan(command)
        model = nn.build(config.model)
        folder = writable(command.run_dir or Path("runs") / f"{command.path.name}-finetuned")
        trackers = trackers_of(command, folder)
        opened = published.open(command.path, dtype=jnp.result_type(float))
    before = score(model, config.task, opened.params, **_evaluation(command))
    with usage_errors(RunError, MemoryShortage), progress(console()) as shown:
        train(config, folder, listener=Together(shown, *trackers))
    trained = published.open(folder)
    after = score(model, config.task, trained.params, **_evaluation(command))
    if not (folder / PUBLISHED / "model.safetensors").exists():
        trained.save(folder / PUBLISHED)
    metric = config.task.metric
    for word, found in (("before", before), ("after", after)):
        console().print(
            f"{word}: held-out loss {found['loss']:.4f}, {metric.called} "
            f"{metric.plain(found[metric.name])}{metric.unit}",
            highlight=False,
        )
    console().print(f"checkpoint: {folder / PUBLISHED}", soft_wrap=True)
    return 0


def plan(command: opened_options.Finetune) -> TrainConfig:
    """The config that a command line asks for.

    Args:
        command: The options.

    Returns:
        The config.

    Raises:
        ValueError: If a name is unknown, or the options do not fit each other.
        TypeError: If a value has the wrong type.
    """
    task = task_of(command)
    if not task.vocab_size:
        raise UsageError(f"expected a task of token ids, got {command.task}, which has values")
    # A run may be continued from another working directory.
    path = str(command.path.resolve())
    optimizer = OptimizerConfig(
        schedule=command.schedule,
        warmup_steps=command.warmup_steps,
        weight_decay=command.weight_decay,
        decay_all=False,
        dynamics_rate=command.dynamics_rate,
        clip=command.clip,
    )
    return TrainConfig(
        task,
        finetuning.Checkpoint(path, task.vocab_size, command.layers),
        optimizer,
        batch_size=command.batch_size,
        accumulate=command.accumulate,
        steps=command.steps,
        eval_every=command.eval_every,
        eval_examples=command.eval_examples,
        seeds=(command.seed,),
        learning_rates=(command.lr,),
        stop_at=None,
        checkpoint_every=1,
        imports=(finetuning.__name__, *command.imports),
    )


def _evaluation(command: opened_options.Finetune) -> dict[str, int]:
    return {"num_examples": command.eval_examples, "batch_size": command.batch_size}


def task_of(command: opened_options.Finetune) -> tasks.Task:
    """The task with its options; its tokens are those of a checkpoint with a tokenizer.

    Args:
        command: The options.

    Raises:
        UsageError: If no task is named.
        ValueError: If its options do not fit each other.
    """
    if not command.task:
        raise UsageError("expected a task after the checkpoint, one whose token ids are its own")
    known = tasks.options(command.task)
    own = {name: getattr(command, name, None) for name in known}
    file = command.path.resolve() / tokenizer.FILE
    if command.task == LANGUAGE and own["tokens"] is None and file.exists():
        own["tokens"] = str(file)
    return tasks.get(command.task, **{k: v for k, v in own.items() if v is not None})
