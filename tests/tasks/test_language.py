"""Texts as tokens, windows and documents; perplexity and bits per byte; streams."""

import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, TRAIN, data, stream
from dsfjax.tasks.language_modelling import Language
from dsfjax.tasks.tokenization import byte_pairs
from tests.tasks.conftest import MakeUp

LINES = b" = Title = \n\n the cat sat on the mat \n a cat , a mat \n"
SHAKESPEARE = b"To be, or not to be:\nthat is the question.\n" * 40


@pytest.fixture
def texts(made_up: MakeUp) -> Path:
    reviews = [f"film {i % 25} was {'good' if i % 3 else 'bad' * 9}".encode() for i in range(100)]
    packed = io.BytesIO()
    np.savez(packed, unsup=np.arange(100) % 25)
    return made_up(
        {
            "wikitext2/wiki.train.tokens": LINES * 6,
            "wikitext2/wiki.valid.tokens": LINES,
            "wikitext2/wiki.test.tokens": b" the mat \n a cat \n",
            "tinyshakespeare/input.txt": SHAKESPEARE,
            "imdb/imdb_unsup.txt": b"".join(review + b"\n" for review in reviews),
            "imdb/imdb_movie_ids.npz": packed.getvalue(),
        }
    )


def test_words_and_bytes_count_the_same_text(texts: Path) -> None:
    words, letters = Language("wikitext2", "words", 4), Language("wikitext2", "bytes", 8)
    stream_of_words = words.arrays(HELD_OUT)
    assert len(stream_of_words) == 6 and words.vocab_size == 10  # the mat <eos> a cat <eos>
    assert words.measured()[0].name == "perplexity"
    assert letters.measured()[0].name == "bits_per_byte"
    assert bytes(letters.arrays(HELD_OUT)) == b" the mat \n a cat \n"
    # A model that says 1/2 of every word, and one that says the same of the text byte by byte.
    nats = math.log(2)
    outputs = jnp.zeros((1, 2))
    for task, tokens in ((words, 6), (letters, 18)):
        each = nats * 6 / tokens
        target = jnp.zeros(1, jnp.int32)
        logits = outputs.at[0, 1].set(math.log(math.exp(each) - 1))
        found = task.measure(logits, target)
        assert float(found["loss"][0]) == pytest.approx(each, rel=1e-5)
        assert math.exp(found["perplexity"][0]) == pytest.approx(2, rel=1e-5)
        assert float(found["bits_per_byte"][0]) == pytest.approx(6 / 18, rel=1e-5)


def test_windows_follow_each_other(texts: Path) -> None:
    task = Language("tinyshakespeare", seq_len=16)
    seen = bytes(task.arrays(TRAIN))
    assert seen == SHAKESPEARE[: int(0.9 * len(SHAKESPEARE))]
    size = task.size(TRAIN)
    assert size == (len(seen) - 1) // 16
    example = jax.jit(lambda pick: task.example(pick, task.arrays(TRAIN)))
    found = example(3)
    assert bytes(np.asarray(found.inputs, np.uint8)) == seen[48:64]
    assert bytes(np.asarray(found.targets, np.uint8)) == seen[49:65]
    assert found.reset is None and found.query_positions.tolist() == list(range(16))


def test_documents_packed_or_alone(texts: Path) -> None:
    packed, alone = (Language("imdb", seq_len=24, packed=p) for p in (True, False))
    text = bytes(packed.arrays(TRAIN))
    assert len(text.splitlines()) == 84  # 4 of 25 films are held out, two of them for testing
    found = packed.example(jnp.int32(1), packed.arrays(TRAIN))
    starts = [i for i in range(24) if text[24 + i - 1 : 24 + i] == b"\n"]
    assert found.reset is not None
    assert np.flatnonzero(found.reset).tolist() == [i for i in starts if i > 0]
    data_of_split = jax.tree.map(jnp.asarray, alone.arrays(TRAIN))
    assert alone.size(TRAIN) == 84
    for index in (0, 2, 83):
        review = text.splitlines(keepends=True)[index]
        one = alone.example(jnp.int32(index), data_of_split)
        assert one.length is not None and one.weights is not None
        length = int(one.length)
        assert length == min(len(review) - 1, 24)
        assert bytes(np.asarray(one.inputs[:length], np.uint8)) == review[:length]
        assert bytes(np.asarray(one.targets[:length], np.uint8)) == review[1 : length + 1]
        assert np.asarray(one.weights).tolist() == [1.0] * length + [0.0] * (24 - length)
    films = [
        {line.split(b" was")[0] for line in bytes(packed._prepared()[part]).splitlines()}
        for part in ("train", "validation", "test")
    ]
    assert not films[0] & films[1] and not films[0] & films[2] and not films[1] & films[2]


def test_frequencies_of_tokens_and_pairs(texts: Path) -> None:
    task = Language("wikitext2", "words", 4)
    seen, test = task.arrays(TRAIN), task.arrays(HELD_OUT)
    single = (np.bincount(seen, minlength=10) + 1) / (len(seen) + 10)

    def pair(a: int, b: int) -> float:
        followers = seen[1:][seen[:-1] == a]
        kinds = len(set(followers.tolist()))
        return ((followers == b).sum() + kinds * single[b]) / (len(followers) + kinds)

    found = task.baselines()
    per_word = [math.log(pair(a, b)) for a, b in zip(test, test[1:], strict=False)]
    assert found["linear"].score == pytest.approx(math.exp(-np.mean(per_word)))
    assert found["trivial"].score == pytest.approx(math.exp(-np.log(single[test]).mean()))
    assert found["chance"].score == pytest.approx(10)
    letters = Language("wikitext2", "bytes", 4).baselines()  # of the same files, other tokens
    assert 0 < letters["linear"].score < letters["trivial"].score < letters["chance"].score == 8


def test_tokens_of_a_file(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(("?", "the", "mat", "cat", "a", "\n"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(" +"), "removed")
    file = tmp_path / "own" / "tokenizer.json"
    file.parent.mkdir()
    made.save(str(file))
    task, words = Language("wikitext2", str(file), 4), Language("wikitext2", "words", 4)
    monkeypatch.chdir(tmp_path)
    assert Language("wikitext2", "own/tokenizer.json", 4) == task  # as its folder may change
    assert task.title == "WikiText-2, tokens of own" and task.vocab_size == 6
    # " the mat \n a cat \n", where a line ends with a token and not with a word
    assert task.arrays(HELD_OUT).tolist() == [1, 2, 5, 4, 3, 5]
    assert task.arrays(HELD_OUT).dtype == np.uint16
    assert task._factors() == words._factors()
    assert "tokenizer.json sha256:" in task.provenance()
    # The ids belong to the content of the file, not to its name.
    slug = task.slug()
    made.add_tokens(["cat \n"])
    made.save(str(file))
    assert task.vocab_size == 7 and task.slug() != slug
    with pytest.raises(ValueError, match="expected tokens of bytes or bpe for imdb, whose lines"):
        Language("imdb", str(file))
    with pytest.raises(FileNotFoundError, match="none.json: expected a tokenizer, found none"):
        Language("wikitext2", str(tmp_path / "none.json"))
    file.write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json: expected a tokenizer, got"):
        Language("wikitext2", str(file))
    with pytest.raises(ValueError, match="unknown tokens 'byts'; did you mean 'bytes'?"):
        Language("wikitext2", "byts")


def test_what_is_wrong_is_named(texts: Path, made_up: MakeUp) -> None:
    with pytest.raises(ValueError, match="expected tokens of bytes or bpe for imdb"):
        Language("imdb", "words")
    with pytest.raises(ValueError, match="only imdb has documents"):
        Language("wikitext2", packed=False)
    with pytest.raises(ValueError, match="documents in windows of their own are not streamed"):
        Language("imdb", packed=False, streamed=True)
    wrong = {"tinyshakespeare/input.txt": b"to be\nor \xff not\n"}
    made_up(wrong)
    with pytest.raises(
        data.DataError, match=r"input\.txt, train split, line 2 .*expected UTF-8 text"
    ):
        Language("tinyshakespeare").arrays(TRAIN)
    other = {f"wikitext2/wiki.{part}.tokens": b" a \n" for part in ("train", "valid")}
    made_up(other | {"wikitext2/wiki.test.tokens": b" b \n"})
    with pytest.raises(data.DataError, match="expected only words of the training text, got b'b'"):
        Language("wikitext2", "words").arrays(TRAIN)


def test_a_stream_depends_on_the_step_alone(texts: Path) -> None:
    pytest.importorskip("grain")
    task = Language("tinyshakespeare", seq_len=8, streamed=True)
    size = task.size(TRAIN)
    assert size is not None
    epochs = [np.stack(list(stream.rows(task, k * size, (k + 1) * size))) for k in (0, 1)]
    whole = {bytes(row) for row in (task.row(task.arrays(TRAIN), i) for i in range(size))}
    for epoch in epochs:  # every window once
        assert {bytes(row) for row in epoch} == whole
    assert not np.array_equal(epochs[0], epochs[1])
    block = jnp.asarray(task.block(2, 2, 4))
    np.testing.assert_array_equal(block, epochs[0][8:16])
    # Step 3 reads the second half of the block that began at step 2.
    picks = task.picks(jax.random.key(0), jnp.int32(3), 4)
    drawn = jax.vmap(lambda pick: task.drawn(pick, block))(picks)
    np.testing.assert_array_equal(drawn.inputs, block[4:, :-1])


@pytest.mark.slow
def test_byte_pairs_are_those_of_gpt2(data_dir: Path) -> None:
    pytest.importorskip("tokenizers")
    found = byte_pairs()
    assert found.encode("Hello world").ids == [15496, 995]
    assert found.get_vocab_size() == 50_257


@pytest.mark.slow
def test_published_counts(data_dir: Path) -> None:
    made = tasks.get("language", corpus="wikitext2", tokens="words")
    assert made.vocab_size == 33_278
    sizes = [len(made._prepared()[part]) for part in ("train", "validation", "test")]  # pyright: ignore
    assert sizes == [2_088_628, 217_646, 245_569]
