"""Do two texts belong together? Both in one sequence, the second right after the first.

`Aan` is the Retrieval task of Long Range Arena, from the user's copy of its release. `ImdbSameFilm`
asks of two film reviews whether they are about the same film; it is a task of this package.

Both have ``num_documents = 2``: the model's head pools each document by itself and reads the pair
features [u, v, u ⊙ v, u − v] (`dsfjax.nn`), as the encoder with two towers of the literature does.
Nothing passes from the first document to the second, since ``Example.reset`` is true where a
document starts.

References:
    Tay et al. (2021), arXiv:2011.04006 (Long Range Arena). Radev et al. (2013), The ACL Anthology
    Network Corpus.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PyTree

from dsfjax._util.names import choose
from dsfjax.tasks import data, published
from dsfjax.tasks.data.ragged import joined, padded
from dsfjax.tasks.data.splits import (
    TEST,
    VALIDATION,
    divided,
    least_squares,
    most_frequent,
    permutation,
)
from dsfjax.tasks.protocol import HELD_OUT, Baseline, Example, Preset, option
from dsfjax.tasks.supply import Resident
from dsfjax.tasks.text import CHARACTERS, END, FILES, NUM_CHARACTERS, frequencies, reviews


class Pairs(NamedTuple):
    """The arrays of a split: each document once, however many pairs it is in.

    Attributes:
        pairs: Rows of the two documents of each example, (P, 2).
        labels: Whether they belong together, (P,).
        documents: Token ids in a byte each, (D, l).
        lengths: Their lengths without padding, (D,).
    """

    pairs: Any
    labels: Any
    documents: Any
    lengths: Any


@dataclasses.dataclass(frozen=True)
class Retrieval(Resident):
    """What both tasks have in common.

    Args:
        seq_len: L, steps of both documents together, the padding included; each is cut to half.
        judged_on: "test" or "validation": what is held out.

    Raises:
        ValueError: If an option has another value.
    """

    seq_len: int = option(8000, "Length of both documents together, with the padding.")
    judged_on: str = option(TEST, "What models are judged on: test or validation.")

    demands = ("classification",)
    num_classes = 2
    num_documents = 2
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.seq_len < 4 or self.seq_len % 2:
            raise ValueError(
                f"{type(self).__name__}: expected an even seq_len of at least 4, got "
                f"{self.seq_len}; use {max(4, self.seq_len + 1)}."
            )
        choose("judged_on", self.judged_on, (TEST, VALIDATION))

    @abc.abstractmethod
    def arrays(self, split: str) -> Pairs:
        """Pairs and documents."""

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a pair's index."""
        first, second = data.pairs[pick]
        row = (data.documents[first], data.documents[second])
        return self.read((*row, data.lengths[first], data.lengths[second], data.labels[pick]))

    def read(self, row: PyTree) -> Example:
        """One sequence of two documents; the question comes after the second."""
        u, v, begin, more, label = row
        step = jnp.arange(self.seq_len)
        inside = jnp.where(step < begin, u[step % len(u)], v[(step - begin) % len(v)])
        length = (begin + more).astype(jnp.int32)
        tokens = jnp.where(step < length, self.token_ids(inside), 0)
        return Example(
            tokens,
            length[None] - 1,
            label[None].astype(jnp.int32),
            reset=(step == 0) | (step == begin),
            length=length,
        )

    def token_ids(self, tokens: PyTree) -> PyTree:
        """What `arrays` holds as token ids; they are that already."""
        return tokens.astype(jnp.int32)

    @property
    @abc.abstractmethod
    def key(self) -> tuple[object, ...]:
        """All that the arrays depend on."""

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, the more frequent answer, and how alike the frequencies of characters are."""

        def make() -> dict[str, np.ndarray]:
            (seen, known), (held_out, labels) = map(self._differences, ("train", HELD_OUT))
            _, trivial = most_frequent(known, labels)
            return {"scores": np.array([trivial, least_squares(seen, known, held_out, labels)])}

        trivial, linear = data.cached(f"{self.name}-baselines", (1, *self.key), make)["scores"]
        return {
            "chance": Baseline(0.5, "guessing one of two answers"),
            "trivial": Baseline(float(trivial), "always giving the more frequent answer"),
            "linear": Baseline(
                float(linear), "least squares on the differences of how often characters occur"
            ),
        }

    def _differences(self, split: str) -> tuple[Float32[np.ndarray, "p 256"], np.ndarray]:
        found = self.arrays(split)
        own = frequencies(found.documents, found.lengths)
        pairs = found.pairs[: 2**16]  # enough for 256 coefficients
        return np.abs(own[pairs[:, 0]] - own[pairs[:, 1]]), found.labels[: len(pairs)]

    def describe(self) -> str:
        """Length, vocabulary and examples."""
        return (
            f"L = {self.seq_len} for two documents, vocabulary {self.vocab_size}, "
            f"{self.size('train'):,} pairs to train and {self.size(HELD_OUT):,} for "
            f"{self.judged_on}"
        )


_AAN = {part: f"aan/new_aan_pairs.{part}.tsv" for part in ("train", "eval", "test")}
_LONGEST = 10_000
_LABELS = {b"0": 0, b"1": 1, b"0.0": 0, b"1.0": 1}


def _aan(read: data.Read) -> Mapping[str, np.ndarray]:
    """Each document once, by its id, and pairs of them. The files are read line by line."""
    del read
    found: dict[str, np.ndarray] = {}
    for part, path in _AAN.items():
        known: dict[bytes, int] = {}
        documents, pairs, labels = [], [], []
        for number, line in enumerate(data.lines(path), 1):
            cells, at = line.split(b"\t"), f"{path}, line {number}"
            data.expect(len(cells) == 5, at, "5 columns: label, two ids, two texts", len(cells))
            label, *ids = cells[:3]
            data.expect(label in _LABELS, at, "a label 0 or 1", label.decode(errors="replace"))
            for name, text in zip(ids, cells[3:], strict=True):
                data.expect(text, at, "a text", f"none for {name.decode(errors='replace')}")
                if name not in known:
                    known[name] = len(documents)
                    documents.append(np.frombuffer(text[:_LONGEST], np.uint8))
            pairs.append([known[name] for name in ids])
            labels.append(_LABELS[label])
        declared = data.file_of(path).rows
        data.expect(declared in (None, len(pairs)), path, f"{declared or 0:,} pairs", len(pairs))
        found |= {f"{part}_{name}": x for name, x in joined(documents, np.uint8).items()}
        found[f"{part}_pairs"] = np.array(pairs, np.int32).reshape(-1, 2)
        found[f"{part}_labels"] = np.array(labels, np.uint8)
    return found


AAN_PAIRS = data.register(data.Preparation("aan", "aan", tuple(_AAN.values()), _aan))


@dataclasses.dataclass(frozen=True)
class Aan(Retrieval):
    """Does one paper cite the other? Long Range Arena's Retrieval, from the user's own copy.

    The files ``new_aan_pairs.{train,eval,test}.tsv`` of the release belong into ``aan/`` of the
    data folder. Bytes, as Long Range Arena reads them: the token id is one above the byte, 0 is
    padding. Each paper is cut after ``seq_len`` / 2 bytes, 4,000 in the benchmark. The file
    ``eval`` is for validation.

    Example:
        >>> Aan().describe()
        'L = 8000 for two documents, vocabulary 257, 147,086 pairs to train and 17,437 for test'
    """

    title = "LRA Retrieval (AAN), bytes"
    vocab_size = 257
    name = "aan"
    data_sets = ("aan",)
    presets: ClassVar = {
        "smoke": Preset(settings={"seq_len": 64}),
        "paper": published.LRA["aan"],
    }

    def _part(self, split: str) -> str:
        held_out = "test" if self.judged_on == TEST else "eval"
        return held_out if split == HELD_OUT else "train"

    @property
    def key(self) -> tuple[object, ...]:
        """The files, the length and the split."""
        return (AAN_PAIRS.key(), self.seq_len, self.judged_on)

    def size(self, split: str) -> int:
        """Pairs of a split."""
        return data.file_of(_AAN[self._part(split)]).rows or 0

    def arrays(self, split: str) -> Pairs:
        """Pairs and documents."""
        part, found = self._part(split), AAN_PAIRS.arrays()
        count = len(found[f"{part}_offsets"]) - 1
        documents = padded(
            found[f"{part}_flat"], found[f"{part}_offsets"], np.arange(count), self.seq_len // 2
        )
        pairs, labels = found[f"{part}_pairs"], found[f"{part}_labels"]
        order = permutation(0, len(pairs)) if split == HELD_OUT else slice(None)
        return Pairs(pairs[order], labels[order], *documents)

    def token_ids(self, tokens: PyTree) -> PyTree:
        """One above the byte."""
        return tokens.astype(jnp.int32) + 1


_FILMS = "imdb/imdb_movie_ids.npz"


def _same_film(read: data.Read) -> Mapping[str, np.ndarray]:
    """All pairs of reviews of one film, and for each a pair of reviews of two films.

    The second review of the latter has the rating of that of the former. So neither rating nor
    opinion says which pairs are of one film: only what the reviews say does. Train and test have a
    film in common, which is left out of training.
    """
    films = data.arrays_of(read(_FILMS), _FILMS, "train", "test")
    found = {}
    for part, path in FILES.items():
        own, (_, _, ratings) = films[part], reviews(read(path), path)
        data.expect(
            len(own) == len(ratings), f"{_FILMS}, {part}", f"{len(ratings)} films", len(own)
        )
        used = ~np.isin(own, films["test"]) if part == "train" else np.ones(len(own), bool)
        rng = np.random.RandomState(0)  # its stream is the same in all versions of NumPy
        alike = []
        for film in np.unique(own[used]):
            rows = np.flatnonzero(own == film)
            first, second = np.triu_indices(len(rows), 1)
            alike.append(np.stack([rows[first], rows[second]], axis=1))
        same = rng.permutation(np.concatenate(alike))
        swapped = rng.rand(len(same)) < 0.5
        same[swapped] = same[swapped, ::-1]
        other, left = same.copy(), np.arange(len(same))
        with_rating = {r: np.flatnonzero((ratings == r) & used) for r in np.unique(ratings[used])}
        for r, candidates in with_rating.items():
            data.expect(
                len(np.unique(own[candidates])) > 1, path, f"two films rated {r}", "one film only"
            )
        while len(left):  # draw again what is of the same film by chance
            wanted = ratings[same[left, 1]]
            for r, candidates in with_rating.items():
                rows = left[wanted == r]
                other[rows, 1] = candidates[rng.randint(0, len(candidates), len(rows))]
            left = left[own[other[left, 0]] == own[other[left, 1]]]
        pairs = np.concatenate([same, other])
        labels = np.repeat(np.array([1, 0], np.uint8), len(same))
        order = rng.permutation(len(pairs))
        found |= {f"{part}_pairs": pairs[order].astype(np.int32), f"{part}_labels": labels[order]}
    return found


SAME_FILM = data.register(
    data.Preparation("imdb_same_film", "imdb", (*FILES.values(), _FILMS), _same_film)
)
NUM_PAIRS = {"train": 381_662, "test": 372_038}
"""Twice the pairs of reviews of one film: 190,831 without the film that is in test, 186,019."""


@dataclasses.dataclass(frozen=True)
class ImdbSameFilm(Retrieval):
    """Are two reviews about the same film? Half of the pairs are.

    A substitute for Retrieval of Long Range Arena that anybody can have, and not that task: its
    numbers are not comparable. The characters are those of `dsfjax.tasks.text.Imdb`; each review is
    cut after ``seq_len`` / 2 − 1 of them, and ``<eos>`` follows.

    A pair of different films is made of a pair of one film: its second review is replaced by one of
    the same rating. So ratings and opinions tell nothing. Films of the test split do not occur in
    training. ``judged_on="validation"`` holds a tenth of the training pairs out, of the same films.

    Example:
        >>> ImdbSameFilm().describe()
        'L = 8000 for two documents, vocabulary 134, 381,662 pairs to train and 372,038 for test'
    """

    title = "Same film? Pairs of IMDB reviews, characters"
    vocab_size = END + 1 + NUM_CHARACTERS
    name = "imdb_same_film"
    data_sets = ("imdb",)
    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 1024, "eval_examples": 1000}),
        "smoke": Preset(settings={"seq_len": 64}),
    }

    @property
    def key(self) -> tuple[object, ...]:
        """The files, the length and the split."""
        return (SAME_FILM.key(), CHARACTERS.key(), self.seq_len, self.judged_on)

    def size(self, split: str) -> int:
        """Pairs of a split."""
        if self.judged_on == TEST:
            return NUM_PAIRS["test" if split == HELD_OUT else "train"]
        return len(divided(NUM_PAIRS["train"])[split == HELD_OUT])

    def arrays(self, split: str) -> Pairs:
        """Pairs and documents."""
        part = "test" if split == HELD_OUT and self.judged_on == TEST else "train"
        texts, found = CHARACTERS.arrays(), SAME_FILM.arrays()
        flat, offsets = texts[f"{part}_flat"], texts[f"{part}_offsets"]
        rows = np.arange(len(offsets) - 1)
        documents = padded(flat, offsets, rows, self.seq_len // 2, end=END)
        pairs, labels = found[f"{part}_pairs"], found[f"{part}_labels"]
        if len(pairs) != NUM_PAIRS[part]:
            raise data.DataError(
                f"data: {SAME_FILM.name}: expected {NUM_PAIRS[part]:,} pairs in split {part!r}, "
                f"got {len(pairs):,}; {data.get('imdb').remedy}."
            )
        if self.judged_on == VALIDATION:
            own = divided(len(pairs))[split == HELD_OUT]
            pairs, labels = pairs[own], labels[own]
        return Pairs(pairs, labels, *documents)

    def provenance(self) -> str:
        """The files that it reads."""
        return SAME_FILM.provenance()
