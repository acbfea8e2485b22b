"""``dsfjax finetune``."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dsfjax import nn, tasks
from dsfjax._util.fields import parse
from dsfjax._util.names import choose
from dsfjax.cli import opened_options
from dsfjax.cli.output import console
from dsfjax.cli.progress import progress
from dsfjax.cli.training import trackers_of
from dsfjax.cli.usage import UsageError, usage_errors, writable
from dsfjax.interop import published
from dsfjax.interop.published import finetuning
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
    task = _task(command)
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
        learning_rates=(command.rate,),
        stop_at=None,
        checkpoint_every=1,
        imports=(finetuning.__name__, *command.imports),
    )


def _evaluation(command: opened_options.Finetune) -> dict[str, int]:
    return {"num_examples": command.eval_examples, "batch_size": command.batch_size}


def _task(command: opened_options.Finetune) -> tasks.Task:
    """The task with its options."""
    if not command.task:
        raise UsageError("expected --task, a task whose token ids are those of the checkpoint")
    hints, known = typing.get_type_hints(tasks.kind(command.task)), tasks.options(command.task)
    own: dict[str, Any] = {}
    for word in command.task_option:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"expected --task-option OPTION=VALUE, got {word!r}")
        choose(f"option of {command.task}", name, known)
        own[name] = parse(hints[name], text, f"option {name} of {command.task}")
    return tasks.get(command.task, **own)
