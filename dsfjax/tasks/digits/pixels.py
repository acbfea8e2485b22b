"""The data, read once and checked, and the task made of them."""

import dataclasses
import functools
import hashlib
import lzma
from importlib import resources
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from dsfjax.tasks.data.splits import least_squares, most_frequent
from dsfjax.tasks.protocol import HELD_OUT, Baseline, Example, Preset
from dsfjax.tasks.supply import Resident

SHA256 = "ac9fdfe258aefd68bbcff8fd47e4f51466aa6edad18827c191d2c41d9d188f6e"
NUM_TRAIN, NUM_HELD_OUT, NUM_PIXELS, NUM_CLASSES, NUM_VALUES = 1437, 360, 64, 10, 17


@functools.cache
def _rows() -> UInt8[np.ndarray, "1797 65"]:
    """64 pixels and the label of every image, in the order of the original file."""
    packed = resources.files("dsfjax.tasks.digits").joinpath("digits.xz").read_bytes()
    data = lzma.decompress(packed)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(
            "digits: expected the data of the package, got others (their sha256 differs); "
            "install dsfjax again."
        )
    return np.frombuffer(data, np.uint8).reshape(NUM_PIXELS + 1, -1).T


@dataclasses.dataclass(frozen=True)
class Digits(Resident):
    """Which digit an image of 8 × 8 pixels shows, read one pixel after the other.

    A pixel has one of 17 shades, which are the token ids; the rows of the image follow each other.
    Split: the first 1,437 images train, and the last 360, a fifth of the file, are held out. (The
    set has no published split; this one is ``train_test_split(test_size=0.2, shuffle=False)``.)

    Example:
        >>> task = Digits()
        >>> task.size("train"), task.size("held_out")
        (1437, 360)
        >>> images, labels = task.arrays("held_out")
        >>> images[0, :8].tolist(), int(labels[0])
        ([0, 4, 16, 15, 2, 0, 0, 0], 2)
    """

    title = "Handwritten digits, pixel by pixel"
    demands = ("smoothing", "classification")
    seq_len = NUM_PIXELS
    vocab_size = NUM_VALUES
    num_classes = NUM_CLASSES

    presets: ClassVar = {
        "demo": Preset(
            settings={
                "eval_examples": NUM_HELD_OUT,
                "steps": 200,
                "eval_every": 50,
                "learning_rates": (5e-3,),
                "stop_at": 0.97,
            },
            # Those that differ most on it in the time there is.
            mixers=("softmax_attention", "linear_attention", "ssd", "qlstm", "rg_lru"),
        )
    }

    def arrays(self, split: str) -> PyTree:
        """Images and labels."""
        rows = _rows()[NUM_TRAIN:] if split == HELD_OUT else _rows()[:NUM_TRAIN]
        return rows[:, :NUM_PIXELS], rows[:, NUM_PIXELS]

    def read(self, row: PyTree) -> Example:
        """One image."""
        image, label = row
        last = jnp.array([NUM_PIXELS - 1], jnp.int32)
        return Example(image.astype(jnp.int32), last, label[None].astype(jnp.int32))

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, the most frequent digit, and a linear map of all pixels by least squares."""
        (seen, known), (images, labels) = self.arrays("train"), self.arrays(HELD_OUT)
        _, accuracy = most_frequent(known, labels)
        linear = least_squares(seen / np.float32(16), known, images / np.float32(16), labels)
        return {
            "chance": Baseline(1 / NUM_CLASSES, "guessing among the ten digits"),
            "trivial": Baseline(accuracy, "always naming the most frequent digit"),
            "linear": Baseline(linear, "least squares on all pixels at once"),
        }

    def describe(self) -> str:
        """Length, classes and examples."""
        return (
            f"L = {NUM_PIXELS}, {NUM_CLASSES} classes, {NUM_TRAIN:,} images to train and "
            f"{NUM_HELD_OUT} held out"
        )

    def slug(self) -> str:
        """Length and classes."""
        return f"L{NUM_PIXELS}-c{NUM_CLASSES}"
