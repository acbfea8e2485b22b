"""The settings of the MAD benchmark, as data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsfjax.tasks import published
from dsfjax.tasks.mad.autoencoder import Compression
from dsfjax.tasks.mad.blanks import BlankCopying
from dsfjax.tasks.mad.in_context import InContextRecall, NoisyRecall
from dsfjax.tasks.mad.memorized import Memorization
from dsfjax.tasks.mad.motifs import FuzzyRecall
from dsfjax.tasks.supply import Generated

_EXAMPLES = (published.MAD_EXAMPLES, 6_400, 3_200, 1_600, 800)
_LENGTHS, _VOCABULARIES = (256, 512, 1024), (32, 64, 128)
# Task to what is changed of its baseline, which is made of the defaults of its class.
_CHANGES: dict[type[Generated], Mapping[str, tuple[Any, ...]]] = {
    InContextRecall: {"vocab_size": _VOCABULARIES, "seq_len": _LENGTHS},
    FuzzyRecall: {"vocab_size": _VOCABULARIES, "seq_len": _LENGTHS},
    # With the 16 tokens of noise.
    NoisyRecall: {
        "vocab_size": (48, 80, 144),
        "seq_len": _LENGTHS,
        "frac_noise": (0.4, 0.6, 0.8),
    },
    BlankCopying: {
        "vocab_size": _VOCABULARIES,
        "seq_len": (512, 1024),
        "num_tokens_to_copy": (32, 64, 96),
    },
    Compression: {"vocab_size": _VOCABULARIES, "seq_len": (64, 128, 256)},
    Memorization: {"vocab_size": (512, 1024, 2048, 4096, 8192)},
}


class Difficulty(NamedTuple):
    """One setting of the benchmark.

    Attributes:
        task: The task.
        train_examples: Size of its training set; `dsfjax.tasks.published.mad` has the settings of
            the benchmark for it.
        changed: What differs from the baseline, such as "seq_len"; "" for the baseline.
    """

    task: Generated
    train_examples: int
    changed: str = ""


def difficulties() -> tuple[Difficulty, ...]:
    """The 66 settings: each task's baseline, then one change at a time.

    Example:
        >>> found = difficulties()
        >>> len(found), found[1].changed, found[1].task.describe()
        (66, 'vocab_size', 'L = 128, vocabulary 32')
        >>> {one.train_examples for one in found if one.changed == "seq_len"}
        {12800}
    """
    found = []
    for kind, changes in _CHANGES.items():
        # The examples of a map that is to be known by heart are few, and their number stays.
        most, fewer = _EXAMPLES[0], _EXAMPLES[1:]
        if kind is Memorization:
            most, fewer = published.MAD_MEMORIZED, ()
        found.append(Difficulty(kind(), most))
        for name, values in changes.items():
            found += [Difficulty(kind(**{name: value}), most, name) for value in values]
        found += [Difficulty(kind(), count, "train_examples") for count in fewer]
    return tuple(found)
