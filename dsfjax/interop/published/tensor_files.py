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
from jax.typing import DTypeLike

from dsfjax._util.names import hint

_MOST_JSON = 50 << 20
_LARGEST = 1 << 31
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

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number."""
        found = self._expected(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < _LARGEST:
            raise ValueError(
                f"{self.where}: {name}: expected a whole number from 1 to {_LARGEST - 1}, got "
                f"{found!r}."
            )
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        found = self._expected(name, default)
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if not is_number or not math.isfinite(found):
            raise ValueError(f"{self.where}: {name}: expected a finite number, got {found!r}.")
        return float(found)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        found = self._expected(name, default)
        if not isinstance(found, bool):
            raise ValueError(f"{self.where}: {name}: expected true or false, got {found!r}.")
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

    def words(self, name: str, count: int, known: Iterable[str]) -> tuple[str, ...]:
        """A list of ``count`` words, each one of several."""
        found, known = self._expected(name, None), list(known)
        if not isinstance(found, list) or len(found) != count:
            raise ValueError(f"{self.where}: {name}: expected a list of {count}, got {found!r}.")
        for i, word in enumerate(found):
            Config({f"{name}[{i}]": word}, self.where).word(f"{name}[{i}]", known)
        return tuple(found)

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

    def _expected(self, name: str, default: Any) -> Any:
        found = self.get(name)
        found = default if found is None else found
        if found is None:
            raise ValueError(f"{self.where}: {name}: expected a value, got none.")
        return found


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
            why = f" {', '.join(pickled)} is a pickle, which can run programs, and is never read."
            why = why if pickled else ""
            raise FileNotFoundError(
                f"{self.path}: expected model.safetensors or model.safetensors.index.json, found "
                f"neither.{why}"
            )
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index}: weight_map: expected file names by tensor, got {shards!r}.")
        for tensor, name in shards.items():
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(
                    f"{index}: weight_map[{tensor!r}]: expected a file of this folder, got "
                    f"{name!r}."
                )
        return [self.path / name for name in sorted(set(shards.values()))]

    def _read_header(self, file: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: expected a file, found none, which the index names.")
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

    def load(self, names: Iterable[str], dtype: DTypeLike) -> dict[str, Array]:
        """Tensors by name, one after the other, in a dtype.

        Raises:
            ValueError: As of `read`.
        """
        return {name: jnp.asarray(self.read(name), dtype) for name in names}

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
