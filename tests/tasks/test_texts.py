"""Reviews and pairs of texts: from files of their formats, and from the user's own."""

import io
from pathlib import Path

import jax
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, TRAIN, data, examples, retrieval, text
from tests.tasks.conftest import MakeUp
from tests.tasks.test_contract import check

TRAIN_FILE, TEST_FILE = text.FILES["train"], text.FILES["test"]
FILMS, AAN = retrieval._FILMS, retrieval._AAN


def _reviews(count: int, first: int) -> tuple[list[str], bytes]:
    """Reviews sorted by class, of 13 characters and one of 15, and the file of them."""
    bits = ["".join("et"[(first + i) >> bit & 1] for bit in range(7)) for i in range(count)]
    texts = [f"{own}  t\tä{'zz' * (first + i == 3)}{chr(0x85)}" for i, own in enumerate(bits)]
    lines = [
        f"{int(i >= count // 2)}\t{first + i}\t{1 + 8 * (i >= count // 2) + i % 2}\t{own}\n"
        for i, own in enumerate(texts)
    ]
    return texts, "".join(lines).encode()


def _make_up(made_up: MakeUp, **films: np.ndarray) -> tuple[list[str], list[str]]:
    (seen, train), (others, test) = _reviews(40, 0), _reviews(20, 100)
    files, rows = {TRAIN_FILE: train, TEST_FILE: test}, {TRAIN_FILE: 40, TEST_FILE: 20}
    if films:
        np.savez(file := io.BytesIO(), **films)  # type: ignore[arg-type]
        files[FILMS] = file.getvalue()
    made_up(files, rows)
    return seen, others


def test_reviews_by_characters(made_up: MakeUp) -> None:
    seen, _ = _make_up(made_up)
    task = tasks.get("imdb", seq_len=20)
    found = text.CHARACTERS.arrays()["characters"]
    everything = "".join(seen)
    assert [everything.count(chr(c)) >= 15 for c in found] == [True] * len(found)
    assert chr(found[0]) == "e" and sorted(map(chr, found)) == ["\t", " ", "e", "t", "\x85", "ä"]
    ids = {chr(c): i + 3 for i, c in enumerate(found)}
    tokens, lengths, labels = task.arrays(TRAIN)
    assert tokens.dtype == np.uint8 and labels.tolist() == [0] * 20 + [1] * 20
    expected = [ids[c] for c in seen[0]] + [text.END] + [text.PAD] * 6
    assert tokens[0].tolist() == expected and lengths[0] == 14
    assert (tokens[3] == text.UNKNOWN).sum() == 2 and lengths.max() == 16
    assert (tokens != 0).sum(axis=1).tolist() == lengths.tolist()
    batch = examples(task, TRAIN, 3, jax.random.key(0))
    assert batch.length is not None
    assert (batch.query_positions[:, 0] == batch.length - 1).all()

    cut = tasks.get("imdb", seq_len=5)
    tokens, lengths, _ = cut.arrays(TRAIN)
    assert (
        tokens[1].tolist() == [ids[c] for c in "teee"] + [text.END] and lengths.tolist() == [5] * 40
    )
    held_out = tasks.get("imdb", seq_len=20, judged_on="validation")
    assert (held_out.size(TRAIN), held_out.size(HELD_OUT)) == (36, 4)
    assert 5 < task.arrays(HELD_OUT)[2][:15].sum() < 10  # sorted by class in the file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imdb", "imdb_bytes"])
def test_contract_of_reviews(name: str, made_up: MakeUp) -> None:
    _make_up(made_up)
    check(name, tasks.get(name, seq_len=20))


def test_reviews_by_bytes(made_up: MakeUp) -> None:
    seen, _ = _make_up(made_up)
    task = tasks.get("imdb_bytes", seq_len=11)
    row = [leaf[0] for leaf in task.arrays(TRAIN)]
    one = task.read(row)  # type: ignore[attr-defined]
    own = seen[0].encode()
    assert len(own) == 15 and one.inputs.tolist() == [b + 1 for b in own[:11]]
    assert (int(one.length), one.query_positions.tolist()) == (11, [10])
    padded = tasks.get("imdb_bytes", seq_len=17)
    one = padded.read([leaf[0] for leaf in padded.arrays(TRAIN)])  # type: ignore[attr-defined]
    assert one.inputs.tolist() == [b + 1 for b in own] + [0, 0] and int(one.length) == 15


def test_reviews_of_tensorflow_datasets(made_up: MakeUp) -> None:
    seen, others = _make_up(made_up)
    records = {"train": seen, "test": others}
    found = text._characters(
        text._of_tfds(
            lambda split: [
                {"text": t.encode(), "label": i % 2} for i, t in enumerate(records[split])
            ]
        )
    )
    expected = text.CHARACTERS.arrays()
    np.testing.assert_array_equal(found["train_flat"], expected["train_flat"])
    assert found["test_labels"].tolist() == [0, 1] * 10


def test_bad_reviews(made_up: MakeUp) -> None:
    good = _reviews(40, 0)[1]
    lines = good.splitlines(keepends=True)
    for content, message in [
        (good + b"1\tx\n", f"{TRAIN_FILE}, line 41: expected 4 columns, got 2; make it of https"),
        (good.replace(b"\t3\t2\t", b"\t3\tgood\t"), "expected a label 0 or 1, an id and a rating"),
        (b"2" + good[1:], f"{TRAIN_FILE}, line 1: expected a label 0 or 1"),
        (b"".join(lines[:-1]), "expected 40 rows, got 39"),
        (
            good.replace("ä".encode(), b"\xe4"),
            r"line 1 \(byte 17\): expected UTF-8 text, got .*xe4",
        ),
    ]:
        made_up({TRAIN_FILE: content, TEST_FILE: b""}, {TRAIN_FILE: 40})
        with pytest.raises(data.DataError, match=message):
            tasks.get("imdb").arrays(TRAIN)
    with pytest.raises(ValueError, match="Imdb: expected seq_len of at least 2, got 1"):
        tasks.get("imdb", seq_len=1)


@pytest.fixture
def films(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, int]:
    """The film of each review to train, and the pairs of reviews of one film."""
    train, test = np.arange(40) % 8, 50 + np.arange(20) % 5
    train[:2] = 50  # a film that is in both
    _make_up(made_up, train=train, test=test, unsup=np.zeros(0, int))
    counts = np.bincount(train[2:])
    same = int((counts * (counts - 1) // 2).sum())
    monkeypatch.setattr(retrieval, "NUM_PAIRS", {"train": 2 * same, "test": 2 * 5 * 6})
    return train, same


@pytest.mark.slow
def test_contract_of_pairs(films: tuple[np.ndarray, int]) -> None:
    check("imdb_same_film", tasks.get("imdb_same_film", seq_len=32))


def test_pairs_of_reviews(films: tuple[np.ndarray, int]) -> None:
    train, same = films
    task = tasks.get("imdb_same_film", seq_len=32)
    ratings = 1 + 8 * (np.arange(40) >= 20) + np.arange(40) % 2
    found = task.arrays(TRAIN)
    alike, different = (found.pairs[found.labels == label] for label in (1, 0))
    assert len(alike) == len(different) == same
    assert len({tuple(sorted(pair)) for pair in alike.tolist()}) == same
    assert (train[alike[:, 0]] == train[alike[:, 1]]).all()
    assert (train[different[:, 0]] != train[different[:, 1]]).all()
    assert 50 not in train[found.pairs]
    for column in (0, 1):  # neither rating tells
        sorted_ratings = [sorted(ratings[pairs[:, column]]) for pairs in (alike, different)]
        assert sorted_ratings[0] == sorted_ratings[1]
    validated = tasks.get("imdb_same_film", seq_len=32, judged_on="validation")
    assert len(validated.arrays(HELD_OUT).labels) == validated.size(HELD_OUT)

    pick = int(np.flatnonzero((found.pairs == 3).any(axis=1))[0])
    one = task.example(jax.numpy.array(pick), jax.tree.map(jax.numpy.asarray, found))
    u, v = (found.documents[row, : found.lengths[row]] for row in found.pairs[pick])
    assert one.inputs.tolist() == [*u, *v, *[0] * (32 - len(u) - len(v))]
    assert one.reset is not None and np.flatnonzero(one.reset).tolist() == [0, len(u)]
    assert int(one.length) == len(u) + len(v)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected an even seq_len of at least 4, got 7; use 8"):
        tasks.get("imdb_same_film", seq_len=7)


def _aan_files() -> dict[str, bytes]:
    lines = [f"{i % 2}.0\tp{i}\tp{(i + 1) % 6}\ttext {i}\ttext {(i + 1) % 6}!\n" for i in range(8)]
    return {path: "".join(lines).encode() for path in AAN.values()}


def test_pairs_of_papers(made_up: MakeUp) -> None:
    files, rows = _aan_files(), dict.fromkeys(AAN.values(), 8)
    made_up(files, rows)
    task = tasks.get("aan", seq_len=16)
    found = task.arrays(TRAIN)
    assert len(found.documents) == 8 and found.documents.dtype == np.uint8  # p0 to p7, once each
    assert found.pairs[1].tolist() == [1, 2] and found.labels.tolist() == [0, 1] * 4
    one = task.example(jax.numpy.array(1), jax.tree.map(jax.numpy.asarray, found))
    assert one.inputs.tolist() == [b + 1 for b in b"text 1!text 2!"] + [0, 0]
    assert task.size(HELD_OUT) == 8 and sorted(task.arrays(HELD_OUT).labels) == [0] * 4 + [1] * 4

    path = AAN["eval"]
    for content, message in [
        (
            b"1\ta\tb\ttext\n",
            "line 1: expected 5 columns: label, two ids, two texts, got 4; get it",
        ),
        (b"yes\ta\tb\tc\td\n", "line 1: expected a label 0 or 1, got yes"),
        (b"1\ta\tb\tc\t\n", "line 1: expected a text, got none for b"),
        (files[path][:-20], "line 8: expected 5 columns"),
        (files[path] * 2, "expected 8 pairs, got 16"),
    ]:
        made_up(files | {path: content}, rows)
        with pytest.raises(data.DataError, match=f"{path}.*{message}"):
            tasks.get("aan").arrays(TRAIN)
    packed = data.data_dir() / f"{path}.xz"
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(
        data.DataError, match="tsv.xz: expected a whole xz file, got one that is cu"
    ):
        tasks.get("aan").arrays(TRAIN)


@pytest.mark.slow
def test_the_users_own_texts(data_dir: Path) -> None:
    del data_dir
    task = tasks.get("imdb")
    assert len(text.CHARACTERS.arrays()["characters"]) == 131 and task.vocab_size == 134
    for split in (TRAIN, HELD_OUT):
        tokens, lengths, labels = task.arrays(split)
        assert tokens.shape == (25_000, 4096) and labels.sum() == 12_500
        assert abs(labels[:1000].mean() - 0.5) < 0.05 or split == TRAIN
    tokens, lengths, _ = tasks.get("imdb", seq_len=2**14).arrays(TRAIN)
    characters = lengths - 1
    assert (round(characters.mean()), np.median(characters), characters.max()) == (1325, 979, 13704)
    same = tasks.get("imdb_same_film", seq_len=64)
    for split, count in ((TRAIN, 190_831), (HELD_OUT, 186_019)):
        assert np.bincount(same.arrays(split).labels).tolist() == [count, count]
    scores = {name: tasks.get(name).baselines()["linear"].score for name in ("imdb", "imdb_bytes")}
    assert abs(scores["imdb"] - 0.663) < 0.005 and abs(scores["imdb_bytes"] - 0.643) < 0.005
