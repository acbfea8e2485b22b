"""Files as ``torch.save`` writes them, put together by hand: a pickle and a zip."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16"}
STORAGES |= {"int64": "Long", "int32": "Int", "uint8": "Byte", "bool": "Bool"}
ORDERED = b"ccollections\nOrderedDict\n)R"


def word(text: str) -> bytes:
    """Puts a text on the stack."""
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(n: int) -> bytes:
    """Puts a whole number on the stack."""
    return b"J" + struct.pack("<i", n) if n < 1 << 31 else b"\x8a\x08" + struct.pack("<q", n)


def joined(*parts: bytes) -> bytes:
    """Puts a tuple on the stack."""
    return b"(" + b"".join(parts) + b"t"


def storage(key: str, dtype: str, count: int) -> bytes:
    """Puts a storage on the stack."""
    kind = f"ctorch\n{STORAGES[dtype]}Storage\n".encode()
    return joined(word("storage"), kind, word(key), word("cpu"), number(count)) + b"Q"


def view(of: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Puts a tensor on the stack."""
    sizes = (joined(*map(number, x)) for x in (shape, strides))
    given = joined(of, number(offset), *sizes, b"\x89", ORDERED)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + given + b"R"


def program(tensors: Mapping[str, bytes]) -> bytes:
    """A pickle of a dict of them, with an attribute, as a module's ``state_dict`` has."""
    entries = b"".join(word(name) + tensor for name, tensor in tensors.items())
    metadata = b"}" + word("_metadata") + ORDERED + b"sb"
    return b"\x80\x02" + ORDERED + b"(" + entries + b"u" + metadata + b"."


def write(path: Path, pickle: bytes, entries: Mapping[str, bytes]) -> Path:
    """The zip."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in ({"data.pkl": pickle, "byteorder": b"little"} | dict(entries)).items():
            file.writestr(f"archive/{name}", data)
    return path


def saved(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """What ``torch.save`` writes of a dict of tensors; the same array is one storage."""
    keys: dict[int, int] = {}
    stack = {}
    for name, x in tensors.items():
        key = keys.setdefault(id(x), len(keys))
        strides = tuple(n // x.itemsize for n in np.ascontiguousarray(x).strides[: x.ndim])
        stack[name] = view(storage(str(key), str(x.dtype), x.size), 0, x.shape, strides)
    arrays = {id(x): x for x in tensors.values()}
    return write(path, program(stack), {f"data/{k}": arrays[i].tobytes() for i, k in keys.items()})
