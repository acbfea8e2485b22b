"""`dsfjax.open`: a published checkpoint, or a run of ours, as its exact Systems."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dsfjax._util.names import choose
from dsfjax.interop.published import families as families  # noqa: F401 - they register
from dsfjax.interop.published.layerwise import check
from dsfjax.interop.published.naming import REGISTRY, Definition
from dsfjax.interop.published.opened import Opened
from dsfjax.interop.published.running import Used
from dsfjax.interop.published.tensor_files import Config, Folder, read_json


def open(  # noqa: A001 - dsfjax.open
    path: str | Path, *, dtype: DTypeLike | None = None, layers: Iterable[int] | None = None
) -> Opened:
    """Open a published checkpoint, or what a run has trained.

    Args:
        path: A folder with config.json and model.safetensors (or its shards and their index);
            "org/name" of the Hugging Face hub, which is fetched where huggingface_hub is installed;
            or a finished run of our own, or a sweep or comparison: of its members the best is
            opened.
        dtype: Of parameters and activations; that of the file by default. States and norms are
            computed in float32 at least.
        layers: Numbers of the layers to read, for `Opened.layer`; all by default.

    Returns:
        The model: its logits, hidden states, continuations, and the Systems of its layers.

    Raises:
        FileNotFoundError: If there is no such folder, or a file of it is missing.
        ValueError: If a file is damaged; if a tensor is missing, unused, misshapen or not finite;
            if the model type is not known, or a setting has no exact equivalent here; if a run is
            not finished, or its model continues no text; for float64 without ``jax_enable_x64``.

    Example:
        >>> import dsfjax
        >>> dsfjax.open("no/such/folder")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no/such/folder/config.json: expected a file, found none. A published
        checkpoint is a folder with config.json and model.safetensors.
    """
    if dtype is not None and jnp.dtype(dtype) == jnp.float64:
        if not jax.config.read("jax_enable_x64"):
            raise ValueError(
                "open: expected jax_enable_x64 for float64; call "
                'jax.config.update("jax_enable_x64", True) before anything is computed.'
            )
    if any((Path(path) / name).exists() for name in ("result.json", "results.sqlite")):
        # A checkpoint needs nothing of what trains and stores.
        from dsfjax.interop.published.trained import open_run

        return open_run(Path(path), dtype=dtype, layers=layers)
    found = inspect(path, layers=layers)
    dtype = found.folder.dtype() if dtype is None else jnp.dtype(dtype)
    params = found.folder.load(sorted(found.names), dtype, wide=found.definition.wide)
    return Opened(found.path, found.config, found.definition, params, dtype, found.held)


class Inspected(NamedTuple):
    """What a folder has, without its numbers.

    Attributes:
        path: The folder.
        config: Its config.json.
        folder: Names, shapes and files of its tensors.
        definition: The model.
        held: Numbers of the layers that would be opened.
        names: The tensors that are read.
        systems: Shapes of the Systems of these layers, on two tokens.
    """

    path: Path
    config: Config
    folder: Folder
    definition: Definition
    held: tuple[int, ...]
    names: set[str]
    systems: tuple[tuple[Used, ...], ...]


def inspect(path: str | Path, *, layers: Iterable[int] | None = None) -> Inspected:
    """All that `open` finds out before it reads a tensor.

    Args:
        path: As of `open`.
        layers: As of `open`.

    Returns:
        The model, its tensors and the shapes of its Systems.

    Raises:
        FileNotFoundError: As of `open`.
        ValueError: As of `open`, but for numbers that are not finite.
    """
    path = _found(path)
    where = path / "config.json"
    config = Config(read_json(where), str(where))
    define = REGISTRY[choose(f"model_type of {where}:", str(config.get("model_type")), REGISTRY)]
    folder = Folder(path)
    definition = define(config, folder.shapes)
    config.check_all_read()
    held = held_layers(len(definition.layers), layers)
    dtype = folder.dtype()
    shapes = {n: jax.ShapeDtypeStruct(s, dtype) for n, s in folder.shapes.items()}
    try:
        names, systems = check(definition, shapes, held)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    left = sorted(n for n in folder.shapes.keys() - names if not n.endswith(definition.unused))
    if left and len(held) == len(definition.layers):
        raise ValueError(
            f"{folder.files[left[0]]}: {len(left)} tensors that nothing reads: "
            f"{', '.join(left[:5])}{', …' * (len(left) > 5)}. The model would not be the one that "
            "was saved."
        )
    return Inspected(path, config, folder, definition, held, names, systems)


def held_layers(count: int, layers: Iterable[int] | None) -> tuple[int, ...]:
    """The numbers of the layers to open, of so many; all by default.

    Raises:
        ValueError: If there are not these.
    """
    held = tuple(range(count)) if layers is None else tuple(sorted(set(layers)))
    if not held or held[0] < 0 or held[-1] >= count:
        raise ValueError(f"open: expected layers from 0 to {count - 1}, got {list(held)}.")
    return held


def _found(path: str | Path) -> Path:
    """The folder, fetched if it is a name of the hub and no folder."""
    folder = Path(path)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        if (folder / "result.json").exists():
            raise ValueError(
                f"{folder}: expected a published checkpoint, found a run of dsfjax; dsfjax.open "
                "opens it."
            )
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return folder
    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of the network, of names, of rights
        raise FileNotFoundError(
            f"{path}: expected a folder, or a model of the Hugging Face hub; it was not fetched: "
            f"{error}"
        ) from error
