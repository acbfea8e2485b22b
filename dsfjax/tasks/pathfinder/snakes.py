r"""Random Pathfinder images by the law of Long Range Arena's 32 × 32 set, thousands at a time.

Two target snakes, of 14 paddles each in the set called "hard", grow from the middle of the image in
turn. Then up to five short distractors are added. Two markers are drawn at the ends of one snake
(label 1), or at the beginning of one and the end of the other (label 0).

*A snake* has a pivot p and a direction θ. Its next pivot lies 4 pixels further. The next head is
one of the pixels on a circle of radius 3 around that pivot, drawn with weights
:math:`\cos^2 δ\,(1 - D)`, where δ is the turn and D is the mask M of what has been drawn, dilated.
Its paddle is drawn from the head backwards, and is accepted if M plus its own mask stays below 1.8;
three tries. Only then does the *previous* paddle of the snake enter M: the newest does one step
later.

*The first paddle* has a random direction in whole degrees, and a tail drawn from the pixels where
it would touch nothing. The published program asks this of a map that it makes with a stencil whose
anchor lies next to it. Where that stencil does not contain its anchor, some pixels of the map are
minus infinity, and the program takes the map for full. Only directions from −150° to −121° survive.
This is why images hold about one distractor and not five; it is kept.

*How it is drawn.* Masks are bytes: all comparisons are exact. Targets that fail start again, so all
images that still succeed take a step together, and those that fail are dropped: the ones that reach
the end have the law's distribution. Since a direction that does not survive only means another
start, the first one of the targets is drawn from those that do. Distractors that fail leave no
trace, and have five tries each, of which only those with such a direction may succeed.

M has a margin around the image. It stays empty: nothing outside is drawn, or is in the way.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dsfjax.tasks.pathfinder.drawing import (
    LENGTH,
    REACH,
    SIZE,
    direction,
    disc,
    markers,
    paddles,
)

_STEP, _RADIUS = 4, 3  # from pivot to pivot, and from pivot to head
_SEED_DISTANCE = 7  # between the origins of the targets
_TRIES, _DISTRACTORS, _DISTRACTOR_TRIES = 3, 5, 5
_FREE = 76  # ⌊0.3 · 255⌋: a pixel of the map of tails is free up to this
_TOUCHING = 459  # 1.8 · 255
_LEAST_WEIGHT = 1e-4 * 255
_INK_TARGET, _INK_DISTRACTOR, _INK_MARKER = 3, 4, 2  # contrasts 1.5, 2 and 1, in halves

_PAD = 8
_WIDE = SIZE + 2 * _PAD  # the image with its margin
_SHARE, _MOST_AT_ONCE = 25, 4_000  # about one pair of targets of 25 succeeds
_DEGREES = np.arange(-180, 180)


class Images(NamedTuple):
    """Images and their labels.

    Attributes:
        pixels: Shades, 0 to 255.
        labels: 1 where the markers are at the ends of one snake.
        distractors: How many distractors each image holds.
    """

    pixels: UInt8[np.ndarray, "images 32 32"]
    labels: UInt8[np.ndarray, " images"]
    distractors: UInt8[np.ndarray, " images"]


class _Tables(NamedTuple):
    """What depends on a direction alone.

    There are 360 directions of first paddles, one per degree, and then those from a pivot to the
    pixels around it. Places and shifts are indices into the image with its margin.

    Attributes:
        ink: What a paddle draws, within 9 × 9 pixels around where it starts.
        mask: What it keeps others away from.
        step: From a pivot to the next one, (y, x), before it is rounded up.
        around: From a pivot to the pixels on the circle around it.
        near: From a pivot to these pixels and their neighbours, whose maximum is D.
        weights: cos² of the turn from each direction to each of these pixels.
        pivot: From the tail of a first paddle to its pivot.
        survives: The directions of first paddles that do not make the map of tails count as full.
        stencil: The shifts (y, x) that belong to stencils of first paddles, and to which.
    """

    ink: UInt8[np.ndarray, "directions 81"]
    mask: UInt8[np.ndarray, "directions 81"]
    step: Float[np.ndarray, "directions 2"]
    around: Int[np.ndarray, " around"]
    near: Int[np.ndarray, "5 around"]
    weights: Float[np.ndarray, "directions around"]
    pivot: Int[np.ndarray, " 360"]
    survives: Bool[np.ndarray, " 360"]
    stencil: list[tuple[int, int, Bool[np.ndarray, " 360"]]]


def _flat(shift: Int[np.ndarray, "*a 2"]) -> Int[np.ndarray, "*a"]:
    """Shifts (y, x) as shifts of an index into the image with its margin."""
    return shift[..., 0] * _WIDE + shift[..., 1]


def _place(pixel: Int[np.ndarray, "*a 2"]) -> Int[np.ndarray, "*a"]:
    """Pixels (y, x) as indices into the image with its margin."""
    return _flat(pixel + _PAD)


def _pixel(place: Int[np.ndarray, "*a"]) -> Int[np.ndarray, "*a 2"]:
    """The inverse of `_place`."""
    return np.stack(np.divmod(place, _WIDE), axis=-1) - _PAD


def _rounded_up(angle: Float[np.ndarray, "*a"], distance: int) -> Int[np.ndarray, "*a 2"]:
    """A way of some length from a pixel, rounded up.

    Far from zero, so that what rounding leaves of sin π vanishes as it does in an image.
    """
    return np.ceil(SIZE + distance * direction(angle)).astype(np.int64) - SIZE


@functools.cache
def _tables() -> _Tables:
    degrees = np.deg2rad(_DEGREES)
    # Points on the circle about a pixel apart, cut to whole pixels.
    circle = np.deg2rad(np.arange(0, 360, 360 / (2 * np.pi * _RADIUS)))
    shifts = np.unique(np.floor(_RADIUS * direction(circle)).astype(np.int64), axis=0)
    turns = np.arctan2(shifts[:, 0], shifts[:, 1])
    angles = np.concatenate([degrees, turns])
    turn = np.abs(np.angle(np.exp(1j * (angles[:, None] - turns))))

    # A first paddle is drawn from its tail forwards, all others from their head backwards.
    ink, mask = paddles(np.concatenate([degrees, turns + np.pi]))

    # The stencil of a first paddle is cut from a window of 7 × 7, in which the paddle starts at
    # (4, 4), and its anchor is the middle, (3, 3).
    full = mask[: len(degrees), : 2 * REACH - 1, : 2 * REACH - 1] == 255
    stencil, pixel = [], np.arange(SIZE)
    sees_one = np.zeros((len(degrees), SIZE, SIZE), bool)
    for y, x in np.argwhere(full.any(axis=0)):
        dy, dx, part = int(y) - REACH + 1, int(x) - REACH + 1, full[:, y, x]
        stencil.append((dy, dx, part))
        rows, columns = ((0 <= pixel + d) & (pixel + d < SIZE) for d in (dy, dx))
        sees_one |= part[:, None, None] & rows[:, None] & columns
    return _Tables(
        ink=ink.reshape(len(angles), -1),
        mask=mask.reshape(len(angles), -1),
        step=_STEP * direction(angles),
        around=_flat(shifts),
        near=_flat(np.array(disc(1)))[:, None] + _flat(shifts),
        weights=np.cos(np.minimum(turn, np.pi / 2)) ** 2,
        pivot=_flat(_rounded_up(degrees, LENGTH) + _rounded_up(degrees + np.pi, _RADIUS)),
        survives=np.asarray(sees_one.all(axis=(1, 2))),
        stencil=stencil,
    )


_around = np.arange(-REACH, REACH + 1)
_PATCH = (_around[:, None] * _WIDE + _around).ravel()
"""Shifts to the 9 × 9 pixels around a place."""


@functools.cache
def _inside() -> UInt8[np.ndarray, " pixels"]:
    """255 in the image and 0 in its margin."""
    return np.pad(np.full((SIZE, SIZE), 255, np.uint8), _PAD).ravel()


def _taken(free: int) -> UInt8[np.ndarray, " pixels"]:
    """M of an image of which all but a square in the middle is taken."""
    edge = (SIZE - free) // 2
    square = np.pad(np.zeros((free, free), np.uint8), edge, constant_values=255)
    return np.pad(square, _PAD).ravel()


class _Paddle(NamedTuple):
    """One paddle per image: where it is drawn from, its direction, and the pivot of its snake."""

    place: Int[np.ndarray, " images"]
    turn: Int[np.ndarray, " images"]
    pivot: Int[np.ndarray, " images"]


def _first(place: Int[np.ndarray, " images"], turn: Int[np.ndarray, " images"]) -> _Paddle:
    """The first paddle of a snake, by its tail."""
    return _Paddle(place, turn, place + _tables().pivot[turn])


def _only(images: Int[np.ndarray, " kept"], paddles: list[_Paddle]) -> list[_Paddle]:
    """The paddles of some images."""
    return [_Paddle(*(each[images] for each in paddle)) for paddle in paddles]


def _patch(place: Int[np.ndarray, " images"], rows: Int[np.ndarray, " images"]) -> tuple:
    """The pixels around a place of each image: indices into one of them, and into all of them."""
    within = place[:, None] + _PATCH
    return within, within + rows[:, None] * _WIDE**2


def _commit(mask: UInt8[np.ndarray, "images pixels"], paddle: _Paddle) -> None:
    """Take up the mask of a paddle in M of each image."""
    within, everywhere = _patch(paddle.place, np.arange(len(mask)))
    taken, flat = (
        _tables().mask.take(paddle.turn, axis=0) & _inside().take(within),
        mask.reshape(-1),
    )
    flat[everywhere] = np.maximum(flat.take(everywhere), taken)


def _extend(
    random: np.random.Generator, mask: UInt8[np.ndarray, "images pixels"], last: _Paddle
) -> tuple[Bool[np.ndarray, " images"], _Paddle]:
    """One more paddle for the snake of each image; the caller commits the one before it.

    Returns:
        Which images succeeded, and the paddles.
    """
    tables, flat, images = _tables(), mask.reshape(-1), np.arange(len(mask))
    # Rounded up where it lies: within 8 pixels of the upper or left edge, what rounding leaves of
    # sin π or cos π/2 is not absorbed, and moves the pivot by one. Snakes along that edge turn.
    pivot = _place(np.ceil(_pixel(last.pivot) + tables.step[last.turn]).astype(np.int64))
    places = pivot[:, None] + tables.around
    near = (pivot + images * _WIDE**2)[:, None, None] + tables.near
    free = ~flat.take(near).max(axis=1) & _inside().take(places)
    shares = np.cumsum(tables.weights[last.turn] * free, axis=1)

    succeeded = np.zeros(len(images), bool)
    place, turn = np.zeros_like(last.place), np.zeros_like(last.turn)
    left = np.flatnonzero(shares[:, -1] >= _LEAST_WEIGHT)
    for _ in range(_TRIES):
        drawn = random.random(len(left)) * shares[left, -1]
        pick = (shares[left] <= drawn[:, None]).sum(axis=1)
        place[left], turn[left] = places[left, pick], len(_DEGREES) + pick
        within, everywhere = _patch(place[left], left)
        taken = tables.mask.take(turn[left], axis=0) & _inside().take(within)
        # M + mask < 1.8, in bytes that cannot overflow.
        fits = (taken < _TOUCHING - flat.take(everywhere).astype(np.int16)).all(axis=1)
        succeeded[left[fits]] = True
        left = left[~fits]
    return succeeded, _Paddle(place, turn, pivot)


def _tails(
    mask: UInt8[np.ndarray, "images pixels"], turn: Int[np.ndarray, " images"]
) -> UInt8[np.ndarray, "images 32 32"]:
    """The largest value of M under the stencil of a first paddle, for every tail."""
    image = mask.reshape(-1, _WIDE, _WIDE)
    largest = np.zeros((len(turn), SIZE, SIZE), np.uint8)
    for y, x, part in _tables().stencil:
        theirs, y, x = np.flatnonzero(part[turn]), _PAD + y, _PAD + x
        seen = image[theirs, y : y + SIZE, x : x + SIZE]
        largest[theirs] = np.maximum(largest[theirs], seen)
    return largest


@functools.cache
def _middle() -> list[tuple[int, Int[np.ndarray, " tails"]]]:
    """The directions that the first snake may begin with, and the tails of each."""
    directions = np.arange(len(_DEGREES))
    mask = np.tile(_taken(SIZE - 4 * _SEED_DISTANCE), (len(directions), 1))
    maps = _tails(mask, directions)
    return [
        (turn, _place(np.argwhere(maps[turn] <= _FREE)))
        for turn in np.flatnonzero(_tables().survives & (maps <= _FREE).any(axis=(1, 2))).tolist()
    ]


def _two_firsts(random: np.random.Generator, count: int) -> list[_Paddle]:
    """The first paddles of the two targets."""
    middle = _middle()
    which = random.integers(0, len(middle), count)
    turn = np.array([turn for turn, _ in middle])[which]
    number = np.array([len(tails) for _, tails in middle])[which]
    most = max(len(tails) for _, tails in middle)
    tails = np.array([np.resize(tails, most) for _, tails in middle])
    tail = tails[which, random.integers(0, number)]

    # Where the second snake begins: no collision is possible yet, and its direction is free.
    angle = np.deg2rad(random.integers(0, 360, count))
    other = np.round(_pixel(tail) + _SEED_DISTANCE * direction(angle)).astype(np.int64)
    directions = random.integers(0, len(_DEGREES), count)
    return [_first(tail, turn), _first(_place(other), directions)]


class _Snakes(NamedTuple):
    """Paddles of snakes, (…, paddles), the first of each at its origin; turn −1 where is none."""

    place: Int[np.ndarray, "images *snakes paddles"]
    turn: Int[np.ndarray, "images *snakes paddles"]


def _targets(
    random: np.random.Generator, count: int, contour: int
) -> tuple[UInt8[np.ndarray, "images pixels"], _Snakes]:
    """M and two snakes each, of those among ``count`` images that succeed."""
    mask, snakes = np.tile(_taken(SIZE - 2), (count, 1)), _two_firsts(random, count)
    drawn = _Snakes(*np.full((2, count, 2, contour), -1))
    for i, snake in enumerate(snakes):
        drawn.place[:, i, 0], drawn.turn[:, i, 0] = snake.place, snake.turn
    for step in range(1, contour):
        for i in range(2):
            succeeded, longer = _extend(random, mask, snakes[i])
            drawn.place[:, i, step], drawn.turn[:, i, step] = longer.place, longer.turn
            kept = np.flatnonzero(succeeded)
            mask, drawn = mask[kept], _Snakes(*(each[kept] for each in drawn))
            longer, *snakes = _only(kept, [longer, *snakes])
            _commit(mask, snakes[i])
            snakes[i] = longer
    # The last paddle of the first snake never enters M.
    _commit(mask, snakes[1])
    return mask, drawn


def _distractors(
    random: np.random.Generator, mask: UInt8[np.ndarray, "images pixels"], contour: int
) -> _Snakes:
    """Up to five short snakes in each image; their masks enter M."""
    count, length = len(mask), contour // 3
    drawn = _Snakes(*np.full((2, count, _DISTRACTORS, length), -1))
    for i in range(_DISTRACTORS):
        for _ in range(_DISTRACTOR_TRIES):
            turn = random.integers(0, len(_DEGREES), count)
            images = np.flatnonzero((drawn.turn[:, i, 0] < 0) & _tables().survives[turn])
            free = _tails(mask[images], turn[images]) <= _FREE
            # The published program also gives up where less than a hundredth of M is free. Two
            # targets and five distractors do not cover that much.
            some = free.any(axis=(1, 2))
            images, free = images[some], free[some].reshape(-1, SIZE * SIZE)
            nth = random.integers(0, free.sum(axis=1))
            tail = np.argmax(np.cumsum(free, axis=1) > nth[:, None], axis=1)
            tail = _place(np.stack(np.divmod(tail, SIZE), axis=-1))
            trial, snake = mask[images], [_first(tail, turn[images])]
            for _ in range(1, length):
                succeeded, longer = _extend(random, trial, snake[-1])
                kept = np.flatnonzero(succeeded)
                images, trial, snake = images[kept], trial[kept], _only(kept, [*snake, longer])
                _commit(trial, snake[-2])
            _commit(trial, snake[-1])
            mask[images] = trial
            for step, paddle in enumerate(snake):
                drawn.place[images, i, step] = paddle.place
                drawn.turn[images, i, step] = paddle.turn
    return drawn


def _paint(image: Int[np.ndarray, "images pixels"], snakes: _Snakes, contrast: int) -> None:
    """Draw the paddles of snakes; where two overlap the darker shade stays."""
    count = len(image)
    places, turns = (each.reshape(count, -1) for each in snakes)
    for place, turn in zip(places.T, turns.T, strict=True):
        images = np.flatnonzero(turn >= 0)
        patch = place[images, None] + _PATCH
        ink = contrast * _tables().ink[turn[images]].astype(image.dtype)
        image[images[:, None], patch] = np.maximum(image[images[:, None], patch], ink)


def _bytes(image: Int[np.ndarray, "images 32 32"]) -> UInt8[np.ndarray, "images 32 32"]:
    """Shades from 0 for the smallest to 255 for the largest value, rounded half up.

    Half of the values of a target are halves. The published images follow from shades that were
    kept as float32: what that leaves decides which way they are rounded.
    """
    shades = (image.astype(np.float32) / 2 / 255).astype(np.float64)
    low, high = (f(shades, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return ((shades - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


def sample(random: np.random.Generator, count: int, *, contour: int = 14) -> Images:
    """Random images.

    Args:
        random: Source of randomness.
        count: How many.
        contour: Paddles of a target snake: 14 in the set called "hard", 9 in "intermediate", 6 in
            "easy". Distractors have a third.

    Example:
        >>> some = sample(np.random.default_rng(0), 3)
        >>> some.pixels.shape, some.pixels.dtype, int(some.pixels.max())
        ((3, 32, 32), dtype('uint8'), 255)
    """
    masks, snakes, missing = [], [], count
    while missing > 0:
        mask, drawn = _targets(random, min(_SHARE * missing + 64, _MOST_AT_ONCE), contour)
        masks.append(mask)
        snakes.append(drawn)
        missing -= len(mask)
    mask = np.concatenate(masks)[:count]
    targets = _Snakes(*(np.concatenate(each)[:count] for each in zip(*snakes, strict=True)))
    distractors = _distractors(random, mask, contour)

    image = np.zeros((count, _WIDE * _WIDE), np.int16)
    _paint(image, targets, _INK_TARGET)
    _paint(image, distractors, _INK_DISTRACTOR)
    image = image.reshape(count, _WIDE, _WIDE)[:, _PAD:-_PAD, _PAD:-_PAD]

    labels, snake = random.integers(0, 2, (2, count), np.uint8)
    for of, end in ((snake, 0), (snake ^ labels ^ 1, -1)):
        y, x = _pixel(targets.place[np.arange(count), of, end]).T
        marker = _INK_MARKER * markers()[y * SIZE + x].astype(np.int16)
        image = np.maximum(image, marker)
    present = distractors.turn[:, :, 0] >= 0
    return Images(_bytes(image), labels, present.sum(axis=1, dtype=np.uint8))
