"""PyTorch's files are read as tensors; what else is in them is refused, and nothing is run."""

import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.interop.published.torch_files import torch_tensors
from tests import torch_zip as by_hand

STORAGE = by_hand.storage("0", "float32", 6)
ONES = np.ones((2, 3), np.float32)


def test_a_dict_of_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = ((4, 6), (), (0, 3), (2,))
    known = {str(x): rng.normal(size=x).astype(np.float32) for x in shapes}
    known |= {"narrow": np.asarray(jnp.array([1, 1e38, -2], jnp.bfloat16)), "whole": np.arange(3)}
    known["again"] = known["(4, 6)"]
    found = torch_tensors(by_hand.saved(tmp_path / "x.bin", known))
    assert found.keys() == known.keys()
    for name, x in known.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        assert np.array_equal(found[name], x), name
    assert np.shares_memory(found["again"], found["(4, 6)"])


def test_views_of_a_storage(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32)
    base = by_hand.storage("0", "float32", 24)
    views = {
        "transposed": by_hand.view(base, 0, (6, 4), (1, 6)),
        "part": by_hand.view(base, 6, (2, 3), (6, 2)),
        "parameter": b"ctorch._utils\n_rebuild_parameter\n"
        + by_hand.joined(by_hand.view(base, 23, (1,), (1,)), b"\x88", by_hand.ORDERED)
        + b"R",
    }
    path = by_hand.write(tmp_path / "x.bin", by_hand.program(views), {"data/0": x.tobytes()})
    found, rows = torch_tensors(path), x.reshape(4, 6)
    assert np.array_equal(found["transposed"], rows.T)
    assert np.array_equal(found["part"], rows[1:3, ::2])
    assert np.array_equal(found["parameter"], [23])


class Touch:
    """A pickle of this makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_programs_are_refused_and_not_run(tmp_path: Path) -> None:
    """Whatever protocol and whatever instruction reaches for them."""
    made = tmp_path / "executed"
    programs = {f"protocol {n}": pickle.dumps({"a": Touch(made)}, protocol=n) for n in range(6)} | {
        "os.system": b"\x80\x02cos\nsystem\n(" + by_hand.word(f"touch {made}") + b"tR.",
        "posix.system": b"cposix\nsystem\n(" + by_hand.word(f"touch {made}") + b"tR.",
        "INST": f"(S'touch {made}'\nios\nsystem\n.".encode(),
        "OBJ": b"(cos\nsystem\n" + by_hand.word(f"touch {made}") + b"o.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n" + by_hand.joined(by_hand.word("true")) + b"\x81.",
        "builtins": b"cbuiltins\neval\n(" + by_hand.word("1") + b"tR.",
        "getattr of a name that is known": b"ccollections\nOrderedDict.fromkeys\n)R.",
        "torch.load": b"ctorch\nload\n(" + by_hand.word("x") + b"tR.",
        "a call of what is no function": b"\x80\x02}(" + by_hand.word("x") + b"tR.",
        "a call of a dtype": b"ctorch\nFloatStorage\n)R.",
        "state of what is no dict": b"\x80\x02(t}b.",
        "extension": b"\x82\x01.",
    }
    assert pickle.loads(programs["protocol 2"]) and made.exists()  # it would run
    made.unlink()
    for name, program in programs.items():
        path = by_hand.write(tmp_path / "x.bin", program, {})
        with pytest.raises(ValueError, match=r"x\.bin: expected a dict of tensors, got a pickle "):
            torch_tensors(path)
        assert not made.exists(), name


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "pickle of a dict, got a damaged one"),
        (b"\x80\x02", "pickle of a dict, got a damaged one"),
        (b"\x80\x02.", "got a damaged one"),
        (b"\x80\x02t.", "got a damaged one"),
        (b"\x80\x02h\x00.", "got a damaged one"),
        (b"\x80\x02K\x01.", "a dict of tensors, got int"),
        (b"\x80\x02" + by_hand.joined(*[by_hand.number(1)] * 3) + b"Q.", "got a damaged one"),
        (b"\x80\x02}" + by_hand.number(1) + b"Ns.", "int in the place of a name"),
        (b"\x80\x02}" + by_hand.word("a") + b"}s.", "a tensor under 'a', got dict"),
        (by_hand.program({"a": by_hand.view(b"N", 0, (1,), (1,))}), "no view of a storage"),
        (by_hand.program({"a": by_hand.view(STORAGE, -1, (1,), (1,))}), "no whole numbers from 0"),
        (by_hand.program({"a": by_hand.view(STORAGE, 0, (1, 1), (1,))}), "no view of a storage"),
        (by_hand.program({"a": b"N"}), "a tensor under 'a', got NoneType"),
    ],
)
def test_other_pickles(tmp_path: Path, program: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch_tensors(by_hand.write(tmp_path / "x.bin", program, {}))


def test_a_value_that_is_endless_to_print_or_compare(tmp_path: Path) -> None:
    """Tuples of tuples of themselves: two to the power of 200 entries, in 600 instructions."""
    nested = b")" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(200))
    in_dict = b"}" + by_hand.word("a") + nested + b"s."
    for program in (nested + b".", b"}" + nested + b"Ns.", in_dict):
        with pytest.raises(ValueError, match="tuple|damaged"):
            torch_tensors(by_hand.write(tmp_path / "x.bin", b"\x80\x02" + program, {}))


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [
        (6, 0, (3, 3), (3, 1)),  # more than there is
        (6, 1, (2, 3), (3, 1)),  # beyond the end
        (6, 1 << 40, (1,), (1,)),
        (6, 0, (2,), (1 << 40,)),
        (6, 0, (1 << 40,), (0,)),  # any number of numbers out of one
        (7, 0, (2, 3), (3, 1)),  # a storage of another size than its entry
        (1 << 40, 0, (2, 3), (3, 1)),
    ],
)
def test_sizes_that_lie(
    tmp_path: Path, count: int, offset: int, shape: tuple, strides: tuple
) -> None:
    tensor = by_hand.view(by_hand.storage("0", "float32", count), offset, shape, strides)
    path = by_hand.write(
        tmp_path / "x.bin", by_hand.program({"a": tensor}), {"data/0": ONES.tobytes()}
    )
    with pytest.raises(ValueError, match=r"x\.bin: expected .*data/0.* got "):
        torch_tensors(path)


@pytest.mark.parametrize("key", ["../data.pkl", "/etc/passwd", "..", "", "0/../../x", "-1", "٣"])
def test_a_storage_is_an_entry_of_the_zip(tmp_path: Path, key: str) -> None:
    tensor = by_hand.view(by_hand.storage(key, "float32", 6), 0, (2, 3), (3, 1))
    entries = {"data/0": ONES.tobytes(), "../outside": ONES.tobytes()}
    path = by_hand.write(tmp_path / "x.bin", by_hand.program({"a": tensor}), entries)
    with pytest.raises(ValueError, match="storage without a number or a size|found none"):
        torch_tensors(path)
    assert [x.name for x in tmp_path.iterdir()] == ["x.bin"]  # nothing is unpacked


def test_zips_that_are_no_such_files(tmp_path: Path) -> None:
    path, ones = tmp_path / "x.bin", {"a": ONES}

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            torch_tensors(path)

    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C) + b"\x80\x02.")  # how legacy files begin
    refused("expected a zip, as torch.save has written since release 1.6")
    by_hand.write(path, b"N.", {"byteorder": b"big"})
    refused("little-endian order, got b'big'")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/other", "x")
    refused(r"an entry data\.pkl in the zip, found none")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"N." + b" " * 1000)
    refused("data.pkl as it is, not compressed")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("one/data.pkl", b"N.")
        file.writestr("two/data.pkl", b"N.")
    refused("one entry data.pkl, got two")
    whole = by_hand.saved(path, ones).read_bytes()
    for kept in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        refused("expected a zip")
    place = whole.index(ONES.tobytes())
    path.write_bytes(whole[:place] + struct.pack("<f", 2.0) + whole[place + 4 :])
    refused("damaged file: Bad CRC-32")
    with pytest.raises(FileNotFoundError, match="no.bin: expected a file, found none"):
        torch_tensors(tmp_path / "no.bin")
