"""Tiny published checkpoints with the values of their original implementations.

``tests/golden/checkpoints`` has a few; with the environment variable ``DSFJAX_CHECKPOINTS`` the
slow tests read another folder of such folders.
"""

import os
import shutil
from functools import lru_cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Tokenizer, models, pre_tokenizers

import dsfjax
from dsfjax import Opened

HERE = Path(__file__).parent / "golden" / "checkpoints"
FOLDER = Path(os.environ.get("DSFJAX_CHECKPOINTS", HERE))
FAMILIES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
WORDS = "the cat sat on the mat and the dog sat on the $log$ again and again".split()
QUICK = ("mamba",)


@lru_cache(maxsize=4)
def opened(name: str) -> Opened:
    """A checkpoint in float64."""
    return dsfjax.open(FOLDER / name, dtype="float64")


def reference(name: str, file: str = "reference") -> dict[str, np.ndarray]:
    """The values of its original."""
    with np.load(FOLDER / name / f"{file}.npz") as found:
        return dict(found)


def distance(found: Array, expected: Array | np.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float(jnp.linalg.norm(found - expected) / np.linalg.norm(np.asarray(expected)))


def with_tokenizer(folder: Path) -> Path:
    """A copy of a checkpoint with a tokenizer of a few words."""
    shutil.copytree(HERE / "mamba", folder)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["?", *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
