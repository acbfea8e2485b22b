"""ListOps: the language, the law of the random expressions, and the task."""

import hashlib
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, TRAIN, data, examples
from dsfjax.tasks.listops import SYMBOLS, decode, encode, evaluate, tokens
from dsfjax.tasks.listops.trees import distinct, sample

LOW, HIGH, L = 500, 2000, 2048
# Shares of the values 0 to 9 among 6,000 expressions of another implementation.
SHARES = np.array([0.170, 0.091, 0.073, 0.078, 0.089, 0.090, 0.082, 0.076, 0.077, 0.174])


def lengths_of_the_law() -> np.ndarray:
    """P(length l) of a random tree, l = 0 … 1,999, by recursion on generating functions.

    A node of depth d has length 1 with probability 3/4, and else 2 plus the lengths of 2 to 10
    independent nodes of depth d + 1.
    """
    nodes = np.zeros(HIGH)
    nodes[1] = 1
    for _ in range(9):
        power, lists = nodes, np.zeros(HIGH)
        for _ in range(2, 11):
            power = np.convolve(power, nodes)[:HIGH]
            lists += power / 9
        nodes = np.zeros(HIGH)
        nodes[1] = 0.75
        nodes[2:] += 0.25 * lists[:-2]
    return nodes


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_the_law(rounds: int) -> None:
    roots, random = 2_000, np.random.default_rng(7)
    drawn = [
        sample(random, roots, longer_than=LOW, shorter_than=HIGH, seq_len=L) for _ in range(rounds)
    ]
    ids, values = (np.concatenate(each) for each in zip(*drawn, strict=True))
    length, n = (ids != 0).sum(axis=1) - 1, len(ids)
    assert LOW < length.min() and length.max() < HIGH

    def near(share: float | np.ndarray, expected: float | np.ndarray, count: int) -> bool:
        error = np.sqrt(np.asarray(expected) * (1 - np.asarray(expected)) / count)
        return bool((np.abs(share - expected) < 4 * error).all())

    exact = lengths_of_the_law()[LOW + 1 : HIGH]
    # One root in four is an operator; the others are never accepted.
    assert near(n / (rounds * roots), 4 * exact.sum(), rounds * roots)
    assert abs(exact.sum() - 0.0824) < 0.001  # the share among 6,000 accepted ones, ± 0.001
    # Kolmogorov and Smirnov: a larger distance has probability 0.0001.
    at_most = np.searchsorted(np.sort(length), np.arange(LOW + 1, HIGH), side="right") / n
    assert np.abs(at_most - np.cumsum(exact) / exact.sum()).max() < 2.23 / n**0.5

    counts = np.bincount(ids.ravel(), minlength=len(SYMBOLS))
    assert near(counts[8:] / counts[8:].sum(), 0.1, int(counts[8:].sum()))
    assert near(counts[3:7] / counts[3:7].sum(), 0.25, int(counts[3:7].sum()))
    assert counts[1] == 0 and counts[2] == n and counts[3:7].sum() == counts[7]
    assert near(np.bincount(values, minlength=10) / n, SHARES, 1 / (1 / n + 1 / 6_000))  # pyright: ignore[reportArgumentType]
    opened = np.cumsum(((ids >= 3) & (ids < 7)) * 1 - (ids == 7), axis=1)
    assert (opened.max(axis=1) == 9).all()  # operators as deep as they may be, in every expression

    for row, value in zip(ids[:200], values[:200], strict=True):
        assert evaluate(decode(row)) == value
        end = np.argmax(row == 2)
        assert not row[end + 1 :].any()
        np.testing.assert_array_equal(encode(tokens(decode(row))), row[:end])


def test_expressions_are_distinct_and_the_same_for_a_seed() -> None:
    short = {"longer_than": 3, "shorter_than": 7, "seq_len": 8}
    some = distinct(3, 2_000, **short)
    assert len(np.unique(some.ids, axis=0)) == 2_000
    for row, value in zip(some.ids, some.values, strict=True):
        assert evaluate(decode(row)) == value
    np.testing.assert_array_equal(distinct(3, 500, **short).ids, some.ids[:500])
    assert not np.array_equal(distinct(4, 500, **short).ids, some.ids[:500])
    # Whoever has published results with a seed finds the same expressions again.
    assert hashlib.sha256(some.ids.tobytes()).hexdigest().startswith("cb893d01373f")
    # There are 4 · 10² expressions of length 4.
    with pytest.raises(ValueError, match="expected 401 distinct .* of 4 to 4 symbols, found 400"):
        distinct(0, 401, longer_than=3, shorter_than=5, seq_len=5)


def test_the_splits() -> None:
    def ids(split: str, **own: int | str) -> set[bytes]:
        task = tasks.get("listops", **{**settings, **own})
        return {row.tobytes() for row in task.arrays(split)[0]}

    settings = dict(tasks.kind("listops").presets["smoke"].settings)
    train, test, validation = ids(TRAIN), ids(HELD_OUT), ids(HELD_OUT, judged_on="validation")
    assert (len(train), len(validation), len(test)) == (64, 16, 16)
    assert len(train | validation | test) == 96
    assert ids(HELD_OUT, num_train=5) == test
    task = tasks.get("listops", **settings, data_seed=5)
    assert task.title == "ListOps regenerated with LRA's law, seed 5"
    batch = examples(task, HELD_OUT, 16, jax.random.key(0))
    for row, place, value in zip(*map(np.asarray, batch[:3]), strict=True):
        assert row[place[0]] == SYMBOLS.index("<eos>") and not row[place[0] + 1 :].any()
        assert evaluate(decode(row)) == value[0]
    assert batch.length is not None
    np.testing.assert_array_equal(batch.length, (np.asarray(batch.inputs) != 0).sum(axis=1))


def test_many_expressions_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSFJAX_CACHE", str(tmp_path))
    many = {"longer_than": 3, "shorter_than": 12, "seq_len": 16, "num_train": 5_000}
    task = tasks.get("listops", **many, num_held_out=8, data_seed=77)
    first = [np.asarray(rows).copy() for rows in task.arrays(TRAIN)]
    module = importlib.import_module("dsfjax.tasks.listops.lists")
    module._expressions.cache_clear()
    monkeypatch.setattr(module, "distinct", None)
    for again, rows in zip(task.arrays(TRAIN), first, strict=True):
        np.testing.assert_array_equal(again, rows)
    assert task.arrays(TRAIN)[0].dtype == np.uint8  # as they are on the device


def test_what_is_no_expression() -> None:
    assert evaluate("7") == 7
    assert evaluate("( ( ( ( [MED 3 ) 8 ) 4 ) 9 ) ] )") == 6
    assert decode(encode(["[SM", "1", "what", "X"])) == "[SM 1 <unk> ]"
    for text, words in {
        "": "got 0 open lists",
        "[MAX 1": "got 1 open lists",
        "]": "symbol 0, got ']'",
        "[MAX ]": "symbol 1, got ']'",
        "[MAX 1 12 ]": "symbol 2, got '12'",
        "3 4": "more from symbol 1, '4', on",
    }.items():
        with pytest.raises(ValueError, match=words):
            evaluate(text)


def test_options_that_cannot_be() -> None:
    for own, words in {
        ("seq_len", 1999): "shorter_than ≤ seq_len, got longer_than=500, shorter_than=2000",
        ("longer_than", 1999): "longer_than \\+ 1 < shorter_than",
        ("longer_than", 2): "expected 3 ≤ longer_than",
        ("num_held_out", 0): "num_held_out of at least 1, got 96000 and 0",
        ("judged_on", "dev"): "unknown judged_on 'dev'.* Known: test, validation",
    }.items():
        with pytest.raises(ValueError, match=words):
            tasks.get("listops", **{own[0]: own[1]})


@pytest.mark.slow
@pytest.mark.usefixtures("data_dir")
def test_the_original_test_set() -> None:
    path = "listops_original/test_d20s.tsv"
    labelled = data.rows(data.read(path), path, 2)
    assert len(labelled) == 10_000
    assert [evaluate(source.decode()) for _, source in labelled] == [int(v) for v, _ in labelled]
