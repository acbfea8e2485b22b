"""Which digit is spoken: raw sound, sample by sample.

References:
    Jackson et al. (2018), Free Spoken Digit Dataset. Gu et al. (2022), arXiv:2111.00396 (raw speech
    as a sequence).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dsfjax._util.names import choose
from dsfjax.tasks import data
from dsfjax.tasks.data.ragged import padded
from dsfjax.tasks.data.splits import TEST, VALIDATION, least_squares, most_frequent, rows_of
from dsfjax.tasks.protocol import HELD_OUT, Baseline, Example, Preset, option
from dsfjax.tasks.supply import Resident

NUM_CLASSES = 10
CLIPS, NUM_TEST = 3000, 300
"""Clips, and how many are for testing: the first 5 of the 50 of each speaker and digit."""

_SOUND, _INDEX = "fsdd/fsdd_pcm16le_8khz.raw", "fsdd/fsdd_index.tsv"
_COLUMNS = b"start\tlength\tdigit\tspeaker\tindex\tsplit"


def _clips(read: data.Read) -> Mapping[str, np.ndarray]:
    """All samples, and for each clip of a split its start, its length and its digit."""
    content = read(_SOUND)
    data.expect(len(content) % 2 == 0, _SOUND, "samples of two bytes", f"{len(content):,} bytes")
    names, _, table = read(_INDEX).partition(b"\n")
    data.expect(names == _COLUMNS, f"{_INDEX}, line 1", f"columns {_COLUMNS!r}", names)
    rows = data.rows(table, _INDEX, 6, first=2)
    parts: dict[str, list[tuple[int, int, int]]] = {"train": [], "test": []}
    for number, (start, length, digit, _, _, split) in enumerate(rows, 2):
        at = f"{_INDEX}, line {number}"
        good = start.isdigit() and length.isdigit() and digit.isdigit() and split.decode() in parts
        data.expect(good, at, "start, length, digit and split", rows[number - 2])
        clip = int(start), int(length), int(digit)
        inside = clip[1] > 0 and clip[0] + clip[1] <= len(content) // 2 and clip[2] < NUM_CLASSES
        data.expect(inside, at, "a clip within the sound, of a digit", f"{clip}")
        parts[split.decode()].append(clip)
    found = {"sound": np.frombuffer(content, "<i2").astype(np.int16)}
    return found | {part: np.array(clips, np.int64).reshape(-1, 3) for part, clips in parts.items()}


SPOKEN_DIGITS = data.register(data.Preparation("fsdd", "fsdd", (_SOUND, _INDEX), _clips))


@dataclasses.dataclass(frozen=True)
class SpokenDigits(Resident):
    """Which of ten digits is spoken, 8,000 samples a second, in [−1, 1).

    A clip is cut after ``seq_len`` × ``pool`` samples and padded with zeros; most have 2,000 to
    5,000. 2,700 clips of six speakers train, 300 of the same speakers are for testing.

    Args:
        seq_len: L, steps of a sequence, the padding included.
        pool: Samples that are averaged into one step.
        judged_on: "test" or "validation": what is held out.

    Raises:
        ValueError: If an option has another value.

    Example:
        >>> SpokenDigits(seq_len=1000, pool=8).title
        'Spoken digits, raw sound, means of 8 samples'
        >>> SpokenDigits().describe()
        'L = 8000, 10 classes, 2,700 clips to train and 300 for test'
    """

    seq_len: int = option(8000, "Length of a sequence with its padding.")
    pool: int = option(1, "Samples that are averaged into one step.")
    judged_on: str = option(TEST, "What models are judged on: test or validation.")

    demands = ("smoothing", "classification")
    channels = 1
    num_classes = NUM_CLASSES
    data_sets = ("fsdd",)
    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 500, "pool": 16, "eval_examples": 300}),
        "smoke": Preset(settings={"seq_len": 64, "pool": 64}),
    }

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.pool < 1:
            raise ValueError(
                f"SpokenDigits: expected seq_len and pool of at least 1, got {self.seq_len} and "
                f"{self.pool}."
            )
        choose("judged_on", self.judged_on, (TEST, VALIDATION))

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it is, and what was done to the sound."""
        means = f", means of {self.pool} samples" if self.pool > 1 else ""
        return f"Spoken digits, raw sound{means}"

    def size(self, split: str) -> int:
        """Clips of a split."""
        return len(self._rows(split)[1])

    def _rows(self, split: str) -> tuple[str, np.ndarray]:
        clips = data.file_of(_INDEX).rows or 0
        test = clips * NUM_TEST // CLIPS
        return rows_of(split == HELD_OUT, self.judged_on, clips - test, test)

    def arrays(self, split: str) -> PyTree:
        """Samples of two bytes, lengths and digits."""
        part, rows = self._rows(split)
        found = SPOKEN_DIGITS.arrays()
        clips = found[part]
        total = len(found["train"]) + len(found["test"])
        data.expect(
            len(found["test"]) == total * NUM_TEST // CLIPS,
            _INDEX,
            f"{total * NUM_TEST // CLIPS} clips for testing",
            len(found["test"]),
        )
        samples = np.stack([clips[rows, 0], clips[rows, 0] + clips[rows, 1]], axis=1).ravel()
        # Clips are every second of the stretches between these places; other sound is between them.
        whole, lengths = padded(
            found["sound"], samples, 2 * np.arange(len(rows)), self.seq_len * self.pool
        )
        if self.pool > 1:
            steps = whole.reshape(len(rows), self.seq_len, self.pool)
            whole = np.rint(steps.mean(axis=2, dtype=np.float32)).astype(np.int16)
        lengths = -(-lengths // self.pool)  # a step of which some samples are there counts
        return whole, lengths.astype(np.int32), clips[rows, 2].astype(np.uint8)

    def read(self, row: PyTree) -> Example:
        """One clip."""
        sound, length, digit = row
        return Example(
            sound.astype(jnp.float32)[:, None] / 32768,
            length[None] - 1,
            digit[None].astype(jnp.int32),
            length=length,
        )

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, the most frequent digit, and a linear map of all samples by least squares."""

        def make() -> dict[str, np.ndarray]:
            (seen, _, known), (held_out, _, digits) = self.arrays("train"), self.arrays(HELD_OUT)
            _, trivial = most_frequent(known, digits)
            seen, held_out = (x.astype(np.float32) / 32768 for x in (seen, held_out))
            return {"scores": np.array([trivial, least_squares(seen, known, held_out, digits)])}

        key = (1, SPOKEN_DIGITS.key(), self.seq_len, self.pool, self.judged_on)
        trivial, linear = data.cached("fsdd-baselines", key, make)["scores"]
        return {
            "chance": Baseline(1 / NUM_CLASSES, "guessing among the ten digits"),
            "trivial": Baseline(float(trivial), "always naming the most frequent digit"),
            "linear": Baseline(float(linear), "least squares on all samples at once"),
        }

    def describe(self) -> str:
        """Length, classes and examples."""
        return (
            f"L = {self.seq_len}, {NUM_CLASSES} classes, {self.size('train'):,} clips to train and "
            f"{self.size(HELD_OUT):,} for {self.judged_on}"
        )
