"""What a text is cut into: bytes, words, GPT-2's byte pairs, or the tokens of a tokenizer's file.

References:
    Merity et al. (2016), Pointer Sentinel Mixture Models, arXiv:1609.07843 (words, with a token for
    the end of a line). Radford et al. (2019), GPT-2 (byte pairs).
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dsfjax._util import tokenizer
from dsfjax._util.names import choose
from dsfjax.tasks import data
from dsfjax.tasks.data import Read

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = b"<eos>"
BPE_FILES = ("gpt2_bpe/encoder.json", "gpt2_bpe/vocab.bpe")


class Encoding(NamedTuple):
    """A way to cut texts into tokens.

    Attributes:
        name: A word for the names of folders.
        called: What its tokens are called.
        encode: The texts as token ids, and the size of the vocabulary; files of data sets are read
            by its second argument.
        files: What `encode` reads.
        newline: The token that ends every line and nothing else; None if there is no such token.
        known: What the ids depend on beside the files.
    """

    name: str
    called: str
    encode: Callable[[Sequence[bytes], Read], tuple[list[np.ndarray], int]]
    files: tuple[str, ...] = ()
    newline: int | None = None
    known: tuple[str, ...] = ()


def words_of(text: bytes) -> list[bytes]:
    r"""What white space separates, and `EOS` for the end of every line.

    Args:
        text: The text.

    Example:
        >>> words_of(b"to be\nor not\n")
        [b'to', b'be', b'<eos>', b'or', b'not', b'<eos>']
    """
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    found: list[bytes] = []
    for line in lines:
        found += line.split()
        found.append(EOS)
    return found


def _as_bytes(texts: Sequence[bytes], read: Read) -> tuple[list[np.ndarray], int]:
    del read
    return [np.frombuffer(text, np.uint8) for text in texts], 256


def _as_words(texts: Sequence[bytes], read: Read) -> tuple[list[np.ndarray], int]:
    del read
    each = [words_of(text) for text in texts]
    ids = {word: i for i, word in enumerate(dict.fromkeys(each[0]))}
    try:
        return [np.array([ids[word] for word in words], np.int32) for words in each], len(ids)
    except KeyError as error:
        raise data.DataError(
            f"language: expected only words of the training text, got {error.args[0]!r} in another "
            "split; use tokens='bytes' or 'bpe'."
        ) from error


def _as_byte_pairs(texts: Sequence[bytes], read: Read) -> tuple[list[np.ndarray], int]:
    return _by_line(texts, byte_pairs(read))


def byte_pairs(read: Read = data.read) -> "Tokenizer":
    """GPT-2's byte-pair encoding.

    Args:
        read: Reads the files of the data set "gpt2_bpe".

    Raises:
        ImportError: Without the package tokenizers (the extra "data").
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = json.loads(read(BPE_FILES[0]))
    lines = data.text(read(BPE_FILES[1]), BPE_FILES[1]).split("\n")
    merges: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#v")]
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    return found


def _by_line(texts: Sequence[bytes], using: "Tokenizer") -> tuple[list[np.ndarray], int]:
    """The tokens of every line with its end: a whole book at once takes much memory."""
    size = using.get_vocab_size()
    dtype = np.uint16 if size <= 2**16 else np.int32
    found = []
    for text in texts:
        # Other characters at which Python would cut lines, such as U+0085, occur within reviews.
        lines = [line + "\n" for line in data.text(text, "the text").split("\n")]
        lines[-1] = lines[-1].removesuffix("\n")
        encoded = using.encode_batch(lines, add_special_tokens=False)
        found.append(np.concatenate([np.array(each.ids, dtype) for each in encoded]))
    return found, size


ENCODINGS = {
    "bytes": Encoding("bytes", "bytes", _as_bytes, newline=10),
    "words": Encoding("words", "words", _as_words),
    "bpe": Encoding("bpe", "byte pairs", _as_byte_pairs, BPE_FILES, newline=198),
}
"""Name to encoding."""


def encoding(tokens: str) -> Encoding:
    """An encoding by name, or that of a file.

    Args:
        tokens: One of `ENCODINGS`, or the path of a ``tokenizer.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a file is named and the package tokenizers is missing (the extra "data").
        ValueError: If the name is unknown; the nearest is named. If the file is no tokenizer.
    """
    if not tokens.endswith(".json"):
        choose("tokens", tokens, (*ENCODINGS, "FOLDER/tokenizer.json"))
        return ENCODINGS[tokens]
    file = Path(tokens).expanduser()
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return _of_file(file, digest)


@functools.cache
def _of_file(file: Path, digest: str) -> Encoding:
    """The encoding of a file with that content, which is read once."""
    using = tokenizer.read(file)
    name = f"tokenizer-{digest[:8]}"
    called = f"tokens of {file.absolute().parent.name}"
    return Encoding(name, called, lambda texts, _: _by_line(texts, using), known=(digest,))
