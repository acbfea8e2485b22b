"""`dsfjax.open`: a published checkpoint as its exact Systems."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dsfjax._util.names import choose
from dsfjax.interop.published import families as families  # noqa: F401 - they register
from dsfjax.interop.published.folder import Config, Folder, read_json
from dsfjax.interop.published.naming import REGISTRY
from dsfjax.interop.published.opened import Opened, check


def open(  # noqa: A001 - dsfjax.open
    path: str | Path, *, dtype: DTypeLike | None = None, layers: Iterable[int] | None = None
) -> Opened:
    """Open a published checkpoint.

    Args:
        path: A folder with config.json and model.safetensors (or its shards and their index).
        dtype: Of parameters and activations; that of the file by default. States and norms are
            computed in float32 at least.
        layers: Numbers of the layers to read, for `Opened.layer`; all by default.

    Returns:
        The model: its logits, hidden states, continuations, and the Systems of its layers.

    Raises:
        FileNotFoundError: If there is no such folder, or a file of it is missing.
        ValueError: If a file is damaged; if a tensor is missing, unused, misshapen or not finite;
            if the model type is not known, or a setting has no exact equivalent here; for float64
            without ``jax_enable_x64``.

    Example:
        >>> import dsfjax
        >>> dsfjax.open("no/such/folder")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no/such/folder/config.json: expected a file, found none. A published
        checkpoint is a folder with config.json and model.safetensors.
    """
    path = Path(path)
    where = path / "config.json"
    config = Config(read_json(where), str(where))
    if (
        dtype is not None
        and jnp.dtype(dtype) == jnp.float64
        and not jax.config.read("jax_enable_x64")
    ):
        raise ValueError(
            "open: expected jax_enable_x64 for float64; call "
            'jax.config.update("jax_enable_x64", True) before anything is computed.'
        )
    define = REGISTRY[choose(f"model_type of {where}:", str(config.get("model_type")), REGISTRY)]
    folder = Folder(path)
    definition = define(config, folder.shapes)
    config.check_all_read()
    dtype = folder.dtype() if dtype is None else jnp.dtype(dtype)
    count = len(definition.layers)
    held = tuple(range(count)) if layers is None else tuple(sorted(set(layers)))
    if not held or held[0] < 0 or held[-1] >= count:
        raise ValueError(f"open: expected layers from 0 to {count - 1}, got {list(held)}.")
    shapes = {n: jax.ShapeDtypeStruct(s, dtype) for n, s in folder.shapes.items()}
    try:
        names = check(definition, shapes, held)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(held) == count:
        left = sorted(n for n in folder.shapes.keys() - names if not n.endswith(definition.unused))
        if left:
            raise ValueError(
                f"{folder.files[left[0]]}: {len(left)} tensors that nothing reads: "
                f"{', '.join(left[:5])}{', …' * (len(left) > 5)}. The model would not be the one "
                "that was saved."
            )
    return Opened(path, config, definition, folder.load(sorted(names), dtype), dtype, held)
