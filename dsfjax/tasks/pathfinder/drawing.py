r"""How paddles and markers look: lines and discs of twice the size, made smaller by Lanczos.

The published images were made with a drawing library whose resizing works on bytes. Its arithmetic
is repeated here with integers, so that images are the same to the bit without that library: for
:math:`n \to m` pixels and :math:`s = n/m`, output pixel :math:`i` is the mean of the inputs
:math:`x` with weights

.. math:: L\!\left(\frac{x + 1/2 - (i + 1/2)\,s}{s}\right), \qquad
   L(t) = \mathrm{sinc}(t)\,\mathrm{sinc}(t/3) \text{ for } |t| < 3,

rounded to multiples of :math:`2^{-22}`; first along the rows, then along the columns, and after
each of them rounded and clipped to bytes. Clipping cuts the kernel's negative lobes; its positive
ones leave the faint rings that a third of all pixels of an image are.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float, Int, UInt8

SIZE = 32
"""Pixels along a side of an image."""

REACH = 4
"""A paddle is drawn on a square of 2 · 4 + 1 pixels around its start."""

LENGTH, MARKER_RADIUS = 2, 1.5
_SCALE = 2  # lines and discs are drawn at twice the size
_BITS = 22


def direction(angle: Float[np.ndarray, "*a"]) -> Float[np.ndarray, "*a 2"]:
    """(sin, cos): a step of 1 along each angle, y before x.

    Args:
        angle: Angles in radians.
    """
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


@functools.cache
def _kernel(size: int, to: int) -> Int[np.ndarray, "to size"]:
    """Weights of the inputs in every output pixel, in units of 2⁻²²."""
    scale = size / to
    weights = np.zeros((to, size), np.int64)
    for i in range(to):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - 3 * scale + 0.5))
        last = min(size, int(centre + 3 * scale + 0.5))
        t = (np.arange(first, last) - centre + 0.5) / scale
        lanczos = np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0.0)
        share = lanczos / lanczos.sum() * 2**_BITS
        weights[i, first:last] = np.trunc(share + np.copysign(0.5, share))
    return weights


def shrink(images: UInt8[np.ndarray, "*a n n"], to: int) -> UInt8[np.ndarray, "*a to to"]:
    """Images of another size, by Lanczos's kernel on bytes.

    Args:
        images: Square images.
        to: Pixels along a side of the result.

    Example:
        >>> shrink(np.array([[0, 255, 255, 0]] * 4, np.uint8), 2).tolist()
        [[154, 154], [154, 154]]
    """
    weights, half = _kernel(images.shape[-1], to), 1 << (_BITS - 1)
    rows = (images.astype(np.int64) @ weights.T + half) >> _BITS
    columns = (weights @ np.clip(rows, 0, 255) + half) >> _BITS
    return np.clip(columns, 0, 255).astype(np.uint8)


def _line(side: int, end: tuple[int, int]) -> UInt8[np.ndarray, "side side"]:
    """A line of one pixel's width from the middle of a square to a point, by Bresenham's rule."""
    image = np.zeros((side, side), np.uint8)
    at = [side // 2, side // 2]
    step = [1 if end[k] >= at[k] else -1 for k in range(2)]
    far = [abs(end[k] - at[k]) for k in range(2)]
    long, short = (1, 0) if far[1] > far[0] else (0, 1)
    error = 2 * far[short] - far[long]
    for _ in range(far[long]):
        image[at[0], at[1]] = 255
        if error >= 0:
            at[short] += step[short]
            error -= 2 * far[long]
        error += 2 * far[short]
        at[long] += step[long]
    image[end] = 255
    return image


def disc(radius: int) -> list[tuple[int, int]]:
    """The points (y, x) with y² + x² ≤ r².

    Args:
        radius: r.
    """
    around = range(-radius, radius + 1)
    return [(y, x) for y in around for x in around if y * y + x * x <= radius * radius]


def dilate(images: UInt8[np.ndarray, "*a n n"], radius: int) -> UInt8[np.ndarray, "*a n n"]:
    """The largest value within a disc around every pixel.

    Args:
        images: Square images.
        radius: Radius of the disc.
    """
    n = images.shape[-1]
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(radius, radius)] * 2)
    shifted = [
        padded[..., radius + y : radius + y + n, radius + x : radius + x + n]
        for y, x in disc(radius)
    ]
    return np.max(shifted, axis=0)


def paddles(
    angles: Float[np.ndarray, " a"],
) -> tuple[UInt8[np.ndarray, "a 9 9"], UInt8[np.ndarray, "a 9 9"]]:
    """Ink and mask of paddles: short lines from the middle of a square.

    Args:
        angles: Their directions, in radians.

    Returns:
        What is drawn, and what others must keep away from, both 0 to 255.
    """
    half = REACH * _SCALE
    side = 2 * half + 1
    ends = np.ceil(half + LENGTH * _SCALE * direction(angles)).astype(int)
    lines = np.stack([_line(side, (int(y), int(x))) for y, x in ends])
    return shrink(lines, 2 * REACH + 1), shrink(dilate(lines, 2), 2 * REACH + 1)


@functools.cache
def markers() -> UInt8[np.ndarray, "1024 32 32"]:
    """The image of a marker at every pixel, row by row: a disc, 0 to 255."""
    side, radius = SIZE * _SCALE, math.floor(MARKER_RADIUS * _SCALE)
    large = np.zeros((SIZE * SIZE, side + 2 * radius, side + 2 * radius), np.uint8)
    for y, x in disc(radius):
        for i in range(SIZE):
            for j in range(SIZE):
                large[i * SIZE + j, radius + _SCALE * i + y, radius + _SCALE * j + x] = 255
    return shrink(large[:, radius : radius + side, radius : radius + side], SIZE)
