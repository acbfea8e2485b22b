"""The folder of a published checkpoint: config.json and safetensors, read only as far as asked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from dsfjax._util.atomic import replacing, write_bytes
from dsfjax._util.names import hint

_MOST_JSON = 50 << 20
_LARGEST = (1 << 31) - 1
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_MOST_PARTS = 1 << 16
_INFINITY = {"__float__": "Infinity"}  # as transformers writes it since its release 5
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# What no number of a forward pass depends on: names, training, and how other programs run it.
_HARMLESS = frozenset(
    """architectures auto_map _name_or_path _attn_implementation model_type transformers_version
    dtype torch_dtype bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id
    decoder_start_token_id use_cache return_dict output_hidden_states output_attentions torchscript
    is_encoder_decoder is_decoder chunk_size_feed_forward id2label label2id problem_type
    task_specific_params tokenizer_class prefix finetuning_task initializer_range init_std
    gradient_checkpointing max_position_embeddings router_aux_loss_coef output_router_logits
    attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop""".split()
)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, or larger than any config is.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a file, found none. A published checkpoint is a folder with "
            "config.json and model.safetensors."
        )
    if path.stat().st_size > _MOST_JSON:
        raise ValueError(f"{path}: expected at most {_MOST_JSON} bytes of JSON, got more.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got what cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}.")
    return found


class Config:
    """The settings of a config.json, each checked when it is asked for.

    Every reader raises `ValueError` with the file, the setting, what was expected and what came. A
    setting that is null counts as absent.

    Args:
        values: The settings by name.
        where: What messages call them.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values, self.where = dict(values), where
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """A setting of any type; ``default`` where there is none."""
        self._read.add(name)
        return self.values.get(name, default)

    def given(self, name: str) -> bool:
        """Whether there is such a setting, and it is not null."""
        return self.get(name) is not None

    def size(
        self, name: str, default: int | None = None, *, least: int = 1, most: int = _LARGEST
    ) -> int:
        """A whole number between bounds, themselves included."""
        found = self._expected(name, default)
        if not _is_whole(found) or not least <= found <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}", found)
        return found

    def count(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """How many there are of what is built one by one, such as layers."""
        return self.size(name, default, least=least, most=_MOST_PARTS)

    def part(self, name: str, other: str, of: int, default: int | None = None) -> int:
        """How many of ``of``, which follows from another setting; at least one."""
        found = self._expected(name, default)
        if not _is_whole(found) or not 1 <= found <= of:
            raise self.wrong(name, f"a whole number from 1 to {of} ({other})", found)
        return found

    def divisor(self, name: str, other: str, of: int, default: int | None = None) -> int:
        """A whole number that divides ``of``, which follows from another setting."""
        found = self.size(name, default)
        if of % found:
            raise self.wrong(name, f"a divisor of {of} ({other})", found)
        return found

    def multiple(self, name: str, other: str, of: int, default: int | None = None) -> int:
        """A whole number that ``of`` divides, which follows from another setting."""
        found = self.size(name, default)
        if found % of:
            raise self.wrong(name, f"a multiple of {of} ({other})", found)
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        found = self._expected(name, default)
        if not _is_number(found):
            raise self.wrong(name, "a finite number", found)
        return float(found)

    def positive(self, name: str, default: float | None = None, *, most: float = math.inf) -> float:
        """A finite number above 0."""
        found = self._expected(name, default)
        if not _is_number(found) or not 0 < found <= most:
            bound = "" if most == math.inf else f" and at most {most:g}"
            raise self.wrong(name, f"a finite number above 0{bound}", found)
        return float(found)

    def scaled(self, name: str, other: str, of: int, default: float | None = None) -> float:
        """A number times ``of``, which follows from another setting; a size when it is rounded."""
        found = self._expected(name, default)
        if not _is_number(found) or not 1 <= found * of <= _LARGEST:
            expected = f"a number that times {of} ({other}) is from 1 to {_LARGEST}"
            raise self.wrong(name, expected, found)
        return found * of

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        found = self._expected(name, default)
        if not isinstance(found, bool):
            raise self.wrong(name, "true or false", found)
        return found

    def word(self, name: str, known: Iterable[str], default: str | None = None) -> str:
        """One of several words."""
        found, known = self._expected(name, default), list(known)
        if found not in known:
            raise ValueError(
                f"{self.where}: {name}: {found!r} has no exact equivalent here; expected "
                f"{' or '.join(repr(x) for x in known)}."
            )
        return found

    def only(self, name: str, value: Any) -> None:
        """Raise `ValueError` unless a setting is absent, null, or the only one that is built."""
        found = self.get(name)
        if found is not None and found != value:
            raise ValueError(
                f"{self.where}: {name}: {found!r} has no exact equivalent here; expected {value!r}."
            )

    def follows(self, name: str, value: Any, *others: str) -> None:
        """Raise `ValueError` unless a setting is absent, null, or what others make it."""
        found = self.get(name)
        if found is not None and found != value:
            raise self.wrong(name, f"{value!r}, by {' and '.join(others)}", found)

    def words(self, name: str, known: Iterable[str], layers: int | None = None) -> tuple[str, ...]:
        """A list of words, each one of several; one word per layer if their number is given."""
        known = list(known)
        entries = self._entries(name, layers)
        return tuple(entries.word(each, known) for each in entries.values)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of so many finite numbers; each of them 1 where there is no such setting."""
        if not self.given(name):
            return (1.0,) * count
        found = self.get(name)
        if not isinstance(found, list) or len(found) != count or not all(map(_is_number, found)):
            raise self.wrong(name, f"a list of {count} finite numbers", found)
        return tuple(map(float, found))

    def interval(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """Two numbers in order, the second of which may be infinite."""
        if not self.given(name):
            return default
        found = self.get(name)
        pair = [math.inf if x == _INFINITY else x for x in found] if isinstance(found, list) else []
        is_pair = len(pair) == 2 and all(_is_number(x) or x == math.inf for x in pair)
        if not is_pair or not pair[0] <= pair[1]:
            raise self.wrong(name, "two numbers in order", found)
        return float(pair[0]), float(pair[1])

    def places(self, name: str, layers: int, *, first: int = 0) -> tuple[int, ...]:
        """Different numbers of layers, counted from ``first``; none where there is no setting."""
        found = self.get(name)
        found = [] if found is None else found
        last = first + layers - 1
        is_list = isinstance(found, list) and all(
            _is_whole(x) and first <= x <= last for x in found
        )
        if not is_list or len(set(found)) < len(found):
            expected = f"a list of different numbers from {first} to {last} (num_hidden_layers)"
            raise self.wrong(name, expected, found)
        return tuple(found)

    def section(self, name: str) -> Config:
        """Settings within this one; none where there is no such setting."""
        found = self.get(name)
        if found is not None and not isinstance(found, dict):
            raise self.wrong(name, "an object", found)
        return Config(found or {}, f"{self.where}: {name}")

    def ignore(self, *names: str) -> None:
        """Settings that no number of the forward pass depends on."""
        self._read.update(names)

    def check_all_read(self) -> None:
        """Raise `ValueError` for settings that nothing has asked for and that say something."""
        left = {
            name: value
            for name, value in self.values.items()
            if name not in self._read and name not in _HARMLESS
            if value is not None and value is not False and value != [] and value != {}
        }
        if left:
            name, value = next(iter(left.items()))
            raise ValueError(
                f"{self.where}: {name}: {value!r} is not known to this model_type"
                f"{hint(name, self._read)} A setting without an exact equivalent is refused: "
                f"{', '.join(left)}."
            )

    def wrong(self, name: str, expected: str, found: Any) -> ValueError:
        """The error of a setting that is not as it has to be."""
        return ValueError(f"{self.where}: {name}: expected {expected}, got {found!r}.")

    def _expected(self, name: str, default: Any) -> Any:
        found = self.get(name)
        found = default if found is None else found
        if found is None:
            raise ValueError(f"{self.where}: {name}: expected a value, got none.")
        return found

    def _entries(self, name: str, layers: int | None) -> Config:
        """The entries of a list, as settings of their own."""
        found = self._expected(name, None)
        if not isinstance(found, list) or not found:
            raise self.wrong(name, "a list", found)
        if layers is not None and len(found) != layers:
            raise self.wrong(name, f"one entry per layer ({layers}, num_hidden_layers)", found)
        return Config({f"{name}[{i}]": entry for i, entry in enumerate(found)}, self.where)


def _is_whole(x: Any) -> bool:
    """Whether it is a whole number, which true and false are not."""
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    """Whether it is a number that is finite in float32; JSON has whole numbers of any length."""
    is_number = _is_whole(x) or isinstance(x, float)
    return is_number and -_LARGEST_FLOAT <= x <= _LARGEST_FLOAT


Tensors = dict[str, np.ndarray]
"""By the names of a file."""

Converted = tuple[dict[str, Any], Tensors]
"""The settings of a config.json, and tensors."""


def write_folder(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, ArrayLike], source: Path
) -> None:
    """Write config.json and model.safetensors, and copy the files of a tokenizer.

    Args:
        path: The folder, made if need be.
        config: The settings.
        tensors: By name.
        source: The folder that may have a tokenizer.

    Raises:
        FileExistsError: If the folder has tensors.
    """
    from safetensors.numpy import save_file

    target = path / "model.safetensors"
    if target.exists():
        raise FileExistsError(f"{target}: expected no such file; choose another folder.")
    path.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.glob("*.json")):
        if file.name.startswith(("tokenizer", "special_tokens", "generation_config", "vocab")):
            (path / file.name).write_bytes(file.read_bytes())
    write_bytes(path / "config.json", json.dumps(config, indent=2).encode())
    arrays = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    with replacing(target) as file:
        save_file(arrays, file.name, {"format": "pt"})


def shards(index: Path) -> list[Path]:
    """The files that an index names, all of them next to it.

    Args:
        index: A JSON file whose ``weight_map`` has the name of a file for every tensor.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the index is none, or names a file outside of its folder.
    """
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{index}: weight_map: expected file names by tensor, got {named!r}.")
    for tensor, name in named.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(
                f"{index}: weight_map[{tensor!r}]: expected a file of this folder, got {name!r}."
            )
    files = [index.parent / name for name in sorted(set(named.values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: expected a file, found none, which the index names.")
    return files


class Folder:
    """A folder of safetensors: names and shapes at once, tensors when they are asked for.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If it has no safetensors.
        ValueError: If a file is damaged, or an index names a file outside of the folder.
    """

    def __init__(self, path: Path) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError("open: safetensors is missing: pip install 'dsfjax[open]'") from error
        self.path, self._open, self._error = path, safe_open, SafetensorError
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        for file in self._files():
            self._read_header(file)

    def _files(self) -> list[Path]:
        single, index = self.path / "model.safetensors", self.path / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        if not index.is_file():
            pickled = sorted(x.name for x in self.path.glob("*.bin"))
            why = (
                f" {', '.join(pickled)} is a pickle, which can run programs, and is not read here; "
                f"`dsfjax convert {self.path} --out FOLDER` takes its tensors and runs nothing."
            )
            why = why if pickled else ""
            raise FileNotFoundError(
                f"{self.path}: expected model.safetensors or model.safetensors.index.json, found "
                f"neither.{why}"
            )
        return shards(index)

    def _read_header(self, file: Path) -> None:
        try:
            with self._open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    tensor = opened.get_slice(name)
                    if name in self.files:
                        raise ValueError(f"{file}: {name}: is in {self.files[name].name} as well.")
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = tensor.get_dtype()
                    self.files[name] = file
        except (self._error, OSError) as error:
            raise ValueError(
                f"{file}: expected safetensors, got a damaged file: {error}."
            ) from error

    def dtype(self) -> jnp.dtype:
        """The dtype of most tensors on disk.

        Raises:
            ValueError: If they are not floats.
        """
        stored = list(self.dtypes.values())
        most = max(set(stored), key=stored.count)
        if most not in _DTYPES:
            name = next(n for n, d in self.dtypes.items() if d == most)
            raise ValueError(
                f"{self.files[name]}: {name}: expected one of {', '.join(_DTYPES)}, got {most}; "
                "quantised checkpoints are not read."
            )
        return jnp.dtype(_DTYPES[most])

    def load(
        self, names: Iterable[str], dtype: DTypeLike, *, wide: tuple[str, ...] = ()
    ) -> dict[str, Array]:
        """Tensors by name, one after the other, in a dtype.

        Args:
            names: Their names.
            dtype: Of all but those whose names end in one of ``wide``.
            wide: These are in float32 at least.

        Raises:
            ValueError: As of `read`.
        """

        def cast(name: str) -> Array:
            own = jnp.promote_types(dtype, jnp.float32) if name.endswith(wide) else dtype
            return jnp.asarray(self.read(name), own)

        # The largest first: a tensor is there twice while it is read and cast, and so is not on top
        # of all others.
        names = list(names)
        made = {n: cast(n) for n in sorted(names, key=lambda n: -math.prod(self.shapes[n]))}
        return {name: made[name] for name in names}

    def read(self, name: str) -> np.ndarray:
        """A tensor as it is stored.

        Raises:
            ValueError: If it has an entry that is not finite, or cannot be read.
        """
        file = self.files[name]
        if self.dtypes[name] not in _DTYPES:
            raise ValueError(
                f"{file}: {name}: expected one of {', '.join(_DTYPES)}, got {self.dtypes[name]}."
            )
        try:
            with self._open(file, framework="numpy") as opened:
                value = opened.get_tensor(name)
        except (self._error, OSError) as error:
            raise ValueError(f"{file}: {name}: cannot be read: {error}.") from error
        if not np.isfinite(value).all():
            raise ValueError(f"{file}: {name}: expected finite numbers, got NaN or infinity.")
        return value
