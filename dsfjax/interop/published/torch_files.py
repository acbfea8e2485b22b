"""Tensors of PyTorch's files (``.bin``, ``.pth``, ``.pt``), read without running what is in them.

Such a file is a zip: ``NAME/data.pkl`` is a pickle that says which tensors there are, and
``NAME/data/KEY`` has the numbers of one storage. A pickle is a program for a stack machine, whose
instructions GLOBAL, REDUCE and BUILD import and call anything. Python's unpickler is not used here.
`_Machine` knows the few instructions that a dict of tensors needs, and the few names that it may
use, each of which stands for a function of this file; everything else is refused by its name.
"""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_MOST_PICKLE = 50 << 20
_ENTRY = re.compile(r"[^/]+/(data\.pkl|byteorder|data/[0-9]+)")
_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class Storage(NamedTuple):
    """Numbers of which tensors are views.

    Attributes:
        key: Name of its entry in ``data/``.
        dtype: Of the numbers.
        count: How many there are.
    """

    key: str
    dtype: np.dtype
    count: int


class Stored(NamedTuple):
    """A tensor as the file says it: places ``offset + Σ_i index_i · stride_i`` of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that ``torch.save`` wrote of a dict of them.

    Args:
        path: The file.

    Returns:
        By name, read-only; tensors that share a storage there share memory here.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such zip, such as a file of PyTorch before release 1.6; if its
            pickle has an instruction or a name that no dict of tensors needs, which is not run; or
            if a tensor does not fit the numbers that are there.

    Example:
        >>> import io, pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "pytorch_model.bin"
        ...     with zipfile.ZipFile(path, "w") as file:
        ...         file.writestr("archive/data.pkl", pickle.dumps(print, protocol=2))
        ...     torch_tensors(path)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
            ...
        ValueError: …/pytorch_model.bin: expected a dict of tensors, got a pickle that asks for
        '__builtin__ print', which is not run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, found none.")
    try:
        with zipfile.ZipFile(path) as file:
            return _Archive(path, file).tensors()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: expected a zip, as torch.save has written since release 1.6, got a "
            f"damaged file: {error}. Write an older one anew: torch.save(torch.load(path), path)."
        ) from error
    except (OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: expected a zip that can be read: {error}.") from error


class _Archive:
    """The zip, and arrays of the storages that were asked for."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        self._storages: dict[str, np.ndarray] = {}
        self._entries: dict[str, zipfile.ZipInfo] = {}
        size = path.stat().st_size
        for entry in file.infolist():
            known = _ENTRY.fullmatch(entry.filename)
            if known is None:
                continue  # versions and the like, which say nothing about tensors
            if known[1] in self._entries:
                raise self.wrong(f"one entry {known[1]}, got two")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise self.wrong(f"{known[1]} as it is, not compressed, in the {size} bytes there")
            self._entries[known[1]] = entry

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors by name."""
        if "byteorder" in self._entries and (order := self._read("byteorder")) != b"little":
            raise self.wrong(f"numbers in little-endian order, got {order[:20]!r}")
        if (size := self._entry("data.pkl").file_size) > _MOST_PICKLE:
            raise self.wrong(f"a data.pkl of at most {_MOST_PICKLE} bytes, got {size}")
        found = _Machine(self.wrong).run(self._read("data.pkl"))
        if not isinstance(found, dict):
            raise self.wrong(f"a dict of tensors, got {type(found).__name__}")
        for name, tensor in found.items():
            if not isinstance(tensor, Stored):
                raise self.wrong(f"a tensor under {name!r}, got {type(tensor).__name__}")
        return {name: self._array(name, tensor) for name, tensor in found.items()}

    def wrong(self, expected: str) -> ValueError:
        """The error of a file that is not as it has to be."""
        return ValueError(f"{self.path}: expected {expected}.")

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise self.wrong(f"an entry {name} in the zip, found none")
        return self._entries[name]

    def _read(self, name: str) -> bytes:
        return self._file.read(self._entry(name))

    def _array(self, name: str, tensor: Stored) -> np.ndarray:
        """A view of the numbers of its storage, within which it has to lie."""
        numbers, count = self._numbers(tensor.storage), math.prod(tensor.shape)
        if count == 0:
            return np.zeros(tensor.shape, numbers.dtype)
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        # No more numbers than there are: a stride of 0 would make any number of them out of one.
        if tensor.offset + last >= len(numbers) or count > len(numbers):
            raise self.wrong(
                f"{name!r} within the {len(numbers)} numbers of data/{tensor.storage.key}, got "
                f"shape {list(tensor.shape)}, strides {list(tensor.strides)}, offset "
                f"{tensor.offset}"
            )
        strides = [numbers.itemsize * stride for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[tensor.offset :], tensor.shape, strides, writeable=False
        )

    def _numbers(self, storage: Storage) -> np.ndarray:
        name, size = f"data/{storage.key}", storage.count * storage.dtype.itemsize
        if storage.key not in self._storages:
            if (found := self._entry(name).file_size) != size:
                raise self.wrong(
                    f"{size} bytes in {name}, {storage.count} of {storage.dtype}, got {found}"
                )
            self._storages[storage.key] = np.frombuffer(self._read(name), storage.dtype)
        numbers = self._storages[storage.key]
        if (len(numbers), numbers.dtype) != (storage.count, storage.dtype):
            raise self.wrong(f"one size and dtype of {name}, got two")
        return numbers


class _Name(NamedTuple):
    """What a name of the pickle stands for: a dtype, or a function of ours."""

    value: Any


class _Machine:
    """A stack machine with the instructions that a dict of tensors needs.

    Messages name types and no values: a value may be one that takes for ever to print.

    Args:
        wrong: Makes an error of what was expected and came.
    """

    def __init__(self, wrong: Callable[[str], ValueError]) -> None:
        self._wrong = wrong
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """What is left at STOP."""
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except _Refused as refused:
            raise self._wrong(f"a dict of tensors, got a pickle {refused}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._wrong(f"a pickle of a dict, got a damaged one: {error}") from error
        raise self._wrong("a pickle with an end, got one without")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "GLOBAL":
                if argument not in _NAMES:
                    raise _Refused(f"that asks for {argument!r}, which is not run")
                stack.append(_Name(_NAMES[argument]))
            case "REDUCE":
                given, function = stack.pop(), stack.pop()
                if not isinstance(function, _Name) or not callable(function.value):
                    raise _Refused(f"that calls {type(function).__name__}, which is not run")
                stack.append(function.value(*given))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "BUILD":
                stack.pop()  # attributes, such as _metadata, which has no numbers
                if not isinstance(stack[-1], dict):
                    raise _Refused(f"that sets attributes of {type(stack[-1]).__name__}")
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "BINFLOAT":
                stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_DICT":
                stack.append(() if name == "EMPTY_TUPLE" else {})
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "SETITEM" | "SETITEMS":
                entries = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
                for key, value in zip(entries[::2], entries[1::2], strict=True):
                    if not isinstance(key, str):
                        raise _Refused(f"with {type(key).__name__} in the place of a name")
                    stack[-1][key] = value
            case _:
                raise _Refused(f"with the instruction {name}, which is not run")

    def _since_mark(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        place = self._marks.pop()
        found = self._stack[place:]
        del self._stack[place:]
        return found


class _Refused(ValueError):
    """An instruction or a name that no dict of tensors needs."""


# What they are given comes from the file, so it may be anything.


def _storage(kind: Any, dtype: Any, key: Any, place: Any, count: Any) -> Storage:
    """What the persistent id of a storage says."""
    del place  # the device it was on
    if kind != "storage" or not isinstance(dtype, _Name) or not isinstance(dtype.value, np.dtype):
        raise _Refused("with something else in the place of a storage")
    if not isinstance(key, str) or not re.fullmatch("[0-9]+", key) or not _is_count(count):
        raise _Refused("with a storage without a number or a size")
    return Storage(key, dtype.value, count)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, *of_training: Any
) -> Stored:
    """``torch._utils._rebuild_tensor_v2``."""
    del requires_grad, of_training
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise _Refused("with a tensor that is no view of a storage")
    if not all(map(_is_count, sizes)):
        raise _Refused("with a tensor whose sizes are no whole numbers from 0 on")
    return Stored(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    """``torch._utils._rebuild_parameter``."""
    del requires_grad, hooks
    return data


def _dict() -> dict:
    """``collections.OrderedDict`` without entries."""
    return {}


def _is_count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


_NAMES: dict[str, Any] = {
    "collections OrderedDict": _dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
}
