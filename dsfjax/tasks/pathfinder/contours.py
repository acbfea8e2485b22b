"""The data set, made once in parts, and the task made of it."""

import dataclasses
import functools
import logging
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from dsfjax._util.names import choose
from dsfjax.tasks import data, published
from dsfjax.tasks.data.splits import TEST, VALIDATION, most_frequent
from dsfjax.tasks.pathfinder.drawing import SIZE
from dsfjax.tasks.pathfinder.snakes import sample
from dsfjax.tasks.protocol import HELD_OUT, TRAIN, Baseline, Example, Preset, option
from dsfjax.tasks.supply import Resident

REFERENCE = "reference"
PARTS = (TEST, VALIDATION, REFERENCE)
CONTOURS = (14, 9, 6)

_VERSION = 1  # raised when the same seed gives other images
_AT_ONCE = 5_000  # images of a part: ten seconds, which is what an interruption costs
_KEPT = 1_000  # fewer images are not worth a file
_FILES = tuple(f"pathfinder32_ref/pathfinder32_len14_ref20k_{each}.npy" for each in "xy")

_log = logging.getLogger("dsfjax")

Rows = tuple[UInt8[np.ndarray, "images pixels"], UInt8[np.ndarray, " images"]]


@functools.lru_cache(maxsize=4)
def _images(seed: int, split: str, count: int, contour: int) -> Rows:
    """Images and labels, of parts that the cache folder keeps."""
    parts = []
    for first in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - first)

        def make(first: int = first, size: int = size) -> dict[str, np.ndarray]:
            if first == 0 and count > 4 * _AT_ONCE:
                _log.warning("pathfinder: drawing %s images once, 400 per second", f"{count:,}")
            # Every part has a seed of its own, so that parts can be made in any order.
            splits = (TRAIN, *PARTS)
            random = np.random.default_rng([seed, splits.index(split), first // _AT_ONCE])
            images = sample(random, size, contour=contour)
            return {"pixels": images.pixels.reshape(size, -1), "labels": images.labels}

        key = (_VERSION, seed, split, first, size, contour)
        parts.append(make() if size < _KEPT else data.cached("pathfinder32", key, make))
    pixels, labels = (np.concatenate([part[name] for part in parts]) for name in parts[0])
    return pixels, labels


@functools.cache
def _reference() -> Rows:
    """The images of the original program, from the user's data folder."""
    pixels, labels = (data.arrays_of(data.read(path), path)[""] for path in _FILES)
    data.expect(
        pixels.shape == (len(labels), SIZE, SIZE) and pixels.dtype == labels.dtype == np.uint8,
        _FILES[0],
        f"bytes of shape ({len(labels):,}, {SIZE}, {SIZE})",
        f"{pixels.dtype} of shape {pixels.shape}",
    )
    return pixels.reshape(len(labels), -1), labels


@dataclasses.dataclass(frozen=True)
class Pathfinder(Resident):
    """Whether two markers are the ends of one dashed line, in an image read pixel by pixel.

    Long Range Arena's own images are not distributed with this package. These are drawn anew by
    the original program's law (`dsfjax.tasks.pathfinder.snakes`) with Long Range Arena's
    parameters, and the title says so. A pixel x in [0, 1] is (x − 0.5)/0.5; the rows of
    the image follow each other.

    Images are drawn once, about 400 per second, and kept in the cache folder (``DSFJAX_CACHE``) in
    parts of 5,000: what was drawn before an interruption stays. What a model is judged on does not
    depend on ``num_train``.

    Args:
        contour_length: Dashes of the two long lines: 14 in the set called "hard", which is the one
            that results are published for, 9 in "intermediate", 6 in "easy".
        num_train: Images to train on.
        num_held_out: Images for validation, and as many for testing.
        judged_on: What models are judged on: "test", "validation", or "reference", 20,000 images of
            the original program (``pathfinder32_ref`` in the data folder).
        data_seed: Seed of all images.

    Raises:
        ValueError: If the options do not fit together.

    Example:
        >>> task = Pathfinder(num_train=8, num_held_out=4)
        >>> pixels, labels = task.arrays("held_out")
        >>> pixels.shape, labels.shape, task.describe()
        ((4, 1024), (4,), 'L = 1024, lines of 14 dashes, 8 images to train and 4 for test')
    """

    contour_length: int = option(14, "Dashes of the two long lines: 14 (hard), 9 or 6.")
    num_train: int = option(160_000, "Images to train on.")
    num_held_out: int = option(20_000, "Images for validation, and as many for testing.")
    judged_on: str = option(
        "test", "What models are judged on: test, validation, or the reference images."
    )
    data_seed: int = option(0, "Seed of the images.")

    demands = ("classification",)
    seq_len = SIZE * SIZE
    channels = 1
    num_classes = 2

    presets: ClassVar = {
        "demo": Preset(
            about="Short lines and few images, for a machine without an accelerator.",
            settings={"contour_length": 6, "num_train": 10_000, "num_held_out": 1_000},
        ),
        "smoke": Preset(settings={"num_train": 16, "num_held_out": 8}),
        "paper": published.LRA["pathfinder"],
    }

    def __post_init__(self) -> None:
        if self.contour_length not in CONTOURS:
            raise ValueError(
                f"Pathfinder: expected contour_length to be one of {CONTOURS}, got "
                f"{self.contour_length}."
            )
        if self.num_train < 1 or self.num_held_out < 1:
            raise ValueError(
                f"Pathfinder: expected num_train and num_held_out of at least 1, got "
                f"{self.num_train} and {self.num_held_out}."
            )
        choose("judged_on", self.judged_on, PARTS)
        if self.judged_on == REFERENCE and self.contour_length != CONTOURS[0]:
            raise ValueError(
                f"Pathfinder: expected contour_length={CONTOURS[0]}, which the reference images "
                f"have, got {self.contour_length}; use judged_on='test'."
            )

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it is; not Long Range Arena's files."""
        return f"Pathfinder-32 regenerated with LRA's parameters, seed {self.data_seed}"

    def arrays(self, split: str) -> PyTree:
        """Pixels and labels."""
        if split == HELD_OUT and self.judged_on == REFERENCE:
            return _reference()
        part, count = (
            (TRAIN, self.num_train) if split == TRAIN else (self.judged_on, self.num_held_out)
        )
        return _images(self.data_seed, part, count, self.contour_length)

    def size(self, split: str) -> int:
        """Number of images."""
        if split == TRAIN:
            return self.num_train
        return 20_000 if self.judged_on == REFERENCE else self.num_held_out

    def read(self, row: PyTree) -> Example:
        """One image; the question comes after its last pixel."""
        pixels, label = row
        shades = pixels[:, None].astype(jnp.float32) / 255
        last = jnp.array([self.seq_len - 1], jnp.int32)
        return Example((shades - 0.5) / 0.5, last, label[None].astype(jnp.int32))

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, and the more frequent answer of the images that train."""
        known, labels = self.arrays(TRAIN)[1], self.arrays(HELD_OUT)[1]
        usual, accuracy = most_frequent(known, labels)
        always = "yes" if usual else "no"
        return {
            "chance": Baseline(1 / 2, "guessing"),
            "trivial": Baseline(accuracy, f"always answering {always}"),
        }

    def provenance(self) -> str:
        """The reference images, if models are judged on them."""
        return data.provenance(["pathfinder32_ref"] if self.judged_on == REFERENCE else [])

    def describe(self) -> str:
        """Length and images."""
        judges = (
            "the reference images"
            if self.judged_on == REFERENCE
            else (f"{self.num_held_out:,} for {self.judged_on}")
        )
        return (
            f"L = {self.seq_len}, lines of {self.contour_length} dashes, {self.num_train:,} images "
            f"to train and {judges}"
        )

    def slug(self) -> str:
        """Length and dashes."""
        return f"L{self.seq_len}-contour{self.contour_length}"
