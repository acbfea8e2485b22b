"""Runs of ours as opened models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from dsfjax.interop.published.finetuning import Checkpoint
from dsfjax.interop.published.opened import Opened
from dsfjax.interop.published.opening import held_layers, inspect
from dsfjax.training import load


def open_run(
    folder: Path, *, dtype: DTypeLike | None = None, layers: Iterable[int] | None = None
) -> Opened:
    """Open the best member of a finished run.

    Args:
        folder: Its folder.
        dtype: As of `dsfjax.open`; that of the run by default.
        layers: As of `dsfjax.open`.

    Returns:
        The model.

    Raises:
        RunError: If the run is not finished, or damaged.
        ValueError: If it is of another model, or there are not these layers.
    """
    loaded = load(folder)
    best = min(loaded.members, key=lambda member: member.metric.order(member.score)).member
    model = loaded.config.model
    if not isinstance(model, Checkpoint):
        raise ValueError(
            f"{folder}: expected a run of a published checkpoint, got one of {model.mixer}; "
            "read it with dsfjax.training.load."
        )
    found = inspect(model.path)
    params = {name: jnp.asarray(x[best], dtype) for name, x in loaded.params.items()}
    dtype = next(iter(params.values())).dtype
    held = held_layers(len(found.definition.layers), layers)
    return Opened(found.path, found.config, found.definition, params, dtype, held)
