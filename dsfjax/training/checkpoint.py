"""Checkpoints: a folder per step, written atomically, checked when read.

A checkpoint is ``step_00000400/`` with two parts: ``state``, the arrays of a pytree under their
path names (PRNG keys as their raw data), and ``meta``, which holds the format, a checksum of the
arrays, and whose they are. A folder that is no such thing, was cut short, or is another run's, is
set aside as ``broken_<name>`` (:mod:`dsfjax.training.files`), and the one before it is read.
"""

import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from dsfjax.training import files

FORMAT = 2
_NAME = re.compile(r"step_(\d{8})")


class CheckpointError(ValueError):
    """A folder that is not a whole checkpoint of what was asked for."""


def save(folder: Path, step: int, tree: PyTree, *, owner: str = "", keep: int = 2) -> Path:
    """Write a checkpoint; until it is whole it has another name.

    Args:
        folder: Where the checkpoints of a run lie; created if need be.
        step: The step it is of, below 10^8.
        tree: Arrays, PRNG keys among them if need be.
        owner: Whose it is; :func:`restore` must name the same.
        keep: How many checkpoints to leave, the newest.

    Returns:
        The checkpoint's folder.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(Path(folder), 400, {"w": jnp.ones(3)})
        ...     restored = restore(Path(folder), {"w": jax.ShapeDtypeStruct((3,), "float32")})
        >>> restored is not None and restored[0]
        400
    """
    arrays = _flatten(jax.tree.map(_raw, tree))
    arrays = {name: np.asarray(value) for name, value in jax.device_get(arrays).items()}
    meta = {"format": FORMAT, "step": step, "owner": owner, "checksum": _checksum(arrays)}
    path = folder.absolute() / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with _checkpointer() as checkpointer:
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
        )
        checkpointer.save(path, parts, force=True)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def restore(folder: Path, template: PyTree, *, owner: str = "") -> tuple[int, PyTree] | None:
    """Read the newest whole checkpoint, setting aside what is not one.

    Args:
        folder: Where the checkpoints of a run lie; it need not exist.
        template: A pytree of arrays or ``jax.ShapeDtypeStruct``: the structure to read.
        owner: Whose it must be.

    Returns:
        The step and the pytree, or None if there is no checkpoint.

    Raises:
        PermissionError: If a broken checkpoint cannot be renamed.
    """
    _set_strangers_aside(folder)
    for path in reversed(_checkpoints(folder)):
        try:
            return read(path, template, owner=owner)
        except CheckpointError as error:
            files.set_aside(path, str(error))
    return None


def read(path: Path, template: PyTree, *, owner: str = "") -> tuple[int, PyTree]:
    """Read one checkpoint.

    Args:
        path: The checkpoint's folder.
        template: The structure to read.
        owner: Whose it must be.

    Returns:
        The step and the pytree.

    Raises:
        CheckpointError: If it is no whole checkpoint, or one of another owner or structure.
    """
    try:
        with _checkpointer() as checkpointer:
            parts = ocp.args.Composite(
                state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
            )
            found = checkpointer.restore(path.absolute(), parts)
        meta, arrays = found.meta, {k: np.asarray(v) for k, v in found.state.items()}
    except Exception as error:  # storage reports damage through many types
        summary = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"cannot be read ({summary[0][:200]})") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"expected format {FORMAT}, got {meta.get('format')}")
    if meta.get("owner") != owner:
        raise CheckpointError(f"it is a checkpoint of {meta.get('owner')!r}, not of {owner!r}")
    if meta.get("checksum") != _checksum(arrays):
        raise CheckpointError("the arrays do not have the checksum they were saved with")
    return int(meta["step"]), _unflatten(arrays, template)


def _checkpointer() -> ocp.Checkpointer:
    """One of this process alone: it has all arrays, and no other waits for it."""
    own = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="alone",
    )
    options = ocp.CompositeOptions(multiprocessing_options=own)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=own)


def _unflatten(arrays: dict[str, np.ndarray], template: PyTree) -> PyTree:
    wanted = _flatten(jax.eval_shape(lambda tree: jax.tree.map(_raw, tree), template))
    if missing := sorted(wanted.keys() ^ arrays.keys()):
        where = "missing" if missing[0] in wanted else "not part of this program"
        raise CheckpointError(f"{missing[0]!r} is {where}")
    for name, value in wanted.items():
        got = arrays[name]
        if (value.shape, value.dtype) != (got.shape, got.dtype):
            raise CheckpointError(
                f"{name!r}: expected {value.dtype}{list(value.shape)}, "
                f"got {got.dtype}{list(got.shape)}"
            )
    leaves = [jax.numpy.asarray(arrays[name]) for name in wanted]
    return jax.tree.unflatten(
        jax.tree.structure(template),
        [
            jax.random.wrap_key_data(leaf) if _is_key(like) else leaf
            for leaf, like in zip(leaves, jax.tree.leaves(template), strict=True)
        ],
    )


def _flatten(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), total)
    return total


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _set_strangers_aside(folder: Path) -> None:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not _NAME.fullmatch(path.name):
                if not files.is_aside(path) and not path.name.startswith("."):
                    files.set_aside(path, "its name is not that of a finished checkpoint")
