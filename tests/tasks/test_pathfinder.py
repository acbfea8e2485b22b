"""Pathfinder: drawing to the bit, the law of the random images, and the task."""

import importlib
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, TRAIN, data
from dsfjax.tasks.pathfinder import Pathfinder, drawing, snakes
from tests.tasks.conftest import MakeUp

# 20,000 images of the original program.
MEAN, STD, ZEROS, BRIGHTEST, ABOVE_200, ABOVE_60 = 20.136, 51.021, 0.6591, 2.27, 16.27, 130.5
ROWS = np.array(
    "0.6 2.0 32.1 29.1 23.9 21.3 20.9 21.7 23.1 23.4 23.7 24.0 25.1 28.8 31.9 31.4 26.8 22.9 21.7 "
    "21.2 21.0 21.2 20.1 17.8 16.6 16.7 16.8 15.8 18.7 21.1 2.9 0.2".split(),
    float,
)


def test_lines_and_sizes_are_those_of_the_drawing_library() -> None:
    images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    draw = importlib.import_module("PIL.ImageDraw")
    random = np.random.default_rng(0)
    for size, to in ((17, 9), (64, 32), (19, 7)):
        dots = (random.random((3, size, size)) < 0.2).astype(np.uint8) * 255
        shades = random.integers(0, 256, (3, size, size), np.uint8)
        for image in (*dots, *shades):
            expected = images.fromarray(image).resize((to, to), images.Resampling.LANCZOS)
            np.testing.assert_array_equal(drawing.shrink(image, to), np.asarray(expected))
    for y, x in np.ndindex(9, 9):
        image = images.new("L", (17, 17))
        draw.Draw(image).line([(8, 8), (4 + x, 4 + y)], fill=255, width=1)
        np.testing.assert_array_equal(drawing._line(17, (4 + y, 4 + x)), np.asarray(image))


def test_markers_are_drawn_anywhere() -> None:
    markers = drawing.markers().reshape(32, 32, 32, 32)
    middle = markers[10, 10, 8:13, 8:13]
    assert middle[2, 2] == 255 and (markers[10, 10] > 60).sum() == 10
    for y, x in ((6, 6), (20, 9), (25, 25)):
        np.testing.assert_array_equal(markers[y, x, y - 2 : y + 3, x - 2 : x + 3], middle)
    assert markers[0, 0].max() == 255 and not markers[0, 0, 8:, 8:].any()


def test_only_thirty_directions_survive() -> None:
    assert (np.flatnonzero(snakes._tables().survives) - 180).tolist() == list(range(-150, -120))


def test_every_paddle_obeys_the_law() -> None:
    """Replay what was drawn, one image and one paddle after the other."""
    contour = 6
    mask, drawn = snakes._targets(np.random.default_rng(3), 400, contour)
    assert 20 < len(mask) < 400
    for image in range(20):
        taken = np.ones((32, 32))
        taken[1:-1, 1:-1] = 0
        degrees = snakes._DEGREES[drawn.turn[image, :, 0]]
        angle = list(np.deg2rad(degrees))
        heads = snakes._pixel(drawn.place[image])  # of each snake and paddle
        place = heads[:, 0]
        assert np.abs(np.hypot(*(place[0] - place[1])) - 7) < 1
        pivot = [_ahead(_ahead(place[i], angle[i], 2), angle[i] + np.pi, 3) for i in range(2)]
        before = [_mask(place[i], angle[i]) for i in range(2)]
        for step in range(1, contour):
            for i in range(2):
                pivot[i] = _ahead(pivot[i], angle[i], 4)
                head = heads[i, step]
                circle = np.deg2rad(360 / (2 * np.pi * 3) * np.arange(19))
                around = np.trunc(pivot[i] + 3 * np.c_[np.sin(circle), np.cos(circle)])
                assert (around == head).all(axis=1).any()
                y, x = head
                assert taken[[y, y - 1, y + 1, y, y], [x, x, x, x - 1, x + 1]].max() < 1
                turned = np.arctan2(*(head - pivot[i]))
                assert np.cos(turned - angle[i]) > -1e-9
                new = _mask(head, turned + np.pi)
                assert (taken + new).max() < 1.8
                taken, before[i], angle[i] = np.maximum(taken, before[i]), new, turned
        taken = np.maximum(taken, before[1])
        wide = snakes._WIDE
        kept = mask[image].reshape(wide, wide)[
            snakes._PAD : -snakes._PAD, snakes._PAD : -snakes._PAD
        ]
        np.testing.assert_array_equal(kept, np.round(taken * 255))


def _ahead(pixel: np.ndarray, angle: float, distance: float) -> np.ndarray:
    return np.ceil(pixel + distance * np.array([np.sin(angle), np.cos(angle)])).astype(int)


def _mask(pixel: np.ndarray, angle: float) -> np.ndarray:
    image = np.zeros((48, 48))
    y, x = pixel + 8
    image[y - 4 : y + 5, x - 4 : x + 5] = drawing.paddles(np.array([angle]))[1][0] / 255
    return image[8:-8, 8:-8]


@pytest.mark.parametrize("count", [400, pytest.param(6_000, marks=pytest.mark.slow)])
def test_images_have_the_statistics_of_the_original_program(count: int) -> None:
    made = snakes.sample(np.random.default_rng(5), count)
    shades = made.pixels.astype(float)

    def near(values: np.ndarray, expected: Any, exact: float = 0.0) -> None:
        """Within 4 standard errors of both samples, and 2 % where there are enough images."""
        off = np.abs(values.mean(axis=0) - expected)
        error = values.std(axis=0) * np.sqrt(1 / count + 1 / 20_000)
        assert (off < 4 * error + exact).all()
        assert count < 5_000 or off.sum() < 0.02 * np.sum(expected)

    near(shades.mean(axis=(1, 2)), MEAN)
    near(np.square(shades).mean(axis=(1, 2)), STD**2 + MEAN**2)
    near((shades == 0).mean(axis=(1, 2)) * 100, ZEROS * 100)
    near((shades == 255).sum(axis=(1, 2)), BRIGHTEST, 0.005)
    near((shades > 200).sum(axis=(1, 2)), ABOVE_200)
    near((shades > 60).sum(axis=(1, 2)), ABOVE_60)
    near(shades.mean(axis=2), ROWS, 0.05)
    near(made.labels, 0.5)
    # Shares of 0 to 4 distractors among 300 images of another implementation.
    shares = np.array([0.23, 0.48, 0.22, 0.05, 0.01])
    found = (made.distractors[:, None] == np.arange(5)).mean(axis=0)
    assert (np.abs(found - shares) < 4 * np.sqrt(found * (1 / count + 1 / 300)) + 0.005).all()


@pytest.mark.slow
@pytest.mark.usefixtures("data_dir")
def test_no_linear_map_tells_our_images_from_the_original_ones() -> None:
    theirs, labels = tasks.get("pathfinder", judged_on="reference").arrays(HELD_OUT)
    assert theirs.shape == (20_000, 1024) and abs(labels.mean() - 0.4954) < 1e-4
    made = snakes.sample(np.random.default_rng(6), 5_000)

    def features(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Shades, coarse images, and what neighbours have in common; all of them by label."""
        images = pixels.reshape(-1, 32, 32).astype(np.float32)
        edges = [1, 2, 3, 5, 10, 30, 60, 90, 110, 125, 135, 140, 150, 160, 180, 200, 220, 255]
        shades = np.stack([(images >= edge).mean(axis=(1, 2)) for edge in edges], axis=1)
        coarse = images.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64) / 255
        dark = images > 60
        pairs = [
            (dark[:, 3:-3, 3:-3] & np.roll(dark, (y, x), (1, 2))[:, 3:-3, 3:-3]).mean(axis=(1, 2))
            for y in range(4)
            for x in range(-3, 4)
        ]
        found = np.concatenate([shades, coarse, np.stack(pairs, axis=1)], axis=1)
        sign = 2.0 * labels[:, None] - 1
        return np.concatenate([found, found * sign, sign, np.ones_like(sign)], axis=1)

    x = np.concatenate(
        [features(made.pixels, made.labels), features(theirs[:5_000], labels[:5_000])]
    )
    y = np.repeat([1.0, -1.0], 5_000)
    weights = np.linalg.lstsq(x[::2], y[::2], rcond=None)[0]
    right = (np.sign(x[1::2] @ weights) == y[1::2]).mean()
    assert abs(right - 0.5) < 4 * 0.5 / 5_000**0.5


def test_parts_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("dsfjax.tasks.pathfinder.contours")
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_AT_ONCE", 8)
    monkeypatch.setattr(module, "_KEPT", 1)
    monkeypatch.setattr(module, "sample", sample := Interrupted(2))
    task = tasks.get("pathfinder", contour_length=6, num_train=20, data_seed=91)
    with pytest.raises(KeyboardInterrupt):
        task.arrays(TRAIN)
    assert sample.counts == [8, 8]
    sample.left = 10
    pixels, labels = task.arrays(TRAIN)
    assert sample.counts == [8, 8, 8, 4]  # the first part was not drawn again
    assert len(np.unique(pixels, axis=0)) == len(labels) == 20
    other = tasks.get("pathfinder", contour_length=6, num_train=16, data_seed=91)
    np.testing.assert_array_equal(other.arrays(TRAIN)[0], pixels[:16])


class Interrupted:
    """`sample` that is interrupted in one of its calls."""

    def __init__(self, left: int) -> None:
        self.left, self.counts = left, []

    def __call__(self, random: np.random.Generator, count: int, **own: int) -> snakes.Images:
        self.counts.append(count)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return snakes.sample(random, count, **own)


def test_the_task(made_up: MakeUp) -> None:
    smoke = dict(tasks.kind("pathfinder").presets["smoke"].settings)
    task = Pathfinder(**smoke)
    assert task.title == "Pathfinder-32 regenerated with LRA's parameters, seed 0"
    pixels, labels = task.arrays(HELD_OUT)
    batch = jax.jit(jax.vmap(task.read))((pixels, labels))
    np.testing.assert_allclose(batch.inputs[..., 0], pixels / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch.targets[:, 0], labels)
    assert (batch.query_positions == 1023).all()
    others = tasks.get("pathfinder", **smoke, judged_on="validation").arrays(HELD_OUT)[0]
    rows = np.concatenate([task.arrays(TRAIN)[0], pixels, others])
    assert len(np.unique(rows, axis=0)) == 16 + 8 + 8

    def npy(array: np.ndarray) -> bytes:
        np.save(file := io.BytesIO(), array)
        return file.getvalue()

    module = importlib.import_module("dsfjax.tasks.pathfinder.contours")
    x, y = module._FILES
    made_up({x: npy(pixels.reshape(-1, 32, 32)), y: npy(labels)})
    module._reference.cache_clear()
    judged = tasks.get("pathfinder", **smoke, judged_on="reference")
    np.testing.assert_array_equal(judged.arrays(HELD_OUT)[0], pixels)
    assert "pathfinder32_ref" in judged.provenance() and not task.provenance()
    module._reference.cache_clear()
    made_up({x: npy(pixels), y: npy(labels)})
    with pytest.raises(data.DataError, match="bytes of shape \\(8, 32, 32\\)"):
        judged.arrays(HELD_OUT)


def test_options_that_cannot_be() -> None:
    for own, words in (
        ({"contour_length": 10}, "one of \\(14, 9, 6\\), got 10"),
        ({"num_train": 0}, "num_train and num_held_out of at least 1, got 0 and 20000"),
        ({"judged_on": "dev"}, "unknown judged_on 'dev'.* Known: test, validation, reference"),
        ({"judged_on": "reference", "contour_length": 6}, "contour_length=14, which"),
    ):
        with pytest.raises(ValueError, match=words):
            tasks.get("pathfinder", **own)
