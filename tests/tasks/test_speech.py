"""Spoken digits: from files of their format, and from the user's own."""

from pathlib import Path

import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, TRAIN, data, speech
from tests.tasks.conftest import MakeUp
from tests.tasks.test_contract import check

SOUND, INDEX = speech._SOUND, speech._INDEX


def _files() -> tuple[np.ndarray, bytes]:
    """Sound that counts, and 20 clips of it, of 10 to 29 samples; two are for testing."""
    sound = np.arange(600, dtype="<i2") * 50 - 15_000
    lines = ["start\tlength\tdigit\tspeaker\tindex\tsplit"]
    lines += [
        f"{20 * i}\t{10 + i}\t{i % 10}\tme\t{i}\t{'test' if i in (4, 9) else 'train'}"
        for i in range(20)
    ]
    return sound, ("\n".join(lines) + "\n").encode()


def test_spoken_digits_of_made_up_files(made_up: MakeUp) -> None:
    sound, index = _files()
    made_up({SOUND: sound.tobytes(), INDEX: index}, {INDEX: 20})
    task = tasks.get("spoken_digits", seq_len=16)
    clips, lengths, digits = task.arrays(TRAIN)
    assert clips.dtype == np.int16 and clips.shape == (18, 16)
    assert lengths.tolist() == [min(10 + i, 16) for i in range(20) if i not in (4, 9)]
    assert clips[2].tolist() == [*sound[40:52], 0, 0, 0, 0] and digits[2] == 2
    one = task.read((clips[2], lengths[2], digits[2]))  # type: ignore[attr-defined]
    np.testing.assert_allclose(one.inputs[:12, 0], sound[40:52] / 32768)
    assert one.query_positions.tolist() == [11] and one.targets.tolist() == [2]
    assert sorted(task.arrays(HELD_OUT)[2]) == [4, 9]

    coarse = tasks.get("spoken_digits", seq_len=4, pool=4)
    means, steps, _ = coarse.arrays(TRAIN)
    assert means[2].tolist() == [*np.rint(sound[40:52].reshape(3, 4).mean(axis=1)), 0]
    assert steps[:4].tolist() == [3, 3, 3, 4]
    assert coarse.title == "Spoken digits, raw sound, means of 4 samples"


@pytest.mark.slow
def test_contract_of_spoken_digits(made_up: MakeUp) -> None:
    sound, index = _files()
    made_up({SOUND: sound.tobytes(), INDEX: index}, {INDEX: 20})
    check("spoken_digits", tasks.get("spoken_digits", seq_len=16))


def test_bad_spoken_digits(made_up: MakeUp) -> None:
    sound, index = _files()
    raw = sound.tobytes()
    for one, other, message in [
        (raw[:-1], index, f"{SOUND}: expected samples of two bytes, got 1,199 bytes"),
        (
            raw,
            index.replace(b"digit", b"number"),
            f"{INDEX}, line 1: expected columns b.start.*tlength",
        ),
        (raw, index.replace(b"\t3\tme", b"\tthree\tme"), "line 5: expected start, length, digit"),
        (
            raw[:800],
            index,
            "line 21: expected a clip within the sound, of a digit, got .380, 29, 9",
        ),
        (raw, index[:-20], "line 21: expected 6 columns, got 1"),
        (raw, index.replace(b"\ttest", b"\ttrain"), "expected 2 clips for testing, got 0"),
    ]:
        made_up({SOUND: one, INDEX: other}, {INDEX: 20})
        with pytest.raises(data.DataError, match=message):
            tasks.get("spoken_digits").arrays(TRAIN)
    with pytest.raises(ValueError, match="seq_len and pool of at least 1, got 8000 and 0"):
        tasks.get("spoken_digits", pool=0)


@pytest.mark.slow
def test_the_users_own_digits(data_dir: Path) -> None:
    del data_dir
    task = tasks.get("spoken_digits", seq_len=20_000)
    (_, lengths, digits), (_, others, answers) = task.arrays(TRAIN), task.arrays(HELD_OUT)
    assert np.bincount(digits).tolist() == [270] * 10 and np.bincount(answers).tolist() == [30] * 10
    every = np.concatenate([lengths, others])
    assert (every.min(), every.max(), round(every.mean())) == (1148, 18262, 3499)
