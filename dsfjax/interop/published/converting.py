"""Checkpoints in formats of their authors, made into published ones that `open` reads.

A format is a function from the settings and the tensors of a file to those of a published format,
by the names and layouts of one of ``families/``. To add one, write it and put it among `FORMATS`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsfjax.interop.published.mamba_ssm_format import from_mamba_ssm
from dsfjax.interop.published.naming import REGISTRY
from dsfjax.interop.published.opening import inspect
from dsfjax.interop.published.rwkv7_format import from_rwkv7
from dsfjax.interop.published.tensor_files import (
    Config,
    Converted,
    Tensors,
    read_json,
    shards,
    write_folder,
)
from dsfjax.interop.published.torch_files import torch_tensors

_SINGLE = "pytorch_model.bin"


class Format(NamedTuple):
    """A format of checkpoints.

    Attributes:
        about: What it is.
        fits: Whether settings and tensors are of this format.
        convert: From the settings and the tensors to those of a published format.
    """

    about: str
    fits: Callable[[Mapping[str, Any], Tensors], bool]
    convert: Callable[[Config, Tensors], Converted]


FORMATS = (
    Format(
        "a published format whose tensors are pickled",
        lambda settings, tensors: settings.get("model_type") in list(REGISTRY),
        lambda config, tensors: (config.values, tensors),
    ),
    Format(
        "mamba_ssm, with d_model, n_layer and ssm_cfg in its config.json",
        lambda settings, tensors: "d_model" in settings and "ssm_cfg" in settings,
        from_mamba_ssm,
    ),
    Format(
        "RWKV-7 of its authors, with blocks.0.att.w0 and no config.json",
        lambda settings, tensors: not settings and "blocks.0.att.w0" in tensors,
        from_rwkv7,
    ),
)
"""The formats that `convert` knows."""


def convert(path: str | Path, out: str | Path) -> Path:
    """Make a published checkpoint, a folder with config.json and model.safetensors, of another one.

    Nothing in the file is run: its pickle is read by the few instructions that a dict of tensors
    needs (`dsfjax.interop.published.torch_files`).

    Args:
        path: A folder with config.json and pytorch_model.bin, or the parts of one that
            pytorch_model.bin.index.json names; or a file (``.pth``) of a format that has no
            config.json. One of `FORMATS`.
        out: The folder to write, which must not exist.

    Returns:
        ``out``. Its config and tensors have been checked against each other, as `inspect` does; its
        numbers are those of the file, in its dtype.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If ``out`` exists.
        ValueError: If a file is damaged, legacy, or asks for more than tensors; if the format is
            not known; if a setting has no exact equivalent, or a tensor is missing, misshapen or
            left over.

    Example:
        >>> convert("no/such/folder", "out")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no/such/folder: expected a file, found none.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise FileExistsError(f"{out}: expected no such folder; choose another one.")
    tensors = _tensors(path)
    where = path / "config.json" if path.is_dir() else path
    settings = read_json(where) if path.is_dir() else {}
    known = next((one for one in FORMATS if one.fits(settings, tensors)), None)
    if known is None:
        raise ValueError(
            f"{path}: expected a checkpoint of one of these formats: "
            f"{'; '.join(one.about for one in FORMATS)}; got the tensors "
            f"{', '.join(sorted(tensors)[:3])}, …"
        )
    config, named = known.convert(Config(settings, str(where)), tensors)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / out.name
        write_folder(made, config, named, where.parent)
        try:
            inspect(made)
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).replace(str(made), str(out))}") from error
        made.rename(out)
    return out


def _tensors(path: Path) -> Tensors:
    """The tensors of a file, or of a folder with one file or several."""
    single, index = path / _SINGLE, path / f"{_SINGLE}.index.json"
    if not path.is_dir():
        files = [path]
    elif single.is_file() or not index.is_file():
        files = [single]
    else:
        files = shards(index)
    found: Tensors = {}
    for file in files:
        own = torch_tensors(file)
        if twice := found.keys() & own.keys():
            raise ValueError(
                f"{file}: expected tensors that no other file of {index.name} has, got "
                f"{min(twice)!r} again."
            )
        found |= own
    return found
