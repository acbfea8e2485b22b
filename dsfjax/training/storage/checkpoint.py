"""Checkpoints: a folder per step, written atomically, checked when read.

A checkpoint is ``step_00000400/`` with two parts: ``state``, the arrays of a pytree under their
path names (PRNG keys as their raw data), and ``meta``, which holds the format, a checksum, whose
they are, and notes: JSON data that belong to the state. A checkpoint that was cut short is set
aside as ``broken_<name>`` (:mod:`dsfjax.training.storage.files`), and the one before it is read.
One that is whole but of another run, program or precision is an error, and is left alone.
"""

import json
import re
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dsfjax.training.storage import files

if TYPE_CHECKING:
    # Imported where it is used: it takes longer to import than all else that training needs.
    import orbax.checkpoint as ocp

FORMAT = 3
"""Format 2 had no notes."""
_NAME = re.compile(r"step_(\d{8})")
_UNFINISHED = re.compile(r"step_\d{8}\.orbax-checkpoint-tmp.*")


class CheckpointError(ValueError):
    """A checkpoint that is not what was asked for."""


class DamagedError(CheckpointError):
    """A checkpoint of which something is missing or altered."""


class Checkpoint(NamedTuple):
    """What was saved.

    Attributes:
        step: The step it is of.
        tree: The arrays.
        notes: JSON data that were saved with them; None in a checkpoint of format 2.
    """

    step: int
    tree: PyTree
    notes: Any


def save(
    folder: Path, step: int, tree: PyTree, *, owner: str = "", notes: Any = None, keep: int = 2
) -> Path:
    """Write a checkpoint; until it is whole it has another name.

    Args:
        folder: Where the checkpoints of a run lie; created if need be.
        step: The step it is of, below 10^8.
        tree: Arrays, PRNG keys among them if need be.
        owner: Whose it is; :func:`restore` must name the same.
        notes: JSON data without NaN, which are read back with the arrays.
        keep: How many checkpoints to leave, the newest.

    Returns:
        The checkpoint's folder.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(Path(folder), 400, {"w": jnp.ones(3)})
        ...     restored = restore(Path(folder), {"w": jax.ShapeDtypeStruct((3,), "float32")})
        >>> restored is not None and restored.step
        400
    """
    import orbax.checkpoint as ocp

    arrays = _flatten(jax.tree.map(_raw, tree))
    arrays = {name: np.asarray(value) for name, value in jax.device_get(arrays).items()}
    own = {"format": FORMAT, "step": step, "owner": owner, "notes": notes}
    meta = {**own, "checksum": _checksum(arrays, notes)}
    path = folder.absolute() / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with _checkpointer() as checkpointer:
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
        )
        checkpointer.save(path, parts, force=True)
    files.sync(path)  # before the older ones go
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def restore(folder: Path, template: PyTree, *, owner: str = "") -> Checkpoint | None:
    """Read the newest whole checkpoint, setting aside those that were cut short.

    Args:
        folder: Where the checkpoints of a run lie; it need not exist.
        template: A pytree of arrays or ``jax.ShapeDtypeStruct``: the structure to read.
        owner: Whose it must be.

    Returns:
        The checkpoint, or None if there is none.

    Raises:
        CheckpointError: If the newest whole one is of another owner, structure or format. Nothing
            has been renamed then.
        PermissionError: If a damaged checkpoint cannot be renamed.
    """
    damaged: dict[Path, str] = {}
    found = None
    for path in reversed(_checkpoints(folder)):
        try:
            found = read(path, template, owner=owner)
            break
        except DamagedError as error:
            damaged[path] = str(error)
    for path, reason in damaged.items():
        files.set_aside(path, reason)
    for path in _unfinished(folder):
        files.set_aside(path, "it was not finished")
    return found


def read(path: Path, template: PyTree, *, owner: str = "") -> Checkpoint:
    """Read one checkpoint.

    Args:
        path: The checkpoint's folder.
        template: The structure to read.
        owner: Whose it must be.

    Returns:
        The checkpoint.

    Raises:
        DamagedError: If it cannot be read, or is not as it was saved.
        CheckpointError: If it is of another owner, structure or format.
    """
    import orbax.checkpoint as ocp

    try:
        with _checkpointer() as checkpointer:
            parts = ocp.args.Composite(
                state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
            )
            found = checkpointer.restore(path.absolute(), parts)
        meta, arrays = found.meta, {k: np.asarray(v) for k, v in found.state.items()}
    except Exception as error:  # storage reports damage through many types
        summary = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DamagedError(f"cannot be read ({summary[0][:200]})") from error
    if meta.get("format") not in (2, FORMAT):
        raise CheckpointError(f"expected format {FORMAT}, got {meta.get('format')}")
    if meta.get("owner") != owner:
        raise CheckpointError(f"it is a checkpoint of {meta.get('owner')!r}, not of {owner!r}")
    notes = meta.get("notes")
    if meta.get("checksum") != _checksum(arrays, notes):
        raise DamagedError("it does not have the checksum that it was saved with")
    return Checkpoint(int(meta["step"]), _unflatten(arrays, template), notes)


def _checkpointer() -> "ocp.Checkpointer":
    """One of this process alone: it has all arrays, and no other waits for it."""
    import orbax.checkpoint as ocp

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


def _checksum(arrays: dict[str, np.ndarray], notes: Any) -> int:
    # Of nothing it is 0, which is where the checksum of format 2 begins.
    total = 0 if notes is None else zlib.crc32(json.dumps(notes, sort_keys=True).encode())
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), total)
    return total


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _unfinished(folder: Path) -> list[Path]:
    """What a kill leaves while a checkpoint is being written."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name))
