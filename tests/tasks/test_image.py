"""Images pixel by pixel: from files of their formats, and from the user's own."""

import io
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, TRAIN, data, image
from dsfjax.tasks.data.splits import divided, permutation
from tests.tasks.conftest import MakeUp
from tests.tasks.test_contract import check

TRAIN_FILES, TEST_FILES = image._MNIST, image._MNIST_TEST
CIFAR = image._CIFAR


def _idx(array: np.ndarray) -> bytes:
    head = np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def _digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of which the first pixel numbers them."""
    images = np.arange(count * 784).reshape(count, 28, 28) % 251
    images[:, 0, 0] = np.arange(count)
    return images.astype(np.uint8), (np.arange(count) % 10).astype(np.uint8)


def _mnist_files() -> dict[str, bytes]:
    found = {}
    for (images, labels), count in ((TRAIN_FILES, 40), (TEST_FILES, 20)):
        x, y = _digits(count)
        found |= {images: _idx(x), labels: _idx(y)}
    return found


def _rows(train: int, test: int) -> dict[str, int]:
    return {path: train if path in TRAIN_FILES else test for path in (*TRAIN_FILES, *TEST_FILES)}


def test_mnist_of_made_up_files(made_up: MakeUp) -> None:
    made_up(_mnist_files(), _rows(40, 20))
    task = tasks.get("mnist")
    check("mnist", task)
    (seen, labels), (images, answers) = task.arrays(TRAIN), task.arrays(HELD_OUT)
    x, y = _digits(40)
    assert seen.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(seen, x.reshape(40, 784))
    np.testing.assert_array_equal(labels, y)
    assert images[:, 0].tolist() == permutation(0, 20).tolist()  # shuffled, the labels with them
    np.testing.assert_array_equal(answers, images[:, 0] % 10)
    one = task.read((seen[3], labels[3]))  # type: ignore[attr-defined]
    np.testing.assert_allclose(one.inputs[:, 0], x[3].ravel() / 255, rtol=1e-6)
    assert (one.query_positions.tolist(), one.targets.tolist()) == ([783], [3])

    validated = tasks.get("mnist", judged_on="validation")
    kept, held = (validated.arrays(split)[0][:, 0].tolist() for split in (TRAIN, HELD_OUT))
    assert sorted(kept + held) == list(range(40)) and len(held) == 4
    assert validated.provenance().startswith("mnist/train-images-idx3-ubyte sha256:")

    order = tasks.get("permuted_mnist", pool=1)
    np.testing.assert_array_equal(order.arrays(TRAIN)[0], seen[:, order.pixel_order])  # type: ignore[attr-defined]
    random = tasks.get("permuted_mnist", order="random")
    assert sorted(random.pixel_order) == list(range(784))  # type: ignore[attr-defined]
    assert random.title == "MNIST, pixel by pixel, permuted at random"


def test_pooling_rounds_means_of_squares(made_up: MakeUp) -> None:
    made_up(_mnist_files(), _rows(40, 20))
    task = tasks.get("mnist", pool=4)
    assert task.title == "MNIST, pixel by pixel, reduced to 7 × 7 pixels" and task.seq_len == 49
    found, x = task.arrays(TRAIN)[0], _digits(40)[0].astype(float)
    mean = x[7, 4:8, 8:12].mean()
    assert found.dtype == np.uint8 and found[7, 7 + 2] == np.floor(mean + 0.5)


def test_bad_mnist_files(made_up: MakeUp) -> None:
    good, path = _mnist_files(), TRAIN_FILES[0]
    for content, message in [
        (b"", f"{path}: expected an idx file of bytes with 3 dimensions, got a header of nothing"),
        (b"P5" + good[path][2:], "an idx file of bytes with 3 dimensions, got a header of 5035"),
        (good[path][:-5], "expected 31,360 values, got 31,355; get it from"),
        (_idx(_digits(39)[0]), "expected 40 images, got 39"),
    ]:
        made_up(good | {path: content}, _rows(40, 20))
        with pytest.raises(data.DataError, match=message):
            tasks.get("mnist").arrays(TRAIN)
    made_up(good | {TRAIN_FILES[1]: _idx(np.full(40, 11))}, _rows(40, 20))
    with pytest.raises(data.DataError, match="labels-idx1-ubyte: expected labels below 10, got 11"):
        tasks.get("mnist").arrays(TRAIN)


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="Mnist: expected pool to be 1, 2 or 4, got 3"):
        tasks.get("mnist", pool=3)
    with pytest.raises(ValueError, match="unknown judged_on 'tset'; did you mean 'test'"):
        tasks.get("cifar10", judged_on="tset")
    with pytest.raises(ValueError, match="unknown order 'bits'; did you mean 'bit_reversal'"):
        tasks.get("permuted_mnist", order="bits")
    with pytest.raises(ValueError, match="unknown source 'tdfs'; did you mean 'tfds'"):
        tasks.get("mnist", source="tdfs")


def _cifar_file(levels: np.ndarray, count: int) -> bytes:
    """Images of one level each, as JPEG with a header that all share, 5/6 of them to train."""
    pillow = pytest.importorskip("PIL.Image")
    head, scans = b"", []
    for level in levels:
        file = io.BytesIO()
        pillow.fromarray(np.full((32, 32, 3), level, np.uint8)).save(file, "JPEG", quality=75)
        jpeg = file.getvalue()
        start = jpeg.index(b"\xff\xda")
        start += 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        head = jpeg[:start]
        scans.append(np.frombuffer(jpeg[start:-2], np.uint8))
    arrays: dict[str, Any] = {"jpeg_header": np.frombuffer(head, np.uint8)}
    for part, own in (("train", slice(count * 5 // 6)), ("test", slice(count * 5 // 6, None))):
        ends = np.cumsum([0, *(len(scan) for scan in scans[own])])
        arrays |= {
            f"{part}_scan": np.concatenate(scans[own]),
            f"{part}_offset": ends.astype(np.uint32),
            f"{part}_label": (levels[own] % 10).astype(np.uint8),
        }
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_cifar10_of_a_made_up_file(made_up: MakeUp, caplog: pytest.LogCaptureFixture) -> None:
    levels = np.arange(60) * 4
    content = _cifar_file(levels, 60)
    made_up({CIFAR: content}, {CIFAR: 60})
    task = tasks.get("cifar10", judged_on="validation")
    (images, _), baselines = task.arrays(TRAIN), task.baselines()
    assert images.shape == (45, 1024) and 0 <= baselines["linear"].score <= 1
    assert "decodes the train images a little differently" in caplog.text
    seen, validation = divided(50)
    for split, rows in ((TRAIN, seen), (HELD_OUT, validation)):
        images, labels = task.arrays(split)
        assert abs(images.astype(int) - levels[rows][:, None]).max() <= 1
        np.testing.assert_array_equal(labels, levels[rows] % 10)
    assert tasks.get("cifar10").size(TRAIN) == 45  # also where models are judged on the test split
    assert sorted(tasks.get("cifar10").arrays(HELD_OUT)[1]) == sorted(levels[50:] % 10)
    pixels = np.asarray(task.scaled(np.array([0, 255], np.uint8)))  # type: ignore[attr-defined]
    np.testing.assert_allclose(pixels, [-122.6 / 61, (255 - 122.6) / 61], rtol=1e-6)

    made_up({CIFAR: _cifar_file(levels[:12], 12)}, {CIFAR: 60})
    with pytest.raises(data.DataError, match="expected 60 images, got 12; its images are at"):
        tasks.get("cifar10").arrays(TRAIN)
    broken = dict(np.load(io.BytesIO(content)).items())
    broken["jpeg_header"] = broken["jpeg_header"][20:]
    np.savez(file := io.BytesIO(), **broken)
    made_up({CIFAR: file.getvalue()}, {CIFAR: 60})
    with pytest.raises(data.DataError, match="npz, train image 0: expected a JPEG image, got none"):
        tasks.get("cifar10").arrays(TRAIN)


def test_what_jpeg_needs_is_named(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up({CIFAR: b"x"}, {CIFAR: 60})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(data.MissingDataError, match=r"Pillow .* pip install 'dsfjax\[data\]'"):
        tasks.get("cifar10").arrays(TRAIN)


def test_images_of_tensorflow_datasets() -> None:
    rows = [
        {"image": np.full((32, 32, 3), [r, 0, 255], np.uint8), "label": r % 10, "id": b"x_%05d" % r}
        for r in (3, 1, 2)
    ]
    found = image._cifar10_from_tfds(lambda split: rows)
    grey = (19595 * np.array([1, 2, 3]) + 7471 * 255 + 32768) >> 16
    assert found["train_images"][:, 5, 5].tolist() == grey.tolist()  # in the order of the ids
    assert found["test_labels"].tolist() == [1, 2, 3]
    digit = [{"image": np.full((28, 28, 1), 9, np.uint8), "label": 4}]
    found = image._mnist_from_tfds(lambda split: digit)
    assert found["train_images"].shape == (1, 28, 28) and found["test_labels"].tolist() == [4]


@pytest.mark.slow
def test_the_users_own_images(data_dir: Path) -> None:
    del data_dir
    task = tasks.get("mnist")
    (seen, labels), (_, answers) = task.arrays(TRAIN), task.arrays(HELD_OUT)
    assert seen.shape == (60_000, 784) and labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(answers).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert round(seen.mean() / 255, 4) == 0.1307
    assert abs(task.baselines()["linear"].score - 0.860) < 0.002
    pytest.importorskip("PIL")
    task = tasks.get("cifar10")
    (seen, labels), (images, answers) = task.arrays(TRAIN), task.arrays(HELD_OUT)
    assert seen.shape == (45_000, 1024) and images.shape == (10_000, 1024)
    assert np.bincount(answers).tolist() == [1000] * 10
    inputs = jax.vmap(task.read)((seen[:2000], labels[:2000])).inputs  # type: ignore[attr-defined]
    assert abs(inputs.mean()) < 0.03 and abs(inputs.std() - 1) < 0.03
