r"""Language modelling: every next token of a text, judged per word and per byte.

With tokens :math:`w_1, …, w_n` of a text of b bytes and m words,

.. math:: \text{perplexity} = \exp\Big( -\frac{1}{m} \sum_i \log p(w_i \mid w_{<i}) \Big), \qquad
    \text{bits per byte} = -\frac{1}{b \ln 2} \sum_i \log p(w_i \mid w_{<i}),

which do not depend on what the tokens are (`dsfjax.tasks.tokenization`). A word is what white space
separates, and the end of a line counts as one, as WikiText has it.

A text is cut into windows of ``seq_len`` tokens that do not overlap, and every window starts from
an empty state, in training and in evaluation (segment evaluation; a window that slides would give
lower numbers). What is left at the end is passed over. Reviews are documents of their own: where
one starts, ``reset`` is true, so many of them share a window and nothing passes from one to the
next.

References:
    Merity et al. (2016), Pointer Sentinel Mixture Models, arXiv:1609.07843 (WikiText). Maas et al.
    (2011), ACL (reviews). Karpathy (2015), char-rnn (tiny-shakespeare). Witten and Bell (1991),
    IEEE Trans. Inf. Theory 37 (the smoothing of pairs).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from dsfjax._util.names import choose
from dsfjax.tasks import data, published
from dsfjax.tasks.data import Preparation, Read
from dsfjax.tasks.metric import ACCURACY, BITS_PER_BYTE, PERPLEXITY, Baseline, Metric
from dsfjax.tasks.protocol import TRAIN, Example, Preset, cross_entropy, option
from dsfjax.tasks.supply import Windows
from dsfjax.tasks.tokenization import ENCODINGS, Encoding, encoding, words_of

SPLITS = ("train", "validation", "test")


class Corpus(NamedTuple):
    """A text.

    Attributes:
        title: What it is.
        data_set: The data set of its files.
        files: Paths that `split` reads.
        split: Makes the texts of `SPLITS` of what the files contain.
        words: Whether it has a vocabulary of words, unknown ones marked in the text.
        documents: Whether its lines are documents.
    """

    title: str
    data_set: str
    files: tuple[str, ...]
    split: Callable[[Read], Iterable[bytes]]
    words: bool = False
    documents: bool = False


def _files_as_splits(*paths: str) -> Callable[[Read], Iterable[bytes]]:
    return lambda read: (read(path) for path in paths)


def _shakespeare(read: Read) -> Iterable[bytes]:
    """90, 5 and 5 % by position."""
    content = read("tinyshakespeare/input.txt")
    a, b = int(0.9 * len(content)), int(0.95 * len(content))
    return content[:a], content[a:b], content[b:]


def _reviews(read: Read) -> Iterable[bytes]:
    """Reviews of 5 % of the films to validate on, and of 5 % to test on; the others train."""
    path, ids = "imdb/imdb_unsup.txt", "imdb/imdb_movie_ids.npz"
    reviews = [cells[0] for cells in data.rows(read(path), path, 1)]
    films = data.arrays_of(read(ids), ids, "unsup")["unsup"]
    fits = len(films) == len(reviews)
    data.expect(fits, ids, f"the film of each of the {len(reviews):,} reviews", f"{len(films):,}")
    known = np.random.default_rng(0).permutation(np.unique(films))
    part = math.ceil(0.05 * len(known))
    held_out = np.isin(films, known[:part]), np.isin(films, known[part : 2 * part])
    of = np.where(held_out[0], 1, np.where(held_out[1], 2, 0))
    return (
        b"".join(r + b"\n" for r, o in zip(reviews, of, strict=True) if o == k) for k in range(3)
    )


_WIKITEXT2 = tuple(f"wikitext2/wiki.{part}.tokens" for part in ("train", "valid", "test"))
_WIKITEXT103 = tuple(f"wikitext103/wiki.{part}.tokens" for part in ("train", "valid", "test"))
CORPORA = {
    "wikitext2": Corpus(
        "WikiText-2", "wikitext2", _WIKITEXT2, _files_as_splits(*_WIKITEXT2), words=True
    ),
    "wikitext103": Corpus(
        "WikiText-103", "wikitext103", _WIKITEXT103, _files_as_splits(*_WIKITEXT103), words=True
    ),
    "tinyshakespeare": Corpus(
        "tiny-shakespeare", "tinyshakespeare", ("tinyshakespeare/input.txt",), _shakespeare
    ),
    "imdb": Corpus(
        "IMDB reviews",
        "imdb",
        ("imdb/imdb_unsup.txt", "imdb/imdb_movie_ids.npz"),
        _reviews,
        documents=True,
    ),
}
"""Name to text."""


def _prepare(corpus: Corpus, tokens: Encoding, read: Read) -> dict[str, np.ndarray]:
    texts = list(corpus.split(read))
    own = corpus.files if len(corpus.files) == len(SPLITS) else (corpus.files[0],) * len(SPLITS)
    for name, path, text in zip(SPLITS, own, texts, strict=True):
        data.text(text, f"{path}, {name} split")  # bytes that are not UTF-8 are named
    streams, size = tokens.encode(texts, read)
    made = {"vocab_size": np.array(size)}
    for name, text, stream in zip(SPLITS, texts, streams, strict=True):
        made[name] = stream
        made[f"{name}_sizes"] = np.array([len(text), len(words_of(text))])
    return made


def preparation(corpus: str, tokens: str) -> Preparation:
    """What makes the tokens of a text.

    Args:
        corpus: One of `CORPORA`.
        tokens: As of `Language`.
    """
    text, how = CORPORA[corpus], encoding(tokens)
    return Preparation(
        name=f"{corpus}-{how.name}",
        data_set=text.data_set,
        files=text.files + how.files,
        make=functools.partial(_prepare, text, how),
        known=how.known,
    )


for _name, _corpus in CORPORA.items():
    for _tokens in ENCODINGS:
        if _tokens != "words" or _corpus.words:
            data.register(preparation(_name, _tokens))


@dataclasses.dataclass(frozen=True)
class Language(Windows):
    """Predict every next token of a text.

    Args:
        corpus: The text, one of `CORPORA`.
        tokens: What is predicted: "bytes", "words" (WikiText), "bpe" (GPT-2's byte pairs), or the
            tokens of a ``tokenizer.json``, by its path (texts without documents).
        seq_len: L, tokens of a window.
        packed: Whether documents follow each other in a window; else each has a window of its own,
            cut at ``seq_len`` and padded. Only where lines are documents.
        streamed: Whether the host sends the windows of every block of steps, instead of the whole
            text to the device once. All members of a program then see the same windows.
        judged_on: What models are judged on, "validation" or "test".

    Raises:
        ValueError: If the options do not fit together.
        FileNotFoundError: If there is no such ``tokenizer.json``.

    Example:
        >>> task = Language("tinyshakespeare", seq_len=128)
        >>> task.metric.name, [metric.name for metric in task.also]
        ('bits_per_byte', ['perplexity', 'accuracy'])
    """

    corpus: str = option("wikitext2", f"The text: {', '.join(CORPORA)}.")
    tokens: str = option(
        "bytes", "What is predicted: bytes, words, bpe, or the path of a tokenizer.json."
    )
    seq_len: int = option(256, "Tokens of a window.")
    packed: bool = option(True, "Whether documents follow each other in a window.")
    streamed: bool = option(False, "Whether the host sends every block of windows.")
    judged_on: str = option("test", "What models are judged on: validation or test.")

    demands = ("language",)
    data_sets = ("wikitext2", "wikitext103", "tinyshakespeare", "imdb", "gpt2_bpe")
    presets: ClassVar = {
        "demo": Preset(
            settings={
                "seq_len": 128,
                "batch_size": 16,
                "steps": 400,
                "eval_every": 100,
                "eval_examples": 128,
                "learning_rates": (2e-3,),
                "stop_at": None,
            }
        ),
        "smoke": Preset(settings={"seq_len": 16, "stop_at": None}),
        "paper": published.LANGUAGE,
    }

    def __post_init__(self) -> None:
        choose("corpus", self.corpus, CORPORA)
        choose("judged_on", self.judged_on, SPLITS[1:])
        corpus, how = CORPORA[self.corpus], encoding(self.tokens)
        if how.known:  # a file, which a run that is continued in another folder finds as well
            object.__setattr__(self, "tokens", str(Path(self.tokens).expanduser().resolve()))
        if self.tokens == "words" and not corpus.words:
            having = ", ".join(name for name, corpus in CORPORA.items() if corpus.words)
            raise ValueError(
                f"Language: expected tokens of bytes or bpe for {self.corpus}, got 'words', which "
                f"need a text in which unknown words are marked: {having}."
            )
        if corpus.documents and how.newline is None:
            raise ValueError(
                f"Language: expected tokens of bytes or bpe for {self.corpus}, whose lines are "
                f"documents, got {self.tokens!r}, of which no token is known to end a line."
            )
        if self.streamed and not self.packed:
            raise ValueError(
                "Language: expected packed=True with streamed=True, got packed=False; documents in "
                "windows of their own are not streamed."
            )
        if self.seq_len < 1:
            raise ValueError(f"Language: expected seq_len >= 1, got {self.seq_len}.")
        if not self.packed and not corpus.documents:
            having = ", ".join(name for name, corpus in CORPORA.items() if corpus.documents)
            raise ValueError(
                f"Language: expected packed=True for {self.corpus}, which is one text; only "
                f"{having} has documents."
            )

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The text and its tokens."""
        return f"{CORPORA[self.corpus].title}, {encoding(self.tokens).called}"

    def provenance(self) -> str:
        """The files of the text and of the encoding."""
        made = self._preparation()
        digests = (f"tokenizer.json sha256:{digest[:12]}" for digest in made.known)
        return ", ".join((made.provenance(), *digests))

    @property
    def metric(self) -> Metric:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bits per byte for bytes, else perplexity."""
        return BITS_PER_BYTE if self.tokens == "bytes" else PERPLEXITY

    @property
    def also(self) -> tuple[Metric, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The other of the two, and the accuracy."""
        other = PERPLEXITY if self.tokens == "bytes" else BITS_PER_BYTE
        return (other, ACCURACY)

    @property
    def vocab_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of tokens there are."""
        if self.tokens == "bytes":
            return 256
        return int(self._prepared()["vocab_size"])

    @property
    def window(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Tokens that are read, and one more that is predicted."""
        return self.seq_len + 1

    @property
    def stride(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Windows overlap in the one token that is read and predicted."""
        return self.seq_len

    def _preparation(self) -> Preparation:
        return preparation(self.corpus, self.tokens)

    def _prepared(self) -> dict[str, np.ndarray]:
        return self._preparation().arrays()

    def _part(self, split: str) -> str:
        return "train" if split == TRAIN else self.judged_on

    def arrays(self, split: str) -> PyTree:
        """The tokens of a split; for documents in windows of their own, where each is, too."""
        stream = self._prepared()[self._part(split)]
        if self.packed:
            return stream
        starts, lengths = _documents(stream, self._newline())
        return {"tokens": np.append(stream, np.zeros(self.window, stream.dtype)),
                "starts": starts.astype(np.int32), "lengths": lengths.astype(np.int32)}  # fmt: skip

    def size(self, split: str) -> int | None:
        """Number of windows."""
        return super().size(split) if self.packed else len(self.arrays(split)["starts"])

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a window, or of a document."""
        if self.packed:
            return super().example(pick, data)
        return self._alone(data["tokens"], data["starts"][pick], data["lengths"][pick])

    def read(self, row: PyTree) -> Example:
        """A window; a document starts after every token that ends a line."""
        row = row.astype(jnp.int32)
        inputs, steps = row[:-1], jnp.arange(self.seq_len, dtype=jnp.int32)
        reset = None
        if CORPORA[self.corpus].documents:
            reset = jnp.concatenate([jnp.zeros(1, bool), inputs[:-1] == self._newline()])
        return Example(inputs, steps, row[1:], reset=reset)

    def _alone(self, tokens: Array, start: Array, length: Array) -> Example:
        row = jnp.take(tokens, start + jnp.arange(self.window)).astype(jnp.int32)
        steps = jnp.arange(self.seq_len, dtype=jnp.int32)
        # The token that ends the document is predicted, and nothing after it.
        counted = jnp.minimum(length - 1, self.seq_len)
        return Example(row[:-1], steps, row[1:], (steps < counted) * 1.0, length=counted)

    def _newline(self) -> int:
        newline = encoding(self.tokens).newline
        assert newline is not None  # a text without documents has not asked
        return newline

    def measure(
        self, outputs: Float[Array, "*batch k"], targets: Shaped[Array, "..."]
    ) -> dict[str, Shaped[Array, "*batch"]]:
        """Of every token −log p in nats, per byte in bits, and per word; and whether it is right.

        Bytes and words per token are those of the split that models are judged on.
        """
        found = cross_entropy(outputs, targets)
        per_byte, per_word = self._factors()
        nats = found["loss"]
        return found | {"bits_per_byte": per_byte * nats, "perplexity": per_word * nats}

    def _factors(self) -> tuple[float, float]:
        """Of nats per token to bits per byte, and to nats per word."""
        made, part = self._prepared(), self.judged_on
        num_bytes, num_words = made[f"{part}_sizes"].tolist()
        tokens = len(made[part])
        return tokens / num_bytes / math.log(2), tokens / num_words

    def baselines(self) -> dict[str, Baseline]:
        """Guessing, the frequency of each token, and that of pairs of tokens."""
        made = self._prepared()
        frequency, pairs = _frequencies(
            made["train"], made[self.judged_on], self.vocab_size, self._key()
        )
        per_byte, per_word = self._factors()

        def score(nats: float) -> float:
            if self.metric is BITS_PER_BYTE:
                return per_byte * nats
            return math.exp(min(per_word * nats, 700.0))

        return {
            "chance": Baseline(score(math.log(self.vocab_size)), "guessing among all tokens"),
            "trivial": Baseline(score(frequency), "the frequency of each token"),
            "linear": Baseline(score(pairs), "the frequency of each pair of tokens (bigrams)"),
        }

    def _key(self) -> tuple[object, ...]:
        own = self._preparation()
        return (own.name, own.key(), self.judged_on, 1)

    def describe(self) -> str:
        """The text, its tokens, and the length of a window."""
        how = "" if self.packed else ", a document per window"
        return f"{self.title}, L = {self.seq_len}{how}, judged on {self.judged_on}"

    def slug(self) -> str:
        """The text, its tokens and the length of a window."""
        return f"{self.corpus}-{encoding(self.tokens).name}-L{self.seq_len}" + (
            "" if self.packed else "-padded"
        )


def _documents(
    stream: Shaped[np.ndarray, " n"], newline: int
) -> tuple[Int[np.ndarray, " docs"], Int[np.ndarray, " docs"]]:
    """Where each document starts and how long it is, its last token included."""
    ends = np.flatnonzero(stream == newline) + 1
    starts = np.concatenate([[0], ends[:-1]])
    return starts, ends - starts


def _frequencies(
    seen: Shaped[np.ndarray, " n"],
    held_out: Shaped[np.ndarray, " m"],
    size: int,
    key: tuple[object, ...],
) -> tuple[float, float]:
    r"""Mean −log p of held-out tokens by frequencies of tokens, and of pairs of tokens.

    Tokens are counted once more than they are seen. A pair (a, b) has the probability that Witten
    and Bell give it, with n(a) followers of a, T(a) of them different:

    .. math:: p(b \mid a) = \frac{n(a, b) + T(a) \, p(b)}{n(a) + T(a)}.
    """

    def made() -> dict[str, np.ndarray]:
        counts = np.bincount(seen, minlength=size) + 1.0
        single = counts / counts.sum()
        a, b = seen[:-1].astype(np.int64), seen[1:].astype(np.int64)
        pairs, times = np.unique(a * size + b, return_counts=True)
        followers = np.bincount(a, minlength=size)
        different = np.bincount(pairs // size, minlength=size)
        x, y = held_out[:-1].astype(np.int64), held_out[1:].astype(np.int64)
        at = np.minimum(np.searchsorted(pairs, x * size + y), len(pairs) - 1)
        together = np.where(pairs[at] == x * size + y, times[at], 0)
        whole = np.maximum(followers[x] + different[x], 1)
        smooth = np.where(followers[x] > 0, different[x], 1)
        pair = (together + smooth * single[y]) / whole
        return {"nats": -np.array([np.log(single[held_out]).mean(), np.log(pair).mean()])}

    frequency, pairs = data.cached("token-frequencies", key, made)["nats"].tolist()
    return frequency, pairs
