"""Whether a film review is for or against the film: the Text task of Long Range Arena, twice.

`Imdb` reads characters as S4 and S5 do, `ImdbBytes` reads bytes as the original benchmark does.

References:
    Maas et al. (2011), ACL (the data). Tay et al. (2021), arXiv:2011.04006 (Long Range Arena).
    Gu et al. (2022), arXiv:2111.00396 (S4). Smith et al. (2023), arXiv:2208.04933 (S5).
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, PyTree, UInt8

from dsfjax._util.names import choose
from dsfjax.tasks import data, published
from dsfjax.tasks.data.ragged import joined, padded
from dsfjax.tasks.data.splits import TEST, VALIDATION, least_squares, most_frequent, rows_of
from dsfjax.tasks.protocol import HELD_OUT, Baseline, Example, Preset, option
from dsfjax.tasks.supply import Resident

PAD, UNKNOWN, END = 0, 1, 2
"""Token ids of padding, of a rare character, and of the end of a review."""
NUM_CHARACTERS = 131
"""Characters of the training reviews that are frequent enough for a token id."""
LONGEST, RAREST = 4095, 15
"""Characters of a review, and how often one must occur in them, for the vocabulary of S4."""

FILES = {"train": "imdb/imdb_train.tsv", "test": "imdb/imdb_test.tsv"}


def reviews(content: bytes, path: str) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The texts, classes (1: for the film) and ratings of a file with a review per line.

    Args:
        content: The file's bytes.
        path: The file, for errors.

    Raises:
        DataError: If a row has fewer columns, another class, or bytes that are not UTF-8.
    """
    data.text(content, path)
    rows = data.rows(content, path, 4)
    for number, (label, _, rating, _) in enumerate(rows, 1):
        good = label in (b"0", b"1") and rating.isdigit()
        at = f"{path}, line {number}"
        data.expect(
            good, at, "a label 0 or 1, an id and a rating", (label + b" " + rating).decode()
        )
    labels = np.array([int(row[0]) for row in rows], np.uint8)
    ratings = np.array([int(row[2]) for row in rows], np.uint8)
    return [row[3] for row in rows], labels, ratings


def _characters(
    parts: Mapping[str, tuple[Sequence[bytes], np.ndarray]],
) -> dict[str, np.ndarray]:
    """Reviews as ids of characters, those of training from the most frequent one on."""
    texts = {part: [text.decode() for text in texts] for part, (texts, _) in parts.items()}
    points = np.frombuffer("".join(t[:LONGEST] for t in texts["train"]).encode("utf-32-le"), "<u4")
    counts = np.bincount(points)
    frequent = np.flatnonzero(counts >= RAREST)
    frequent = frequent[np.argsort(-counts[frequent], kind="stable")]
    data.expect(
        len(frequent) <= NUM_CHARACTERS,
        FILES["train"],
        f"at most {NUM_CHARACTERS} frequent characters",
        len(frequent),
    )
    ids = np.full(0x110000, UNKNOWN, np.uint8)
    ids[frequent] = END + 1 + np.arange(len(frequent))
    found = {"characters": frequent.astype(np.int32)}
    for part, own in texts.items():
        codes = [ids[np.frombuffer(text.encode("utf-32-le"), "<u4")] for text in own]
        found |= {f"{part}_{name}": x for name, x in joined(codes, np.uint8).items()}
        found[f"{part}_labels"] = parts[part][1]
    return found


def _bytes(parts: Mapping[str, tuple[Sequence[bytes], np.ndarray]]) -> dict[str, np.ndarray]:
    found = {}
    for part, (texts, labels) in parts.items():
        codes = [np.frombuffer(text, np.uint8) for text in texts]
        found |= {f"{part}_{name}": x for name, x in joined(codes, np.uint8).items()}
        found[f"{part}_labels"] = labels
    return found


def _of_files(read: data.Read) -> dict[str, tuple[Sequence[bytes], np.ndarray]]:
    return {part: reviews(read(path), path)[:2] for part, path in FILES.items()}


def _of_tfds(records: data.Records) -> dict[str, tuple[Sequence[bytes], np.ndarray]]:
    found = {}
    for part in FILES:
        rows = [(bytes(row["text"]), row["label"]) for row in records(part)]
        found[part] = [row[0] for row in rows], np.array([row[1] for row in rows], np.uint8)
    return found


CHARACTERS = data.register(
    data.Preparation(
        "imdb_characters",
        "imdb",
        tuple(FILES.values()),
        lambda read: _characters(_of_files(read)),
        from_tfds=lambda records: _characters(_of_tfds(records)),
    )
)
BYTES = data.register(
    data.Preparation(
        "imdb_bytes",
        "imdb",
        tuple(FILES.values()),
        lambda read: _bytes(_of_files(read)),
        from_tfds=lambda records: _bytes(_of_tfds(records)),
    )
)


@dataclasses.dataclass(frozen=True)
class Reviews(Resident):
    """What both readings of the reviews have in common.

    Args:
        judged_on: "test" or "validation": what is held out.
        source: "files" of the data folder, or "tfds", what tensorflow-datasets wrote there.

    Raises:
        ValueError: If an option has another value.
    """

    judged_on: str = option(TEST, "What models are judged on: test or validation.")
    source: str = option(data.FILES, "Where the reviews come from: files, or tfds.")

    demands = ("smoothing", "classification")
    num_classes = 2
    data_sets = ("imdb",)
    preparation: ClassVar[data.Preparation]
    end: ClassVar[int | None]
    """Token id after a review, if there is one."""

    def __post_init__(self) -> None:
        if self.seq_len < 2:
            raise ValueError(
                f"{type(self).__name__}: expected seq_len of at least 2, got {self.seq_len}."
            )
        choose("judged_on", self.judged_on, (TEST, VALIDATION))
        choose("source", self.source, self.preparation.sources)

    def size(self, split: str) -> int:
        """Reviews of a split."""
        return len(self._rows(split)[1])

    def _rows(self, split: str) -> tuple[str, np.ndarray]:
        train, test = (data.file_of(path).rows or 0 for path in FILES.values())
        return rows_of(split == HELD_OUT, self.judged_on, train, test)

    def arrays(self, split: str) -> PyTree:
        """Tokens in a byte each, lengths and labels."""
        part, rows = self._rows(split)
        found = self.preparation.arrays(self.source)
        if len(found[f"{part}_labels"]) != (total := data.file_of(FILES[part]).rows or 0):
            raise data.DataError(
                f"data: {self.preparation.name}: expected {total:,} reviews in split {part!r}, got "
                f"{len(found[f'{part}_labels']):,}; get the data set again."
            )
        flat, offsets = found[f"{part}_flat"], found[f"{part}_offsets"]
        tokens, lengths = padded(flat, offsets, rows, self.seq_len, end=self.end)
        return tokens, lengths, found[f"{part}_labels"][rows]

    @abc.abstractmethod
    def token_ids(self, tokens: PyTree, length: PyTree) -> PyTree:
        """What `arrays` holds as token ids, 0 for padding."""

    def read(self, row: PyTree) -> Example:
        """One review; the question comes after its last token."""
        tokens, length, label = row
        return Example(
            self.token_ids(tokens, length),
            length[None] - 1,
            label[None].astype(jnp.int32),
            length=length,
        )

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, the more frequent class, and a linear map of how often tokens occur."""

        def make() -> dict[str, np.ndarray]:
            (seen, lengths, known), (held_out, others, labels) = map(
                self.arrays, ("train", HELD_OUT)
            )
            _, trivial = most_frequent(known, labels)
            counts = frequencies(seen, lengths), frequencies(held_out, others)
            return {
                "scores": np.array([trivial, least_squares(counts[0], known, counts[1], labels)])
            }

        key = (1, self.preparation.key(self.source), self.seq_len, self.judged_on)
        trivial, linear = data.cached(f"{self.preparation.name}-baselines", key, make)["scores"]
        return {
            "chance": Baseline(0.5, "guessing one of two classes"),
            "trivial": Baseline(float(trivial), "always naming the more frequent class"),
            "linear": Baseline(float(linear), "least squares on how often each token occurs"),
        }

    def provenance(self) -> str:
        """The files, or the version of tensorflow-datasets' data."""
        return self.preparation.provenance(self.source)

    def describe(self) -> str:
        """Length, classes and examples."""
        return (
            f"L = {self.seq_len}, vocabulary {self.vocab_size}, {self.size('train'):,} reviews to "
            f"train and {self.size(HELD_OUT):,} for {self.judged_on}"
        )


def frequencies(
    tokens: UInt8[np.ndarray, "n l"], lengths: np.ndarray
) -> Float32[np.ndarray, "n 256"]:
    """How often each byte occurs in a row, over its length.

    Args:
        tokens: The rows, padded with zeros.
        lengths: Their lengths without the padding.
    """
    found = np.stack([np.bincount(row, minlength=256) for row in tokens]).astype(np.float32)
    found[:, 0] -= tokens.shape[1] - lengths
    return found / lengths[:, None].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Imdb(Reviews):
    """Is a film review for or against the film? Characters, as S4 and S5 read them.

    A review is cut after ``seq_len`` − 1 characters, and ``<eos>`` follows. The vocabulary has the
    131 characters that occur 15 times or more in the first 4,095 of the training reviews, and three
    ids for padding, other characters and the end: 134, whatever the length.

    Args:
        seq_len: L, the end and the padding included. S4 and S5 have 4,096.

    Example:
        >>> Imdb().describe()
        'L = 4096, vocabulary 134, 25,000 reviews to train and 25,000 for test'
    """

    seq_len: int = option(4096, "Length of a sequence with its end and its padding.")

    title = "IMDB reviews, characters"
    vocab_size = END + 1 + NUM_CHARACTERS
    preparation = CHARACTERS
    end = END
    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 512, "eval_examples": 1000}),
        "smoke": Preset(settings={"seq_len": 64}),
        "paper": published.LRA["imdb"],
    }

    def arrays(self, split: str) -> PyTree:
        """Token ids in a byte each, lengths and labels."""
        found = self.preparation.arrays(self.source)["characters"]
        if data.file_of(FILES["train"]).rows == 25_000 and len(found) != NUM_CHARACTERS:
            raise data.DataError(
                f"data: {FILES['train']}: expected {NUM_CHARACTERS} frequent characters, got "
                f"{len(found)}; {data.get('imdb').remedy}."
            )
        return super().arrays(split)

    def token_ids(self, tokens: PyTree, length: PyTree) -> PyTree:
        """They are that already."""
        del length
        return tokens.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class ImdbBytes(Reviews):
    """Is a film review for or against the film? Bytes, as Long Range Arena reads them.

    A byte has the token id one above it, and 0 is padding: vocabulary 257. A review is cut after
    ``seq_len`` bytes; nothing marks its end.

    Args:
        seq_len: L, the padding included. Long Range Arena's configuration has 1,000; the paper also
            has up to 4,000.

    Example:
        >>> ImdbBytes().describe()
        'L = 1000, vocabulary 257, 25,000 reviews to train and 25,000 for test'
    """

    seq_len: int = option(1000, "Length of a sequence with its padding.")

    title = "IMDB reviews, bytes"
    vocab_size = 257
    preparation = BYTES
    end = None
    presets: ClassVar = {
        "demo": Preset(settings={"seq_len": 512, "eval_examples": 1000}),
        "smoke": Preset(settings={"seq_len": 64}),
        "paper": published.LRA["imdb_bytes"],
    }

    def token_ids(self, tokens: PyTree, length: PyTree) -> PyTree:
        """One above the byte, and 0 for padding."""
        return jnp.where(jnp.arange(self.seq_len) < length, tokens.astype(jnp.int32) + 1, 0)
