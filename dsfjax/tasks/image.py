"""Images read pixel by pixel: sequential CIFAR-10 in grey, sequential and permuted MNIST.

One pixel, a number, is one step; rows of the image follow each other. The splits and constants are
those of S4 and S5.

References:
    Tay et al. (2021), arXiv:2011.04006 (Long Range Arena). Gu et al. (2022), arXiv:2111.00396 (S4).
    Smith et al. (2023), arXiv:2208.04933 (S5). Le et al. (2015), arXiv:1504.00941 (MNIST).
"""

import abc
import dataclasses
import functools
import hashlib
import io
import logging
import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree, UInt8

from dsfjax._util.names import choose
from dsfjax.tasks import data, published
from dsfjax.tasks.data.splits import TEST, VALIDATION, least_squares, most_frequent, rows_of
from dsfjax.tasks.protocol import HELD_OUT, Baseline, Example, Preset, option
from dsfjax.tasks.supply import Resident

NUM_CLASSES = 10

_log = logging.getLogger("dsfjax")
_MNIST = "mnist/train-images-idx3-ubyte", "mnist/train-labels-idx1-ubyte"
_MNIST_TEST = "mnist/t10k-images-idx3-ubyte", "mnist/t10k-labels-idx1-ubyte"
_CIFAR = "cifar10_jpeg75/cifar10_jpeg75.npz"
# Grey pixels as Pillow 13 with libjpeg-turbo 3.2 decodes them; others may differ by a level or two.
_GREY = {
    "train": "51f006db914c21dfc1119dd9a64e1172c0f0f88431afcc787eea360b8bf4d859",
    "test": "cffa6ff0ce0beab7e446cd7ca0f551df9233f2b00bc68eca7a821bc94cd98232",
}


def _mnist(read: data.Read) -> Mapping[str, np.ndarray]:
    """Images and labels of the four idx files, each with a header of big-endian integers."""
    found = {}
    for part, paths in (("train", _MNIST), ("test", _MNIST_TEST)):
        for kind, path in zip(("images", "labels"), paths, strict=True):
            content, dims = read(path), 3 if kind == "images" else 1
            head = np.frombuffer(content[: 4 * (dims + 1)], ">i4")
            data.expect(
                len(head) == dims + 1 and head[0] == 0x0800 + dims,
                path,
                f"an idx file of bytes with {dims} dimensions",
                f"a header of {content[:4].hex() or 'nothing'}",
            )
            shape = tuple(int(n) for n in head[1:])
            whole = f"{math.prod(shape):,} values"
            body = np.frombuffer(content, np.uint8, offset=4 * (dims + 1))
            data.expect(len(body) == math.prod(shape), path, whole, f"{len(body):,}")
            _check_rows(path, shape[0])
            found[f"{part}_{kind}"] = body.reshape(shape)
        images, labels = found[f"{part}_images"], found[f"{part}_labels"]
        data.expect(len(labels) == len(images), paths[1], f"{len(images):,} labels", len(labels))
        _check_labels(paths[1], labels)
    return found


def _mnist_from_tfds(records: data.Records) -> Mapping[str, np.ndarray]:
    found = {}
    for part in ("train", "test"):
        rows = list(records(part))
        found[f"{part}_images"] = np.stack([row["image"][..., 0] for row in rows])
        found[f"{part}_labels"] = np.array([row["label"] for row in rows], np.uint8)
    return found


def _cifar10(read: data.Read) -> Mapping[str, np.ndarray]:
    """Grey pixels of JPEG images that share one header."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise data.MissingDataError(
            f"data: {_CIFAR}: expected Pillow to be installed, which reads JPEG, got none "
            f"({error}); pip install 'dsfjax[data]'."
        ) from error
    names = [f"{part}_{kind}" for part in _GREY for kind in ("scan", "offset", "label")]
    arrays = data.arrays_of(read(_CIFAR), _CIFAR, "jpeg_header", *names)
    head, found = arrays["jpeg_header"].tobytes(), {}
    for part, expected in _GREY.items():
        scan, labels = arrays[f"{part}_scan"].tobytes(), arrays[f"{part}_label"]
        ends = arrays[f"{part}_offset"].tolist()
        _check_labels(_CIFAR, labels)
        data.expect(len(ends) == len(labels) + 1, _CIFAR, f"{len(labels)} images", len(ends) - 1)
        images = np.empty((len(labels), 32, 32), np.uint8)
        for i in range(len(labels)):
            jpeg = head + scan[ends[i] : ends[i + 1]] + b"\xff\xd9"
            try:
                image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))
            except OSError as error:
                data.expect(False, f"{_CIFAR}, {part} image {i}", "a JPEG image", f"none ({error})")
                raise
            data.expect(image.shape == (32, 32), _CIFAR, "32 × 32 pixels", image.shape)
            images[i] = image
        if hashlib.sha256(images.tobytes()).hexdigest() != expected:
            _log.warning("cifar10: this machine decodes the %s images a little differently", part)
        found |= {f"{part}_images": images, f"{part}_labels": labels}
    _check_rows(_CIFAR, len(found["train_labels"]) + len(found["test_labels"]))
    return found


def _cifar10_from_tfds(records: data.Records) -> Mapping[str, np.ndarray]:
    """Grey pixels as Pillow makes them (ITU-R 601-2), in the official order, which ids give."""
    found = {}
    for part in ("train", "test"):
        rows = sorted(records(part), key=lambda row: bytes(row["id"]))
        weighted = [row["image"].astype(np.uint32) @ [19595, 38470, 7471] for row in rows]
        found[f"{part}_images"] = (np.stack(weighted) + 32768 >> 16).astype(np.uint8)
        found[f"{part}_labels"] = np.array([row["label"] for row in rows], np.uint8)
    return found


def _check_rows(path: str, got: int) -> None:
    declared = data.file_of(path).rows
    data.expect(declared in (None, got), path, f"{declared or 0:,} images", f"{got:,}")


def _check_labels(path: str, labels: np.ndarray) -> None:
    data.expect(labels.max(initial=0) < NUM_CLASSES, path, "labels below 10", labels.max(initial=0))


MNIST_PIXELS = data.register(
    data.Preparation("mnist", "mnist", (*_MNIST, *_MNIST_TEST), _mnist, from_tfds=_mnist_from_tfds)
)
CIFAR10_PIXELS = data.register(
    data.Preparation("cifar10_grey", "cifar10", (_CIFAR,), _cifar10, from_tfds=_cifar10_from_tfds)
)


@dataclasses.dataclass(frozen=True)
class Images(Resident):
    """What the image tasks have in common.

    Args:
        pool: Side of the squares of pixels that are averaged into one.
        judged_on: "test" or "validation": what is held out.
        source: "files" of the data folder, or "tfds", what tensorflow-datasets wrote there.

    Raises:
        ValueError: If an option has another value.
    """

    pool: int = option(1, "Side of the squares of pixels that are averaged into one: 1, 2 or 4.")
    judged_on: str = option(TEST, "What models are judged on: test or validation.")
    source: str = option(data.FILES, "Where the images come from: files, or tfds.")

    demands = ("smoothing", "classification")
    channels = 1
    num_classes = NUM_CLASSES
    preparation: ClassVar[data.Preparation]
    side: ClassVar[int]
    trains_on_validation: ClassVar[bool] = True
    """Whether the images for validation train where models are judged on the test split."""

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.pool not in (1, 2, 4):
            raise ValueError(f"{kind}: expected pool to be 1, 2 or 4, got {self.pool}.")
        choose("judged_on", self.judged_on, (TEST, VALIDATION))
        choose("source", self.source, self.preparation.sources)

    @property
    def seq_len(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Pixels of an image."""
        return (self.side // self.pool) ** 2

    @property
    @abc.abstractmethod
    def totals(self) -> tuple[int, int]:
        """Images of the training and of the test split of the files."""

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it is, and what was done to the images."""
        width = self.side // self.pool
        reduced = f", reduced to {width} × {width} pixels" if self.pool > 1 else ""
        return f"{self.original}{reduced}"

    @property
    @abc.abstractmethod
    def original(self) -> str:
        """The title without what `pool` does."""

    def rows(self, split: str) -> tuple[str, Int[np.ndarray, " rows"]]:
        """The part of the files that a split comes from, and its rows there."""
        apart = not self.trains_on_validation
        return rows_of(split == HELD_OUT, self.judged_on, *self.totals, apart=apart)

    def size(self, split: str) -> int:
        """Images of a split."""
        return len(self.rows(split)[1])

    def arrays(self, split: str) -> PyTree:
        """Pixels, one byte each, and labels."""
        part, rows = self.rows(split)
        found = self.preparation.arrays(self.source)
        images, labels = found[f"{part}_images"], found[f"{part}_labels"]
        total = self.totals[part == "test"]
        if len(images) != total:
            raise data.DataError(
                f"data: {self.preparation.name}: expected {total:,} images in split {part!r}, got "
                f"{len(images):,}; get the data set again."
            )
        return self._ordered(_pooled(images[rows], self.pool)), labels[rows]

    def _ordered(self, images: UInt8[np.ndarray, "n side side"]) -> UInt8[np.ndarray, "n l"]:
        return images.reshape(len(images), -1)

    def scaled(self, pixels: PyTree) -> PyTree:
        """Pixels as float32 in the scale of the literature."""
        return pixels.astype(jnp.float32) / 255

    def read(self, row: PyTree) -> Example:
        """One image."""
        image, label = row
        last = jnp.array([self.seq_len - 1], jnp.int32)
        return Example(self.scaled(image)[:, None], last, label[None].astype(jnp.int32))

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, the most frequent class, and a linear map of all pixels by least squares."""

        def make() -> dict[str, np.ndarray]:
            (seen, known), (images, labels) = self.arrays("train"), self.arrays(HELD_OUT)
            _, trivial = most_frequent(known, labels)
            linear = least_squares(
                seen.astype(np.float32) / 255, known, images.astype(np.float32) / 255, labels
            )
            return {"scores": np.array([trivial, linear])}

        # The order of the pixels does not matter, so the key does not contain it.
        key = (1, self.preparation.key(self.source), self.pool, self.judged_on)
        trivial, linear = data.cached(f"{self.preparation.name}-baselines", key, make)["scores"]
        return {
            "chance": Baseline(1 / NUM_CLASSES, "guessing among the ten classes"),
            "trivial": Baseline(float(trivial), "always naming the most frequent class"),
            "linear": Baseline(float(linear), "least squares on all pixels at once"),
        }

    def provenance(self) -> str:
        """The files, or the version of tensorflow-datasets' data."""
        return self.preparation.provenance(self.source)

    def describe(self) -> str:
        """Length, classes and examples."""
        return (
            f"L = {self.seq_len}, {NUM_CLASSES} classes, {self.size('train'):,} images to train "
            f"and {self.size(HELD_OUT):,} for {self.judged_on}"
        )


def _pooled(images: UInt8[np.ndarray, "n h w"], pool: int) -> UInt8[np.ndarray, "n k k"]:
    """Means of squares, rounded to whole levels, halves up."""
    if pool == 1:
        return images
    n, h, w = images.shape
    blocks = images.reshape(n, h // pool, pool, w // pool, pool)
    sums = blocks.sum(axis=(2, 4), dtype=np.uint16)
    return ((sums + pool**2 // 2) // pool**2).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Cifar10(Images):
    """Which of ten objects an image of 32 × 32 grey pixels shows: the Image task of LRA.

    Grey levels as Pillow makes them (ITU-R 601-2), then (x/255 − 122.6/255) / (61/255). 45,000
    images train; 5,000, drawn with seed 42 as in S4, are for validation; 10,000 for testing. There
    is no augmentation.

    The files are a copy that was compressed to JPEG of quality 75, which loses detail, and the
    title says so. ``source="tfds"`` reads the original from tensorflow-datasets.

    Example:
        >>> task = Cifar10(pool=2)
        >>> task.title
        'CIFAR-10 in grey, pixel by pixel (JPEG q75 copy), reduced to 16 × 16 pixels'
        >>> task.describe()
        'L = 256, 10 classes, 45,000 images to train and 10,000 for test'
    """

    preparation = CIFAR10_PIXELS
    side = 32
    trains_on_validation = False
    data_sets = ("cifar10",)
    presets: ClassVar = {
        "demo": Preset(settings={"pool": 4, "eval_examples": 1000}),
        "smoke": Preset(settings={"pool": 4}),
        "paper": published.LRA["cifar10"],
    }

    @property
    def totals(self) -> tuple[int, int]:
        """Five sixths of all images are the training split."""
        whole = data.file_of(_CIFAR).rows or 0
        return whole * 5 // 6, whole // 6

    @property
    def original(self) -> str:
        """The title."""
        copy = " (JPEG q75 copy)" if self.source == data.FILES else ""
        return f"CIFAR-10 in grey, pixel by pixel{copy}"

    def scaled(self, pixels: PyTree) -> PyTree:
        """Pixels with about mean 0 and variance 1."""
        return (super().scaled(pixels) - 122.6 / 255) / (61 / 255)


@dataclasses.dataclass(frozen=True)
class Mnist(Images):
    """Which digit an image of 28 × 28 pixels shows, read row by row; pixels divided by 255.

    60,000 images train and 10,000 are for testing. ``judged_on="validation"`` holds a tenth of the
    training images out instead.

    Example:
        >>> Mnist().describe()
        'L = 784, 10 classes, 60,000 images to train and 10,000 for test'
        >>> Mnist(pool=2, judged_on="validation").describe()
        'L = 196, 10 classes, 54,000 images to train and 6,000 for validation'
    """

    preparation = MNIST_PIXELS
    side = 28
    data_sets = ("mnist",)
    presets: ClassVar = {
        "demo": Preset(settings={"pool": 2, "eval_examples": 1000, "learning_rates": (4e-3,)}),
        "smoke": Preset(settings={"pool": 4}),
        "paper": published.LRA["mnist"],
    }

    @property
    def totals(self) -> tuple[int, int]:
        """As the files declare."""
        return data.file_of(_MNIST[0]).rows or 0, data.file_of(_MNIST_TEST[0]).rows or 0

    @property
    def original(self) -> str:
        """The title."""
        return "MNIST, pixel by pixel"


@dataclasses.dataclass(frozen=True)
class PermutedMnist(Mnist):
    """MNIST with the pixels in an order that is the same for all images and not the image's.

    Args:
        order: "bit_reversal": pixel i comes at the place whose number has the bits of i reversed,
            as in S4 and S5. "random": ``numpy.random.RandomState(92916).permutation(784)``, as in
            other papers.

    Raises:
        ValueError: For another order.

    Example:
        >>> PermutedMnist().pixel_order[:5].tolist()
        [0, 512, 256, 768, 128]
    """

    order: str = option("bit_reversal", "Order of the pixels: bit_reversal or random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("order", self.order, ("bit_reversal", "random"))

    @property
    def original(self) -> str:
        """The title."""
        how = "bit-reversed" if self.order == "bit_reversal" else "permuted at random"
        return f"MNIST, pixel by pixel, {how}"

    @property
    def pixel_order(self) -> Int[np.ndarray, " l"]:
        """For each step the number of its pixel, counted row by row."""
        return _order(self.order, self.seq_len)

    def _ordered(self, images: UInt8[np.ndarray, "n side side"]) -> UInt8[np.ndarray, "n l"]:
        return super()._ordered(images)[:, self.pixel_order]


@functools.cache
def _order(name: str, size: int) -> Int[np.ndarray, " size"]:
    if name == "random":
        return np.random.RandomState(92916).permutation(size)
    bits = (size - 1).bit_length()
    reversed_bits = np.zeros(2**bits, int)
    for bit in range(bits):
        reversed_bits |= (np.arange(2**bits) >> bit & 1) << (bits - 1 - bit)
    return reversed_bits[reversed_bits < size]
